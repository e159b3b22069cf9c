"""What a game is."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas


class Game(abc.ABC):
    """Rules on arrays of states: P copies of an episode are played at once, by themselves or from one another.

    Everything random is drawn by `reset`, which keeps it in the object: what follows depends on state and action
    alone, so any state can be copied, and gone on from under other actions. What is kept has one row, for all P states;
    with P rows, each state is of an episode of its own (`gather`).
    """

    obs_dim: int
    action_dim: int
    drawn: tuple[str, ...] = ()  # attributes in which `reset` keeps what it drew, arrays (1, ...)

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
        """Return what the player sees of the states (P, S), (P, obs_dim)."""

    @abc.abstractmethod
    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        """Draw one state (S,)."""

    def gather(self, episodes: int) -> None:
        """Make room for what the resets of so many episodes draw, a row each; one was reset before."""
        for name in self.drawn:
            setattr(self, name, np.repeat(getattr(self, name)[:1], episodes, axis=0))

    def take(self, row: int, other: Game) -> None:
        """Let a row be of the episode that another game of this kind was reset to."""
        for name in self.drawn:
            getattr(self, name)[row] = getattr(other, name)[0]


def entry(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return entry `index` (..., P) of each row of what was drawn, (1, K, ...) or (P, K, ...), (..., P, ...)."""
    return table[np.arange(len(table)), index]


def nearest(items: Sequence[np.ndarray], order: np.ndarray, count: int, absent: float = 1.0) -> np.ndarray:
    """Return the `count` items of smallest `order`, in that order, side by side, (P, count * number of properties).

    Args:
        items: their properties, each of a shape that broadcasts to (P, K).
        order: (P, K); infinite for items that are not there.
        count: how many; missing ones are filled with `absent`.
    """
    chosen = np.argsort(order, axis=1, kind="stable")[:, :count]
    rows = np.arange(len(order))[:, None]
    seen = np.empty((*chosen.shape, len(items)))
    for number, one in enumerate(items):
        seen[..., number] = np.broadcast_to(one, order.shape)[rows, chosen]
    seen[~np.isfinite(order[rows, chosen])] = absent
    return seen.reshape(len(order), -1)
