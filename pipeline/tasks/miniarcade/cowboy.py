"""Cowboy: stay upright in the saddle of a bucking bull.

Action: how hard to lean, 1 = to the right.
Reward: 1 while upright in the saddle, falling to 0 at the lean where one is thrown off; 0 while walking back.
Observation (6): lean, its speed, the bull's push now and in 5 steps, how wild the bull is, steps until back in the
saddle (as a part of all).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game

FALLING, LEANING = 0.02, 0.012  # rad/step2 per radian of lean, and at full action
WAVES, WILD = 6, 0.009  # the bull's push is this many waves; its greatest size at the end, rad/step2
LIMIT, BACK = 0.7, 30  # rad at which one is thrown off; steps until back in the saddle
LENGTH = 500  # steps over which the bull grows wild

LEAN, SPEED, WALKING, TIME = range(4)


class Cowboy(Game):
    """One ride."""

    obs_dim, action_dim, drawn = 6, 1, ("_waves",)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._waves = rng.uniform([[0.05], [0.0]], [[0.5], [2 * np.pi]], (1, 2, WAVES))
        return np.array([*rng.uniform(-0.1, 0.1, 1), 0, 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        lean, speed, walking, time = state.T
        speed = 0.98 * speed + FALLING * lean + LEANING * action[:, 0] + self._push(time)
        lean = lean + speed
        walking = np.where(np.abs(lean) > LIMIT, BACK, np.maximum(walking - 1, 0))
        lean, speed = (np.where(walking > 0, 0.0, value) for value in (lean, speed))
        return np.stack([lean, speed, walking, time + 1], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        upright = 1 - np.square(state[:, LEAN] / LIMIT)
        return np.where(state[:, WALKING] > 0, 0.0, upright)

    def observe(self, state: np.ndarray) -> np.ndarray:
        lean, speed, walking, time = state.T
        pushes = [self._push(time + later) / WILD for later in (0, 5)]
        return np.stack([lean / LIMIT, speed * 20, *pushes, time / LENGTH, walking / BACK], axis=1)

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        push = float(self._push(state[None, TIME])[0]) / WILD
        saddle = np.array([0.5, 0.47])
        canvas.fill("#f2dcb0")
        canvas.box((0.5, 0.1), (0.5, 0.1), "#c99d5e")
        for leg in (-0.17, -0.1, 0.1, 0.17):
            canvas.line((0.5 + leg, 0.36), (0.5 + leg * 1.1, 0.17), 0.035, "#4a2f1d")
        canvas.line((0.33, 0.38 - 0.06 * push), (0.67, 0.38 + 0.06 * push), 0.15, "#5b3a24")
        canvas.circle((0.74, 0.47 + 0.08 * push), 0.07, "#4a2f1d")
        if state[WALKING] > 0:
            seat, lean = np.array([0.5 - 0.4 * state[WALKING] / BACK, 0.28]), 0.0
        else:
            seat, lean = saddle, state[LEAN]
        head = seat + 0.25 * np.array([np.sin(lean), np.cos(lean)])
        canvas.line(seat, head, 0.07, "#2f6f9f")
        canvas.circle(head, 0.05, "#e8b98a")
        hat, brim = np.array([0, 0.045]), np.array([0.08, 0])
        canvas.line(head + hat - brim, head + hat + brim, 0.025, "#7a4b22")

    def _push(self, time: np.ndarray) -> np.ndarray:
        size = WILD * (0.3 + 0.7 * np.minimum(time / LENGTH, 1))
        return size * np.sin(time[:, None] * self._waves[:, 0] + self._waves[:, 1]).mean(axis=-1) * 2
