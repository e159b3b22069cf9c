"""Eft knows how: models, tasks, data, training. `stages/` knows when."""
