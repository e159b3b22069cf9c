"""The planner of tests. tiny.yaml holds the parameters of whole runs, `benchmarks.problem` makes models and batches."""

from pipeline import config

TINY_PLANNER = config.Planner(
    horizon=3, iterations=2, num_samples=12, num_policy_samples=4, num_elites=5, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
