"""Rocket collect: steer a rocket, which drifts, from star to star.

Action: thrust forwards (below 0: brake at half strength) and turning speed, 1 = anticlockwise.
Reward: 1 for every star; the next one appears elsewhere. 25 are a good flight.
Observation (12): place (x, y), velocity (x, y), cosine and sine of the heading, from the rocket to the star and to the
one after it (x, y each), and the star's direction as seen from the rocket (ahead, to the left).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas, turned
from pipeline.tasks.miniarcade.game import Game, entry

THRUST, TURN, DRAG = 0.003, 0.25, 0.95  # per step2; rad per step; part of the speed kept: at most 0.06 per step
REACH, STARS = 0.06, 100  # how near one must come; a star every 5 steps would not use them up
X, Y, VX, VY, HEADING, TAKEN, EVENT = range(7)  # TAKEN: stars so far; EVENT: 1 in the step of a star


class RocketCollect(Game):
    """One flight. Walls around the 1 x 1 sky stop the rocket."""

    obs_dim, action_dim, drawn = 12, 2, ("stars",)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self.stars = rng.uniform(0.1, 0.9, (1, STARS, 2))
        return np.array([*rng.uniform(0.3, 0.7, 2), 0, 0, rng.uniform(-np.pi, np.pi), 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        xy, velocity, heading, taken = state[:, :2], state[:, 2:4], state[:, HEADING], state[:, TAKEN]
        heading = heading + TURN * action[:, 1]
        forwards = np.stack([np.cos(heading), np.sin(heading)], axis=1)
        thrust = THRUST * np.where(action[:, 0] > 0, 1, 0.5) * action[:, 0]
        velocity = DRAG * velocity + thrust[:, None] * forwards
        inside = np.clip(xy + velocity, 0, 1)
        velocity = np.where(inside == xy + velocity, velocity, 0)
        event = np.linalg.norm(self.star(taken) - inside, axis=1) < REACH
        return np.column_stack([inside, velocity, heading, taken + event, event])

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, EVENT]

    def star(self, taken: np.ndarray) -> np.ndarray:
        """Return where the next star is after `taken` (P,) of them, (P, 2)."""
        return entry(self.stars, taken.astype(int) % STARS)

    def observe(self, state: np.ndarray) -> np.ndarray:
        xy, cos, sin = state[:, :2], np.cos(state[:, HEADING]), np.sin(state[:, HEADING])
        star, later = (self.star(state[:, TAKEN] + k) - xy for k in (0, 1))
        seen = star[:, 0] * cos + star[:, 1] * sin, cos * star[:, 1] - sin * star[:, 0]
        return np.column_stack([xy, state[:, 2:4] * 20, cos, sin, star, later, *seen])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#141a33")
        canvas.circle(self.star(state[None, TAKEN])[0], 0.03, "#ffd54a")
        canvas.circle(self.star(state[None, TAKEN] + 1)[0], 0.015, "#8a7a3a")
        body = turned([(1.2, 0), (-0.8, 0.7), (-0.4, 0), (-0.8, -0.7)], state[:2], state[HEADING], 0.05)
        canvas.polygon(body, "#e5eaf0" if not state[EVENT] else "#ffd54a")
