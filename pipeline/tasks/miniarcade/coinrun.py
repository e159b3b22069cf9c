"""Coinrun: a runner who never stops jumps for coins and over crates.

Action: how hard to jump, from 0 (or less: not at all) to 1; it counts only on the ground.
Reward: 1 for every coin. A run without a stumble passes about 55; a crate that is not jumped costs 12 steps.
Observation (16): height, climbing speed, steps of stumbling left; for the next 4 coins the distance and the height, for
the next 4 gaps between them whether a crate stands there; distance to the next gap's middle.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, entry

PACE = 0.115  # gaps between coins run per step
GRAVITY, JUMP = 0.06, 0.27  # of the height of a jump, per step2 and per step: 9 steps in the air, 0.6 high
REACH, CRATE, STUMBLE = 0.13, 0.2, 12  # how near a coin must be; height of a crate; steps that it costs
SLOTS, SEEN = 80, 4

X, HEIGHT, CLIMB, STUMBLING, COINS = range(5)  # COINS: taken in this step


class Coinrun(Game):
    """One run. Coin i hangs at x = i + 1; a crate may stand half a gap behind it."""

    obs_dim, action_dim, drawn = 4 + 3 * SEEN, 1, ("_heights", "_crates")

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._heights = rng.choice([0.05, 0.3, 0.5], (1, SLOTS))
        self._crates = rng.random((1, SLOTS)) < 0.2
        return np.zeros(5)

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, height, climb, stumbling, _ = state.T
        ground = height <= 0
        climb = np.where(ground, JUMP * np.maximum(action[:, 0], 0) * (stumbling <= 0), climb - GRAVITY)
        height = np.maximum(height + climb, 0)
        new_x = np.where(stumbling > 0, x, x + PACE)
        coin, crate = _slot(x), _slot(x - 0.5)
        passed = _slot(new_x) > coin
        coins = passed & (np.abs(height - entry(self._heights, coin)) <= REACH)
        stands = entry(self._crates, np.maximum(crate, 0)) & (crate >= 0)
        tripped = (_slot(new_x - 0.5) > crate) & stands & (height < CRATE)
        stumbling = np.where(tripped, STUMBLE, np.maximum(stumbling - 1, 0))
        return np.stack([new_x, height, climb, stumbling, coins], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, COINS]

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, height, climb, stumbling, _ = state.T
        gap, later = np.maximum(_slot(x - 0.5), 0), np.arange(SEEN)[:, None]
        coins = _slot(x) + later  # (SEEN, P)
        ahead = np.stack([coins + 1 - x, entry(self._heights, coins)]).transpose(2, 1, 0).reshape(len(state), -1)
        crates = entry(self._crates, gap + later).T
        return np.column_stack([height, climb / JUMP, stumbling / STUMBLE, ahead, crates, gap + 1.5 - x])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        x, height = state[X], state[HEIGHT]
        canvas.fill("#bfe3f5")
        canvas.box((0.5, 0.15), (0.5, 0.15), "#6aa84f")
        for slot in range(int(_slot(x)) - 1, int(_slot(x)) + 6):
            if slot < 0:
                continue
            column = 0.2 + 0.18 * (slot + 1 - x)
            if slot >= _slot(x):
                canvas.circle((column, 0.36 + 0.6 * self._heights[0, slot]), 0.025, "#f1c232")
            if self._crates[0, slot]:
                canvas.box((column + 0.09, 0.36), (0.03, 0.06), "#8d5a2b")
        canvas.box((0.2, 0.36 + 0.6 * height), (0.025, 0.055), "#cc4125" if state[STUMBLING] else "#3d85c6")
        canvas.circle((0.2, 0.445 + 0.6 * height), 0.03, "#f6c9a0")


def _slot(x: np.ndarray | float) -> np.ndarray:
    """Return the number of the next coin at x."""
    return np.floor(x).astype(int)
