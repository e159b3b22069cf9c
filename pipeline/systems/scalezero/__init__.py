"""ScaleZero (arXiv 2509.07945): routed experts, and low-rank stages for the tasks that are not solved yet."""
