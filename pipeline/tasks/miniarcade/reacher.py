"""Reacher: bring the tip of an arm with two joints onto a target and keep it there.

Action: torque on the shoulder and on the elbow, which speed the joints up against friction.
Reward: 1 while the tip is inside the target, else 0.
Observation (10): cosine and sine of the shoulder's and of the elbow's angle, both angular speeds, tip to target (x, y),
target position (x, y).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game

UPPER, LOWER = 0.25, 0.2  # lengths of the links; the shoulder is at (0, 0), the image 1.1 wide
TORQUE, FRICTION = 0.02, 0.2  # rad/step2 at full torque; part of the speed lost per step: at most 0.08 rad/step

SHOULDER, ELBOW, SHOULDER_SPEED, ELBOW_SPEED, TARGET_X, TARGET_Y = range(6)


class Reacher(Game):
    """One arm.

    Args:
        radius: of the target.
    """

    obs_dim, action_dim = 10, 2

    def __init__(self, radius: float):
        self._radius = radius

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        angle, distance = rng.uniform([0, 0.12], [2 * np.pi, 0.42])
        joints = rng.uniform([-np.pi, -2.5], [np.pi, 2.5])
        return np.array([*joints, 0, 0, distance * np.cos(angle), distance * np.sin(angle)])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        speeds = (1 - FRICTION) * state[:, 2:4] + TORQUE * action
        return np.concatenate([state[:, :2] + speeds, speeds, state[:, 4:]], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        return (self.distance(state) <= self._radius).astype(float)

    def distance(self, state: np.ndarray) -> np.ndarray:
        """Return how far the tip is from the target, (P,)."""
        return np.linalg.norm(_joints(state)[1] - state[:, 4:], axis=1)

    def observe(self, state: np.ndarray) -> np.ndarray:
        shoulder, elbow, speeds, target = state[:, SHOULDER], state[:, ELBOW], state[:, 2:4], state[:, 4:]
        turns = np.cos(shoulder), np.sin(shoulder), np.cos(elbow), np.sin(elbow)
        return np.column_stack([*turns, speeds * FRICTION / TORQUE, target - _joints(state)[1], target])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        place = [0.5 + xy / 1.1 for xy in (np.zeros(2), *(joint[0] for joint in _joints(state[None])))]
        canvas.fill("#eef2f5")
        canvas.circle(0.5 + state[4:] / 1.1, self._radius / 1.1, "#e0584f")
        canvas.line(place[0], place[1], 0.03, "#3b5b7d")
        canvas.line(place[1], place[2], 0.024, "#5f87b0")
        canvas.circle(place[2], 0.014, "#222222")


def _joints(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the elbow and the tip are, (P, 2) each."""
    first, second = state[:, SHOULDER], state[:, SHOULDER] + state[:, ELBOW]
    elbow = UPPER * np.stack([np.cos(first), np.sin(first)], axis=1)
    return elbow, elbow + LOWER * np.stack([np.cos(second), np.sin(second)], axis=1)
