"""Learning: what is learned from, one update, and the loops around it."""
