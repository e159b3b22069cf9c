"""Experts for Box2D: a pilot for the landers, and what the walkers are planned on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

PILOTED = {"lander/land": 0.5, "lander/hover": 0.6, "lander/takeoff": 0.6}  # a demonstration is kept from this score on
_ALTITUDE = 0.9  # of the point to hover at
# Iterations of Box2D's solver, for velocities and places; an episode has 180 and 60, which take over twice as long.
_ITERATIONS = 20, 10
_FALL = 20.0  # off a plan's reward for every step after a fall


def fly(obs: np.ndarray, altitude: float) -> np.ndarray:
    """Return the engines' action (2,) in [-1, 1], main and side.

    Args:
        obs: (8,) place and velocity relative to the pad, angle, angular velocity, contact of each leg.
        altitude: to keep over the pad, in the observation's units; 0 to land.
    """
    x, y, speed_x, speed_y, angle, spin, left, right = obs.tolist()
    if altitude == 0 and left and right:
        return np.array([-1.0, 0.0])  # landed: engines off
    lean = float(np.clip(0.5 * x + 1.0 * speed_x, -0.4, 0.4))  # towards the pad
    side = 20 * (0.5 * (lean - angle) - 1.0 * spin)
    # Down fast from afar and slowly at the end; not before it is over the pad.
    climb = float(np.clip(1.2 * (altitude + (0.5 * abs(x) if altitude == 0 else 0.0) - y), -0.5, 0.5))
    main = 10 * (climb - speed_y) / max(math.cos(angle), 0.5) - 1
    return np.array([np.clip(main, -1, 1), np.clip(-side, -1, 1)])


def pilot(env_id: str, obs: np.ndarray) -> np.ndarray:
    """Return the action (2,) of a lander, e.g. `lander/land`."""
    return fly(obs.astype(float), 0.0 if env_id == "lander/land" else _ALTITUDE)


class WalkerSimulator:
    """Rolls out action sequences on a second walker, put where the episode's own stands; Box2D cannot copy a world.

    Args:
        walker: the episode's own, just reset.
        twin: another on the same ground.
        steps: simulator steps per agent step.
    """

    action_dim = 4

    def __init__(self, walker: Any, twin: Any, steps: int):
        from gymnasium.envs.box2d import bipedal_walker as made  # needs the extra

        self._walker, self._twin, self._steps = walker, twin, steps
        self._speeds = np.array([made.SPEED_HIP, made.SPEED_KNEE] * 2)
        self._torque, self._seconds, self._scale = made.MOTORS_TORQUE, 1 / made.FPS, 130 / made.SCALE
        twin.world.warmStarting = False  # else a rollout would begin with the forces of the last one

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return the rewards (P, T) of actions (P, T, 4) in [-1, 1]."""
        places = [
            (tuple(body.position), body.angle, tuple(body.linearVelocity), body.angularVelocity)
            for body in self._bodies(self._walker)
        ]
        rewards = np.empty(actions.shape[:2])
        for row, sequence in zip(rewards, actions, strict=True):
            self._roll_out(places, sequence, row)
        return rewards

    def _roll_out(self, places: list[tuple], actions: np.ndarray, rewards: np.ndarray) -> None:
        twin = self._twin
        for body, (position, angle, velocity, spin) in zip(self._bodies(twin), places, strict=True):
            body.transform = position, angle
            body.linearVelocity, body.angularVelocity, body.awake = velocity, spin, True
        twin.game_over, hull, before = False, twin.hull, self._shaping()
        speeds, torques = (self._speeds * np.sign(actions)).tolist(), (self._torque * np.abs(actions)).tolist()
        for step, (speed, torque) in enumerate(zip(speeds, torques, strict=True)):
            for joint, *motor in zip(twin.joints, speed, torque, strict=True):
                joint.motorSpeed, joint.maxMotorTorque = motor
            for _ in range(self._steps):
                twin.world.Step(self._seconds, *_ITERATIONS)
            if twin.game_over or hull.position.x < 0:
                rewards[step:] = -_FALL
                return
            now = self._shaping()
            rewards[step] = now - before - 0.00035 * self._steps * sum(torque)
            before = now

    def _shaping(self) -> float:
        return self._scale * self._twin.hull.position.x - 5.0 * abs(self._twin.hull.angle)

    @staticmethod
    def _bodies(walker: Any) -> list[Any]:
        return [walker.hull, *walker.legs]
