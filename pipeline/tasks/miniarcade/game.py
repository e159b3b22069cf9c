"""What a game is."""

from __future__ import annotations

import abc

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas


class Game(abc.ABC):
    """Rules on arrays of states: P copies of an episode are played at once, by themselves or from one another.

    Everything random is drawn by `reset`, which keeps it in the object: what follows depends on state and action
    alone, so any state can be copied, and gone on from under other actions.
    """

    obs_dim: int
    action_dim: int

    @abc.abstractmethod
    def reset(self, rng: np.random.Generator) -> np.ndarray:
        """Draw an episode and return its first state, (S,) float64."""

    @abc.abstractmethod
    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return the states (P, S) that follow the states (P, S) under actions (P, a) in [-1, 1]."""

    @abc.abstractmethod
    def reward(self, state: np.ndarray) -> np.ndarray:
        """Return the reward (P,) of the step that led to the states (P, S)."""

    def success(self, state: np.ndarray) -> np.ndarray:
        """Return which of the states (P, S) count as success; most games are scored by their return alone."""
        return np.zeros(len(state), bool)

    @abc.abstractmethod
    def observe(self, state: np.ndarray) -> np.ndarray:
        """Return what the player sees of one state (S,), (obs_dim,)."""

    @abc.abstractmethod
    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        """Draw one state (S,)."""


def nearest(items: np.ndarray, order: np.ndarray, count: int, absent: float = 1.0) -> np.ndarray:
    """Return the `count` items of smallest `order`, in that order, flat.

    Args:
        items: (N, width).
        order: (N,); infinite for items that are not there.
        count: how many; missing ones are filled with `absent`.
    """
    chosen = np.argsort(order, kind="stable")[:count]
    chosen = chosen[np.isfinite(order[chosen])]
    seen = np.full((count, items.shape[1]), absent)
    seen[: len(chosen)] = items[chosen]
    return seen.ravel()
