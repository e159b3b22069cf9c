"""Chase and evade: catch the other while the field is green, keep away from it while the field is red.

Action: acceleration (x, y). The roles change every 100 steps.
Reward: 0.1 * (1 - 2 * distance / 0.7) while chasing, its opposite while evading, the distance counted up to 0.7; so the
return of 500 steps is in [-50, 50].
Observation (12): your place and velocity, the other's place and velocity, from you to the other (x, y each), 1 while
chasing and -1 while evading, part of the turn that is left.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game

PUSH, DRAG = 0.004, 0.9  # per step2, and the part of the speed that stays: at most 0.036 per step. The field is 1 x 1
OTHER_FLEES, OTHER_HUNTS = 0.6, 0.8  # of our acceleration, while it is chased and while it chases
TURN, FAR = 100, 0.7  # steps; distance beyond which nothing changes

ME, MY_SPEED, OTHER, OTHER_SPEED, TIME = slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8), 8


class ChaseEvade(Game):
    """One game of tag."""

    obs_dim, action_dim, drawn = 12, 2, ("_waves",)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._waves = rng.uniform([[0.03], [0.0]], [[0.1], [2 * np.pi]], (1, 2, 2))
        places = rng.uniform(0.1, 0.9, (2, 2))
        return np.concatenate([places[0], [0, 0], places[1], [0, 0, 0]])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        me, speed = _move(state[:, ME], state[:, MY_SPEED], PUSH * action)
        chasing = _chasing(state[:, TIME])[:, None]
        other, push = state[:, OTHER], self._think(state)
        other, other_speed = _move(
            other, state[:, OTHER_SPEED], PUSH * np.where(chasing > 0, OTHER_FLEES, OTHER_HUNTS) * push
        )
        return np.column_stack([me, speed, other, other_speed, state[:, TIME] + 1])

    def reward(self, state: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(state[:, ME] - state[:, OTHER], axis=1)
        return 0.1 * _chasing(state[:, TIME] - 1) * (1 - 2 * np.minimum(distance / FAR, 1))

    def observe(self, state: np.ndarray) -> np.ndarray:
        seen, time = state[:, :8] * [1, 1, 25, 25, 1, 1, 25, 25], state[:, TIME]
        return np.column_stack([seen, state[:, OTHER] - state[:, ME], _chasing(time), 1 - time % TURN / TURN])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#d9efd6" if _chasing(state[TIME]) > 0 else "#f5d6d3")
        canvas.circle(state[OTHER], 0.04, "#a33b2f")
        canvas.circle(state[ME], 0.04, "#2b6cb0")

    def _think(self, state: np.ndarray) -> np.ndarray:
        """Return the other's push (P, 2) in [-1, 1]: towards us, or away from us and from the walls, swerving."""
        towards = state[:, ME] - state[:, OTHER]
        towards = towards / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
        swerve = 0.5 * np.sin(state[:, TIME, None] * self._waves[:, 0] + self._waves[:, 1])
        inwards = np.clip(3 * (0.5 - state[:, OTHER]), -1.5, 1.5) ** 3
        wanted = np.where(_chasing(state[:, TIME])[:, None] > 0, inwards + swerve - towards, towards)
        return np.clip(wanted, -1, 1)


def _move(xy: np.ndarray, velocity: np.ndarray, push: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    velocity = DRAG * velocity + push
    inside = np.clip(xy + velocity, 0, 1)
    return inside, np.where(inside == xy + velocity, velocity, 0)


def _chasing(time: np.ndarray | float) -> np.ndarray:
    """Return 1 while we chase, -1 while we evade."""
    return 1 - 2 * (np.floor_divide(time, TURN) % 2)
