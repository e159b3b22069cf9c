"""Our own tasks on Gymnasium's Box2D bodies: bipedal walkers on five grounds, lunar landers with three missions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import Box2D as box2d  # first: Gymnasium would hide its error if it is broken
import gymnasium
import numpy as np
from gymnasium.envs.box2d import bipedal_walker, lunar_lander

from pipeline.config import near
from pipeline.tasks.any_gymnasium import GymnasiumSimulator, drawing_options

_STEP = bipedal_walker.TERRAIN_STEP  # m between two points of the ground
_LEVEL = bipedal_walker.TERRAIN_HEIGHT  # m, where the ground begins
_START = bipedal_walker.TERRAIN_STARTPAD  # points of level ground at the beginning
_LENGTH = bipedal_walker.TERRAIN_LENGTH  # points in all


class Walker(bipedal_walker.BipedalWalker):
    """Walk forward as far as possible.

    Observation (24): angle and velocities of the hull, angles and speeds of hips and knees, foot contacts, ten
    distances measured by a lidar that looks ahead at the ground.
    Reward of a simulator step: 4.3 per metre forward - 5 per radian of hull tilt gained - 0.028 x |torque| summed over
    the motors. Falling onto the hull, or walking off the left end, costs 100 and terminates.

    Args:
        ground: `flat`, `uneven` (bumps of centimetres), `rugged` (steps of up to 40 cm every half metre), `hills` (long
            smooth slopes) or `obstacles` (stumps, stairs and pits, Gymnasium's hardcore course).
        render_mode: as Gymnasium has it.
    """

    def __init__(self, ground: str, render_mode: str | None = None) -> None:
        super().__init__(render_mode, hardcore=ground == "obstacles")
        self._ground = ground

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode in a world of its own: an old one would remember the order of its contacts."""
        self.terrain, self.world = [], box2d.b2World()
        return super().reset(seed=seed, options=options)

    def _generate_terrain(self, hardcore: bool) -> None:
        if self._ground in ("uneven", "obstacles"):
            return super()._generate_terrain(hardcore)
        self.terrain_x = [i * _STEP for i in range(_LENGTH)]
        self.terrain_y = (_LEVEL + _relief(self._ground, self.np_random)).tolist()
        self.terrain, self.terrain_poly = [], []
        points = list(zip(self.terrain_x, self.terrain_y, strict=True))
        for i, (left, right) in enumerate(itertools.pairwise(points)):
            self.fd_edge.shape.vertices = [left, right]
            edge = self.world.CreateStaticBody(fixtures=self.fd_edge)
            edge.color1 = edge.color2 = (76, 255 if i % 2 == 0 else 204, 76)
            self.terrain.append(edge)
            self.terrain_poly.append(([left, right, (right[0], 0), (left[0], 0)], (102, 153, 76)))
        self.terrain.reverse()
        return None


def _relief(ground: str, rng: np.random.Generator) -> np.ndarray:
    """Return heights (200,) in metres over the level start."""
    past_start = np.clip(np.arange(_LENGTH) - _START, 0, None)
    if ground == "flat":
        return np.zeros(_LENGTH)
    if ground == "rugged":
        bumps = rng.uniform(-1, 1, _LENGTH) * 0.2
        return np.where(past_start > 0, bumps, 0.0)
    waves = zip(rng.uniform(25, 60, 3), rng.uniform(0.5, 1.2, 3), strict=True)  # length in points, height in metres
    hills = sum(height * (1 - np.cos(2 * math.pi * past_start / length)) / 2 for length, height in waves)
    return np.asarray(hills)


class Lander(lunar_lander.LunarLander):
    """Fly a small rocket with a main engine and side engines.

    Observation (8): position and velocity relative to the landing pad, angle, angular velocity, contact of each leg.
    Reward of a simulator step, in [0, 1] and so at most 500 in an episode:
    land: how near the pad x how upright x how slow x (a half + a quarter for each leg on the ground).
    hover: how near a point 2/3 of the way up, over the pad x how upright x how slow.
    takeoff: how near that point x how upright, from a start on the pad.
    Each of these falls smoothly from 1, to a half at a distance of 0.3, an angle of 0.5 rad, a speed of 0.5. A hull
    that touches the ground, or leaving to a side, costs 100 and terminates; a lander at rest goes on earning.

    Args:
        mission: `land`, `hover` or `takeoff`.
        render_mode: as Gymnasium has it.
    """

    _ALTITUDE = 0.9  # of the point to hover at, in units of the observation: the start is at 1.4, the pad at 0

    def __init__(self, mission: str, render_mode: str | None = None) -> None:
        super().__init__(render_mode, continuous=True)
        self._mission = mission
        self._state = np.zeros(8, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode at the top with a random push; for `takeoff` at rest somewhere on the pad."""
        obs, info = super().reset(seed=seed, options=options)
        if self._mission != "takeoff":
            return obs, info
        hull: Any = self.lander
        self._stand(hull.position.x, hull.position.y)
        self.world.gravity = (0, 0)
        for _ in range(90):  # a new lander first spreads its legs
            super().step(np.zeros(2, np.float32))
        self.world.gravity = (0, self.gravity)
        aside = self.np_random.uniform(-0.6, 0.6) * (self.helipad_x2 - self.helipad_x1) / 2
        height = lunar_lander.LEG_DOWN / lunar_lander.SCALE  # of the hull over the pad, its legs spread
        self._stand((self.helipad_x1 + self.helipad_x2) / 2 + aside, self.helipad_y + height)
        for _ in range(20):  # settle on them
            obs, *_ = super().step(np.zeros(2, np.float32))
        return obs, info

    def _stand(self, x: float, y: float) -> None:
        """Put the lander upright and at rest somewhere."""
        hull: Any = self.lander
        for leg in self.legs:
            part: Any = leg
            offset = hull.GetLocalPoint(part.position)
            part.position, part.angle = (x + offset.x, y + offset.y), part.angle - hull.angle
        hull.position, hull.angle = (x, y), 0
        for part in (hull, *self.legs):
            part.linearVelocity, part.angularVelocity, part.awake = (0, 0), 0, True

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Advance one step."""
        obs, *_, info = super().step(action)
        crashed = self.game_over or abs(obs[0]) >= 1
        return obs, -100.0 if crashed else self._reward(obs), crashed, False, info

    def _reward(self, state: np.ndarray) -> float:
        x, y, speed_x, speed_y, angle, _, left, right = state.tolist()
        upright = _near(angle, 0.5)
        slow = _near(math.hypot(speed_x, speed_y), 0.5)
        if self._mission == "land":
            return _near(math.hypot(x, y), 0.3) * upright * slow * (0.5 + 0.25 * (left + right))
        there = _near(math.hypot(x, y - self._ALTITUDE), 0.3)
        return there * upright * (slow if self._mission == "hover" else 1.0)


def _near(distance: float, scale: float) -> float:
    """Return 1 at 0, 0.5 at `scale`, falling smoothly to 0."""
    return 1 / (1 + (distance / scale) ** 2)


_TASKS: dict[str, Callable[..., gymnasium.Env]] = {
    **{f"walker/{ground}": Walker for ground in ("flat", "uneven", "rugged", "hills", "obstacles")},
    **{f"lander/{mission}": Lander for mission in ("land", "hover", "takeoff")},
}


class Box2D(GymnasiumSimulator):
    """One of the walkers and landers.

    Args:
        env_id: `walker/<ground>` or `lander/<mission>`, e.g. `walker/hills`.
        env_kwargs: none are taken.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        if env_id not in _TASKS:
            raise ValueError(f"env_id {env_id!r} is not a Box2D task.{near(env_id, list(_TASKS))}")
        drawing = drawing_options() if render_size else {}
        super().__init__(env_id, _TASKS[env_id](env_id.split("/")[1], **drawing, **env_kwargs), render_size)
