"""MoW (arXiv 2602.01270): networks per cluster of tasks, learned weights of tasks, predicting the task."""
