"""Air hockey: knock the puck into the goal at the top and keep it out of the one at the bottom.

Action: speed of your mallet (x, y), which stays in the lower half.
Reward: 1 for a goal made, -1 for a goal let in. Ten goals are a good game.
Observation (12): your mallet, the other mallet, the puck (x, y each), the puck's velocity, and from your mallet to the
puck and your mallet's velocity (x, y each).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, entry

MALLET, PUCK, GOAL = 0.06, 0.04, 0.22  # radii, half width of the goals. The table is 1 x 1
SPEED, OTHER_SPEED, FASTEST = 0.035, 0.01, 0.05  # per step: your mallet, the other one, the puck
GLIDE, BOUNCE = 0.995, 0.9  # parts of its speed that the puck keeps per step and per bounce
SERVES = 60

MINE, OTHER, PLACE, VELOCITY, MOVED = slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8), slice(8, 10)
SERVED, GOALS = 10, 11  # serves so far; 1 or -1 in the step of a goal


class AirHockey(Game):
    """One game against a mallet that guards its goal and clears the puck."""

    obs_dim, action_dim, drawn = 12, 2, ("_serves",)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._serves = rng.uniform([0.2, -0.01, -0.005], [0.8, 0.01, 0.005], (1, SERVES, 3))  # x, and the velocity
        x, vx, vy = self._serves[0, 0]
        return np.array([0.5, 0.15, 0.5, 0.88, x, 0.35, vx, vy, 0, 0, 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        mine = np.clip(state[:, MINE] + SPEED * action, MALLET, [1 - MALLET, 0.5 - MALLET])
        moved = mine - state[:, MINE]
        other, theirs = self._defend(state)
        place, velocity = state[:, PLACE] + state[:, VELOCITY], GLIDE * state[:, VELOCITY]
        in_front = np.abs(place[:, 0] - 0.5) < GOAL - PUCK
        goals = in_front * ((place[:, 1] > 1).astype(float) - (place[:, 1] < 0))
        for axis in (0, 1):
            outside = (place[:, axis] < PUCK) | (place[:, axis] > 1 - PUCK)
            outside &= True if axis == 0 else ~in_front
            towards = np.sign(0.5 - place[:, axis])
            velocity[:, axis] = np.where(outside, BOUNCE * towards * np.abs(velocity[:, axis]), velocity[:, axis])
            place[:, axis] = np.where(outside, np.clip(place[:, axis], PUCK, 1 - PUCK), place[:, axis])
        for mallet, speed in ((mine, moved), (other, theirs)):
            place, velocity = _collide(place, velocity, mallet, speed)
        served = state[:, SERVED] + (goals != 0)
        x, vx, vy = entry(self._serves, (served % SERVES).astype(int)).T
        # Whoever let the goal in has the puck next.
        place = np.where(goals[:, None] != 0, np.stack([x, 0.5 + 0.15 * goals], axis=1), place)
        velocity = np.where(goals[:, None] != 0, np.stack([vx, vy], axis=1), velocity)
        return np.column_stack([mine, other, place, velocity, moved, served, goals])

    def reward(self, state: np.ndarray) -> np.ndarray:
        return state[:, GOALS]

    def observe(self, state: np.ndarray) -> np.ndarray:
        puck, velocity = state[:, PLACE], state[:, VELOCITY]
        return np.column_stack([state[:, :4], puck, velocity * 25, puck - state[:, MINE], state[:, MOVED] / SPEED])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#f3f7fa")
        canvas.line((0, 0.5), (1, 0.5), 0.006, "#c0392b")
        for y in (0.0, 1.0):
            canvas.box((0.5, y), (GOAL, 0.015), "#2f4858")
        canvas.circle(state[OTHER], MALLET, "#c0392b")
        canvas.circle(state[MINE], MALLET, "#2471a3")
        canvas.circle(state[PLACE], PUCK, "#222222")

    def _defend(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the other mallet's new place and its motion: it goes for a puck in its half, else home."""
        other, puck = state[:, OTHER], state[:, PLACE]
        home = np.stack([0.5 + 0.4 * (puck[:, 0] - 0.5), np.full(len(state), 0.88)], axis=1)
        wanted = np.where((puck[:, 1:] > 0.6) & (puck[:, 1:] < other[:, 1:]), puck, home)
        new = other + np.clip(wanted - other, -OTHER_SPEED, OTHER_SPEED)
        new = np.clip(new, [MALLET, 0.5 + MALLET], 1 - MALLET)
        return new, new - other


def _collide(
    place: np.ndarray, velocity: np.ndarray, mallet: np.ndarray, speed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the puck after it has met a mallet: pushed out of it, its approach to it reversed."""
    between = place - mallet
    distance = np.linalg.norm(between, axis=1, keepdims=True)
    normal = between / np.maximum(distance, 1e-9)
    approach = ((velocity - speed) * normal).sum(axis=1, keepdims=True)
    touching = distance < MALLET + PUCK
    velocity = velocity - np.where(touching & (approach < 0), (1 + BOUNCE) * approach, 0) * normal
    size = np.linalg.norm(velocity, axis=1, keepdims=True)
    velocity = velocity * np.minimum(FASTEST / np.maximum(size, 1e-9), 1)
    return np.where(touching, np.clip(mallet + (MALLET + PUCK) * normal, PUCK, 1 - PUCK), place), velocity
