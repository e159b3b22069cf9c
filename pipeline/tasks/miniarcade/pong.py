"""Pong: keep the ball from passing your paddle, on the right, and make it pass the other one. Who has 3 points wins.

Action: speed of the paddle, 1 = up at full speed.
Reward: 1 for a point made, -1 for a point lost, so the return is in [-3, 3]; after the third point the ball rests.
Observation (8): height of your paddle and of the other one, ball position and velocity, points made and lost.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, entry

PADDLE, BALL = 0.1, 0.02  # half height of a paddle; radius of the ball. The court is 1 x 1
PADDLE_SPEED, OTHER_SPEED = 0.04, 0.014  # per step
PADDLE_X = 0.05  # distance of either paddle from its wall
SERVE_SPEED, SPIN = 0.022, 0.026  # horizontal speed of the ball; vertical speed that a hit with the paddle's tip gives
POINTS = 3

MINE, OTHER, X, Y, VX, VY, MADE, LOST, EVENT = range(9)  # EVENT: 1 or -1 in the step of a point


class Pong(Game):
    """One match against a paddle that follows the ball, slower than ours."""

    obs_dim, action_dim, drawn = 8, 1, ("_serves",)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        serves = 2 * POINTS
        self._serves = np.stack(
            [rng.uniform(0.3, 0.7, serves), rng.uniform(-0.015, 0.015, serves), rng.choice([-1.0, 1.0], serves)], axis=1
        )[None]
        height, climb, side = self._serves[0, 0]
        return np.array([0.5, 0.5, 0.5, height, side * SERVE_SPEED, climb, 0, 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        mine, other, x, y, vx, vy, made, lost, _ = state.T
        over = (made >= POINTS) | (lost >= POINTS)
        mine = np.clip(mine + PADDLE_SPEED * action[:, 0], PADDLE, 1 - PADDLE)
        other = np.clip(other + np.clip(y - other, -OTHER_SPEED, OTHER_SPEED), PADDLE, 1 - PADDLE)
        new_x, new_y = x + vx, y + vy
        vy = np.where((new_y < BALL) | (new_y > 1 - BALL), -vy, vy)
        new_y = np.clip(new_y, BALL, 1 - BALL)
        for paddle, line, way in ((mine, 1 - PADDLE_X - BALL, 1), (other, PADDLE_X + BALL, -1)):
            crossed = (way * x < way * line) & (way * new_x >= way * line) & (way * vx > 0)
            offset = (new_y - paddle) / (PADDLE + BALL)
            hit = crossed & (np.abs(offset) <= 1)
            vx, vy = np.where(hit, -vx, vx), np.where(hit, SPIN * offset, vy)
            new_x = np.where(hit, 2 * line - new_x, new_x)
        event = np.where(over, 0.0, (new_x < 0).astype(float) - (new_x > 1))
        made, lost = made + (event > 0), lost + (event < 0)
        height, climb, side = entry(self._serves, np.minimum(made + lost, 2 * POINTS - 1).astype(int)).T
        scored = event != 0
        after = [np.full_like(x, 0.5), height, side * SERVE_SPEED, climb]
        ball = [np.where(scored, a, b) for a, b in zip(after, [new_x, new_y, vx, vy], strict=True)]
        ball = [np.where(over, a, b) for a, b in zip([x, y, x * 0, x * 0], ball, strict=True)]
        return np.stack([mine, other, *ball, made, lost, event], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, EVENT]

    def observe(self, state: np.ndarray) -> np.ndarray:
        scales = np.array([1, 1, 1, 1, SERVE_SPEED, SERVE_SPEED, POINTS, POINTS])
        return state[:, :EVENT] / scales

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#10231a")
        canvas.line((0.5, 0), (0.5, 1), 0.005, "#3d6b52")
        canvas.box((1 - PADDLE_X + 0.01, state[MINE]), (0.01, PADDLE), "#7bd88f")
        canvas.box((PADDLE_X - 0.01, state[OTHER]), (0.01, PADDLE), "#e06c75")
        canvas.circle(state[[X, Y]], BALL, "white")
        for column, count, colour in ((0.55, state[MADE], "#7bd88f"), (0.45, state[LOST], "#e06c75")):
            for point in range(int(count)):
                canvas.circle((column + np.sign(column - 0.5) * 0.05 * point, 0.95), 0.015, colour)
