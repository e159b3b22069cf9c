"""Bird attack: birds swoop down at you; throw stones straight up at them before they reach you.

Action: running speed, and whether to throw (above 0; one stone at a time).
Reward: 1 for a bird hit, -1 for a bird that pecks you. 16 birds come, one every 29 steps.
Observation (17): your position; the stone's place above you (right, up) and whether it flies; for the 3 lowest birds
how far they are to the right and above, their sideways speed, and 1 (zeros where there are fewer); part of the
pause that is left until the next bird.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, nearest

BIRDS, EVERY, SIZE = 16, 29, 0.03  # number; steps between two; radius. The sky is 1 x 1
DIVE, HOMING, SWAY = 0.012, 0.004, 0.03  # speeds per step: down, towards you, and to and fro
RUN, STONE, PERSON, GROUND = 0.02, 0.045, 0.05, 0.08  # speeds per step of you and a stone; your half width and height
SEEN = 3

X, STONE_X, STONE_Y, TIME, HITS, PECKS = range(6)  # STONE_Y above 1: none flies
PLACE, ALIVE = slice(6, 6 + BIRDS), slice(6 + BIRDS, 6 + 2 * BIRDS)  # each bird's x, and 1 until it is gone


class BirdAttack(Game):
    """One attack."""

    obs_dim, action_dim, drawn = 4 + 4 * SEEN + 1, 2, ("_start", "_waves")

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._start = EVERY * np.arange(BIRDS) + rng.uniform(0, 8, (1, BIRDS))
        self._waves = rng.uniform([[0.1], [0.0]], [[0.3], [2 * np.pi]], (1, 2, BIRDS))
        places = rng.uniform(0.1, 0.9, BIRDS)
        return np.concatenate([[rng.uniform(0.3, 0.7), 0, 2, 0, 0, 0], places, np.ones(BIRDS)])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, stone_x, stone_y, time, _, _ = state[:, :6].T
        place, alive, time = state[:, PLACE], state[:, ALIVE] > 0, time + 1
        x = np.clip(x + RUN * action[:, 0], PERSON, 1 - PERSON)
        height = self._height(time)
        flies = height <= 1
        place = np.where(flies, place + self._sideways(time, place, x), place).clip(0, 1)
        throws = (stone_y > 1) & (action[:, 1] > 0)
        stone_x, stone_y = np.where(throws, x, stone_x), np.where(throws, GROUND, stone_y + STONE)
        hit = alive & flies & (np.hypot(place - stone_x[:, None], height - stone_y[:, None]) < SIZE + STONE / 2)
        hit &= np.cumsum(hit, axis=1) == 1
        stone_y = np.where(hit.any(axis=1), 2, np.minimum(stone_y, 2))
        alive &= ~hit
        down = alive & (height <= GROUND)
        pecks = (down & (np.abs(place - x[:, None]) < PERSON + SIZE)).sum(axis=1)
        return np.column_stack([x, stone_x, stone_y, time, hit.sum(axis=1), pecks, place, alive & ~down])

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, HITS] - state[:, PECKS]

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, stone_x, stone_y, time = state[:, :4].T
        place, height = state[:, PLACE], self._height(time)
        stone = np.where((stone_y <= 1)[:, None], np.stack([stone_x - x, stone_y, np.ones_like(x)], axis=1), 0.0)
        items = place - x[:, None], height - GROUND, self._sideways(time, place, x) * 50, np.ones(BIRDS)
        seen = nearest(items, np.where((state[:, ALIVE] > 0) & (height <= 1), height, np.inf), SEEN, absent=0.0)
        coming = np.where(self._start > time[:, None], self._start, np.inf).min(axis=1)
        pause = np.where(np.isfinite(coming), (coming - time) / EVERY, 1.0)
        return np.column_stack([x, stone, seen, pause])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#cfe8f7")
        canvas.box((0.5, 0.02), (0.5, 0.02), "#7da453")
        for x, y, alive in zip(state[PLACE], self._height(state[None, TIME])[0], state[ALIVE], strict=True):
            if alive and y <= 1:
                flap = 0.03 * np.sin(state[TIME])
                canvas.line((x - SIZE, y + flap), (x, y), 0.02, "#3a3a4a")
                canvas.line((x, y), (x + SIZE, y + flap), 0.02, "#3a3a4a")
                canvas.circle((x, y), 0.02, "#b03a2e")
        if state[STONE_Y] <= 1:
            canvas.circle(state[[STONE_X, STONE_Y]], 0.012, "#555555")
        canvas.box((state[X], 0.08), (PERSON * 0.6, 0.04), "#2c5d8a" if not state[PECKS] else "#c0392b")
        canvas.circle((state[X], 0.145), 0.028, "#e8b98a")

    def _height(self, time: np.ndarray) -> np.ndarray:
        return 1 - DIVE * (time[:, None] - self._start)

    def _sideways(self, time: np.ndarray, place: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return how far each bird moves sideways in a step, (P, BIRDS)."""
        sway = SWAY * np.sin(time[:, None] * self._waves[:, 0] + self._waves[:, 1])
        return sway + np.clip(x[:, None] - place, -HOMING, HOMING)
