"""Coconut dodge: coconuts fall from the palms; do not be under one.

Action: running speed, 1 = to the right at full speed.
Reward: -1 for every coconut that hits you. The return is 0 at best, about -15 standing still.
Observation (18): your position and that of the nearest wall; for the 8 lowest coconuts how far they are to the right
of you and how high above (1, 1 where there are fewer).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, nearest

COCONUTS, SIZE = 120, 0.03
RUN, PERSON = 0.025, 0.045  # per step; half width. The beach is 1 wide, the palms 1 high
HEAD = 0.12  # height at which a coconut hits
LENGTH, SEEN = 500, 8

X, TIME, HITS = range(3)  # HITS: in this step


class CoconutDodge(Game):
    """One beach."""

    obs_dim, action_dim, drawn = 2 + 2 * SEEN, 1, ("_start", "_x", "_speed")

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._start = np.sort(rng.uniform(0, LENGTH, (1, COCONUTS)))
        self._x = rng.uniform(0.03, 0.97, (1, COCONUTS))
        self._speed = rng.uniform(0.015, 0.03, (1, COCONUTS))
        return np.array([rng.uniform(0.3, 0.7), 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, time, _ = state.T
        x = np.clip(x + RUN * action[:, 0], PERSON, 1 - PERSON)
        before, after = self._height(time), self._height(time + 1)
        falls = (before > HEAD) & (after <= HEAD)
        hits = (falls & (np.abs(self._x - x[:, None]) < PERSON + SIZE)).sum(axis=1)
        return np.stack([x, time + 1, hits], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        return -state[:, HITS]

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, height = state[:, X], self._height(state[:, TIME])
        above = self._x - x[:, None], height - HEAD
        seen = nearest(above, np.where((height > HEAD) & (height < 1), height, np.inf), SEEN)
        return np.column_stack([x, np.minimum(x, 1 - x), seen])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#a8dcf0")
        canvas.box((0.5, 0.03), (0.5, 0.03), "#ecd9a0")
        canvas.box((0.5, 0.97), (0.5, 0.03), "#4f9d4a")
        for x, height in zip(self._x[0], self._height(state[None, TIME])[0], strict=True):
            if 0.06 < height < 1:
                canvas.circle((x, height), SIZE, "#6b4226")
        canvas.box((state[X], 0.075), (PERSON * 0.7, 0.035), "#d9534f" if not state[HITS] else "#222222")
        canvas.circle((state[X], 0.12), 0.025, "#e8b98a")

    def _height(self, time: np.ndarray) -> np.ndarray:
        """Return how high each coconut is, (P, COCONUTS); above 1 it still hangs."""
        return 1 - self._speed * (time[:, None] - self._start)
