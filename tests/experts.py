"""Experts of the tests, in a module of their own: worker processes import it."""

from __future__ import annotations

import numpy as np

from pipeline.demonstrate.teacher import Teacher
from pipeline.tasks.labels import Expert
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv


def open_damper(spec: TaskSpec, env: TaskEnv) -> Expert:
    """Of Pendulum-v1: it works against the speed."""
    return lambda obs, success: np.array([-np.tanh(obs[2])])


def open_bad(fault: str, above: float, spec: TaskSpec, env: TaskEnv) -> Expert:
    """Of the troublesome environment of tests/tasks: it fails at the third step of episodes that begin above a number.

    Args:
        fault: `nan`, `shape` or `raises`.
        above: the number; episodes begin in [0, 1).
        spec: the task.
        env: its environment.
    """

    def act(obs: np.ndarray, success: bool) -> np.ndarray:
        if obs[1] < 2 or obs[0] < above:
            return np.array([0.25])
        if fault == "raises":
            raise ZeroDivisionError("no way")
        return np.array([np.nan]) if fault == "nan" else np.zeros(3)

    return act


def untrained_teacher(spec: TaskSpec) -> Teacher:
    """Return a teacher with random weights that says of itself to be perfect."""
    draw, sizes = np.random.default_rng(0), (spec.obs_dim, 8, 8, spec.action_dim)
    weights = []
    for n in range(3):
        weights += [draw.normal(size=(sizes[n + 1], sizes[n])), draw.normal(size=sizes[n + 1])]
    weights = [part.astype(np.float32) for part in weights]
    return Teacher(spec, np.zeros(spec.obs_dim, np.float32), np.ones(spec.obs_dim, np.float32), weights, {"score": 1.0})
