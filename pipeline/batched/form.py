"""What makes a MuJoCo task steppable as arrays: its observation and reward on whole arrays of states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.batched.states import States

Observe = Callable[[States], np.ndarray]  # (P, T, O): the observation in each state
Reward = Callable[[States, States], np.ndarray]  # of the states after and before a control step: its reward, (P, T)


def nothing(simulator: Any) -> np.ndarray:
    """Return what the reset of a task draws that draws nothing but the state."""
    return np.zeros(0)


@dataclass(frozen=True)
class ArrayForm:
    """A task's observation and reward on arrays; a test holds them equal to the real environment's.

    Attributes:
        observe: the observation.
        reward: the reward of one control step. The states before have no sensor readings.
        drawn: what the reset drew beside the state, (k,), read from the adapter of the task just reset.
        success: whether the task's own success holds, (P, T); None for a task without.
        terminated: whether the episode ends for good after each control step, (P, T); None for a task without an end.
        hidden: entries of the observation that arrays cannot give; they are 0 here, and a teacher does not see them.
    """

    observe: Observe
    reward: Reward
    drawn: Callable[[Any], np.ndarray] = nothing
    success: Callable[[States], np.ndarray] | None = None
    terminated: Callable[[States], np.ndarray] | None = None
    hidden: slice | None = None
