"""Spaceship: fly through falling asteroids and shoot them; the gun fires straight up by itself.

Action: speed (x, y).
Reward: 1 for an asteroid shot, -1 for one flown into (which destroys it). 70 fall in an episode.
Observation (23): position (x, y), steps until the next shot; for the 5 nearest asteroids ahead how far they are to the
right and above, how fast they fall, and 1 (zeros where there are fewer).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, nearest

ASTEROIDS, SIZE = 70, 0.05  # number and radius; space is 1 x 1
SPEED, SHIP, CEILING = 0.03, 0.035, 0.5  # per step; radius of the ship; highest place that it can fly to
RELOAD = 4  # steps between two shots
LENGTH, SEEN = 500, 5

X, Y, LOADING, TIME, SHOT, CRASHED, ALIVE = 0, 1, 2, 3, 4, 5, slice(6, None)  # ALIVE: 1 for each asteroid not yet gone


class Spaceship(Game):
    """One flight."""

    obs_dim, action_dim, drawn = 3 + 4 * SEEN, 2, ("_start", "_x", "_fall")

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._start = np.linspace(0, LENGTH - 60, ASTEROIDS) + rng.uniform(-4, 4, (1, ASTEROIDS))
        self._x = rng.uniform(SIZE, 1 - SIZE, (1, ASTEROIDS))
        self._fall = rng.uniform(0.009, 0.018, (1, ASTEROIDS))
        return np.array([rng.uniform(0.3, 0.7), 0.1, 0, 0, 0, 0, *np.ones(ASTEROIDS)])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        xy = np.clip(state[:, :2] + SPEED * action, SHIP, [1 - SHIP, CEILING])
        time, alive = state[:, TIME] + 1, state[:, ALIVE] > 0
        height = self._height(time)
        right, above = self._x - xy[:, :1], height - xy[:, 1:]
        crashed = alive & (np.hypot(right, above) < SIZE + SHIP)
        alive = alive & ~crashed & (height > -SIZE)
        fires = state[:, LOADING] <= 0
        aimed = alive & (np.abs(right) < SIZE) & (above > 0) & (height < 1 + SIZE) & fires[:, None]
        first = np.where(aimed, above, np.inf).argmin(axis=1)
        shot = aimed[np.arange(len(state)), first]
        alive[shot, first[shot]] = False
        loading = np.where(fires, RELOAD - 1, state[:, LOADING] - 1)
        return np.column_stack([xy, loading, time, shot, crashed.sum(axis=1), alive])

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, SHOT] - state[:, CRASHED]

    def observe(self, state: np.ndarray) -> np.ndarray:
        height = self._height(state[:, TIME])
        right, above = self._x - state[:, X, None], height - state[:, Y, None]
        there = (state[:, ALIVE] > 0) & (height < 1 + SIZE) & (above > -SIZE)
        items = right, above, self._fall * 50, np.ones(ASTEROIDS)
        seen = nearest(items, np.where(there, above, np.inf), SEEN, absent=0.0)
        return np.column_stack([state[:, X], state[:, Y], state[:, LOADING] / RELOAD, seen])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#0b1026")
        x, y = state[X], state[Y]
        if state[LOADING] == RELOAD - 1:
            canvas.line((x, y), (x, 1), 0.006, "#7fffd4")
        for place, height, alive in zip(self._x[0], self._height(state[None, TIME])[0], state[ALIVE], strict=True):
            if alive and height < 1 + SIZE:
                canvas.circle((place, height), SIZE, "#8d8374")
        canvas.polygon([(x, y + 0.05), (x - SHIP, y - 0.03), (x + SHIP, y - 0.03)], "#d0d7de")
        canvas.circle((x, y), 0.012, "#e5533d" if state[CRASHED] else "#4aa3df")

    def _height(self, time: np.ndarray) -> np.ndarray:
        return 1 + SIZE - self._fall * (time[:, None] - self._start)
