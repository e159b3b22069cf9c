"""Landing: set a rocket down on the pad, slowly and upright.

Action: the engine, from -1 (off) to 1 (full), and the side thrusters, 1 = turn anticlockwise.
Reward: 1 per step once landed; before that up to 0.3, more the nearer to the pad and the more upright; 0 once crashed.
Observation (9): place relative to the pad (x, y), velocity (x, y), cosine and sine of the tilt, turning speed, landed,
crashed.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas, turned
from pipeline.tasks.miniarcade.game import Game

GRAVITY, ENGINE, THRUSTER = 0.0006, 0.0015, 0.006  # per step2; the last in rad. The sky is 1 x 1
PAD, SLOW, STRAIGHT = 0.08, 0.012, 0.25  # half width of the pad; speed and tilt (rad) up to which one lands whole
FLOOR = 0.1  # height of the ground

X, Y, VX, VY, TILT, TURN, LANDED, CRASHED, PAD_X = range(9)


class Landing(Game):
    """One descent."""

    obs_dim, action_dim = 9, 2

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        low, high = [0.2, 0.8, -0.006, -0.004, -0.2, -0.01], [0.8, 0.95, 0.006, 0.0, 0.2, 0.01]
        return np.array([*rng.uniform(low, high), 0, 0, rng.uniform(0.25, 0.75)])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, y, vx, vy, tilt, turn, landed, crashed, pad = state.T
        engine = ENGINE * (1 + action[:, 0]) / 2
        turn = 0.97 * turn + THRUSTER * action[:, 1]
        tilt = tilt + turn
        vx, vy = vx - engine * np.sin(tilt), vy + engine * np.cos(tilt) - GRAVITY
        x, y = np.clip(x + vx, 0, 1), np.minimum(y + vy, 1)
        down = y <= FLOOR
        whole = (np.abs(x - pad) <= PAD) & (np.hypot(vx, vy) <= SLOW) & (np.abs(tilt) <= STRAIGHT)
        moved = np.stack([x, np.maximum(y, FLOOR), vx, vy, tilt, turn, down & whole, down & ~whole, pad], axis=1)
        return np.where((landed + crashed > 0)[:, None], state, moved)

    def reward(self, state: np.ndarray) -> np.ndarray:
        away = np.hypot(state[:, X] - state[:, PAD_X], state[:, Y] - FLOOR)
        upright = (1 + np.cos(state[:, TILT])) / 2
        flying = 0.3 * np.maximum(1 - away, 0) * upright
        return np.where(state[:, LANDED] > 0, 1.0, np.where(state[:, CRASHED] > 0, 0.0, flying))

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, y, vx, vy, tilt, turn, landed, crashed, pad = state.T
        motion = vx * 50, vy * 50, np.cos(tilt), np.sin(tilt), turn * 20
        return np.stack([x - pad, y - FLOOR, *motion, landed, crashed], axis=1)

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#1b2340")
        canvas.box((0.5, FLOOR / 2 - 0.02), (0.5, FLOOR / 2 - 0.02), "#6b5b4b")
        canvas.box((state[PAD_X], FLOOR - 0.03), (PAD, 0.01), "#f1c232")
        place = state[:2] + np.array([0, 0.03])
        body = turned([(-0.4, -1), (0.4, -1), (0.4, 0.6), (0, 1.4), (-0.4, 0.6)], place, state[TILT], 0.05)
        canvas.polygon(body, "#c0392b" if state[CRASHED] else "#dfe6ee")
        for side in (-1, 1):
            foot = turned([(0.4 * side, -0.6), (0.9 * side, -1.4)], place, state[TILT], 0.05)
            canvas.line(foot[0], foot[1], 0.012, "#9aa5b1")
