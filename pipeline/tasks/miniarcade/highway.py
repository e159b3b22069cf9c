"""Highway: drive as far as you can through slower traffic.

Action: steering, 1 = to the right, and throttle (below 0: brake).
Reward: the distance driven, 10 in all at full speed throughout, less 0.3 for every crash, which also takes the speed.
Observation (23): place across the road, speed, steps until the car can crash again; for the 5 nearest cars
ahead or beside how far they are to the right and ahead, how much faster, and 1 (zeros where there are fewer).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game, nearest

LANES, CARS = 4, 60
FAST, ACCELERATION = 0.04, 0.001  # road per step, and per step2; a lane is 1 wide, an image shows 1 of road
STEER = 0.08  # lanes per step at full speed; less when slower
WIDE, LONG = 0.6, 0.1  # of a car
CRASH_COST, SAFE = 0.3, 25  # reward lost; steps until a car that crashed can crash again
LENGTH, SEEN = 500, 5

X, ROAD, SPEED, SPARED, CRASHED, TIME = range(6)


class Highway(Game):
    """One drive."""

    obs_dim, action_dim, drawn = 3 + 4 * SEEN, 2, ("_lane", "_start", "_pace")

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._lane = rng.integers(LANES, size=(1, CARS))
        self._start = 0.5 + np.arange(CARS) * 0.2 + rng.uniform(0, 0.1, (1, CARS))
        self._pace = np.array([0.022, 0.018, 0.015, 0.012])[self._lane]  # the left lane is the quickest
        return np.array([rng.integers(LANES), 0, FAST / 2, 0, 0, 0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, road, speed, spared, _, time = state.T
        speed = np.clip(speed + ACCELERATION * np.where(action[:, 1] > 0, 1, 3) * action[:, 1], 0, FAST)
        x = np.clip(x + STEER * action[:, 0] * np.minimum(2 * speed / FAST, 1), 0, LANES - 1)
        road, time = road + speed, time + 1
        beside = np.abs(self._lane - x[:, None]) < WIDE
        touching = beside & (np.abs(self._ahead(time, road)) < LONG)
        crashed = touching.any(axis=1) & (spared <= 0)
        pace = np.where(touching, self._pace, np.inf).min(axis=1)
        speed = np.where(crashed, np.minimum(pace, FAST) / 2, speed)
        spared = np.where(crashed, SAFE, np.maximum(spared - 1, 0))
        return np.stack([x, road, speed, spared, crashed, time], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        return 10 * state[:, SPEED] / (FAST * LENGTH) - CRASH_COST * state[:, CRASHED]

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, road, speed, spared, _, time = state.T
        ahead = self._ahead(time, road)
        items = self._lane - x[:, None], ahead, (self._pace - speed[:, None]) / FAST, np.ones(CARS)
        seen = nearest(items, np.where((ahead > -2 * LONG) & (ahead < 1.2), np.abs(ahead), np.inf), SEEN, absent=0.0)
        return np.column_stack([x / (LANES - 1), speed / FAST, spared / SAFE, seen])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        canvas.fill("#5a8f4e")
        canvas.box((0.5, 0.5), (0.42, 0.5), "#4b4f55")
        for lane in range(1, LANES):
            for dash in range(6):
                middle = (0.2 * dash - state[ROAD]) % 1.2 - 0.1
                canvas.box((0.1 + 0.2 * lane, middle), (0.005, 0.04), "#e8e8e8")
        for lane, ahead in zip(self._lane[0], self._ahead(state[None, TIME], state[None, ROAD])[0], strict=True):
            if -0.3 < ahead < 1.1:
                canvas.box((0.2 + 0.2 * lane, 0.2 + ahead), (0.05, LONG / 2), "#d4a72c")
        colour = "#e06c75" if state[SPARED] else "#4aa3df"
        canvas.box((0.2 + 0.2 * state[X], 0.2), (0.05, LONG / 2), colour)

    def _ahead(self, time: np.ndarray, road: np.ndarray) -> np.ndarray:
        return self._start + time[:, None] * self._pace - road[:, None]
