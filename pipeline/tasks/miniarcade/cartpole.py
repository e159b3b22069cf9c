"""Cartpole: push a cart so that the pole on it stands up.

Action: force on the cart, 1 = 10 N to the right.
Reward: dense = upright * centred * calm, each in [0, 1]; sparse = 1 while the pole is within 12 degrees of upright and
the cart within 0.5 m of the middle, else 0.
Observation (6): cart position and speed, cosine and sine of the pole's angle, its angular speed, and the force that
shakes the cart in the tremor variant (else 0).

Source of the equations: Barto, Sutton and Anderson 1983, without friction.
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game

GRAVITY, CART_MASS, POLE_MASS, HALF_LENGTH, FORCE = 9.8, 1.0, 0.1, 0.5, 10.0  # m/s2, kg, kg, m, N
TRACK = 2.4  # m from the middle to the wall at either end, where the cart stops dead
TIME_STEP, SUBSTEPS = 0.02, 2  # s; one step of the game is two of the physics
UPRIGHT, CENTRED = np.cos(np.deg2rad(12)), 0.5
TREMOR = 6.0  # N, amplitude of the shaking

X, SPEED, ANGLE, SPIN, TIME = range(5)  # m, m/s, rad from upright, rad/s, steps


class CartPole(Game):
    """One cartpole.

    Args:
        hanging: start with the pole down rather than up.
        sparse: reward only a standing pole.
        tremor: whether a force that the player sees shakes the cart.
    """

    obs_dim, action_dim, drawn = 6, 1, ("_waves",)

    def __init__(self, hanging: bool = False, sparse: bool = False, tremor: bool = False):
        self._hanging, self._sparse, self._tremor = hanging, sparse, tremor

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        self._waves = rng.uniform([[0.05], [0.0]], [[0.4], [2 * np.pi]], (1, 2, 3))  # frequencies (rad/step) and phases
        down = np.pi if self._hanging else 0.0
        return np.array([*rng.uniform([-0.5, -0.1, down - 0.1, -0.1], [0.5, 0.1, down + 0.1, 0.1]), 0.0])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        x, speed, angle, spin, time = state.T
        force = FORCE * action[:, 0] + self._shaking(time)
        mass = CART_MASS + POLE_MASS
        for _ in range(SUBSTEPS):
            sin, cos = np.sin(angle), np.cos(angle)
            push = (force + POLE_MASS * HALF_LENGTH * spin**2 * sin) / mass
            turn = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / mass))
            speed = speed + TIME_STEP * (push - POLE_MASS * HALF_LENGTH * turn * cos / mass)
            spin = spin + TIME_STEP * turn
            x, angle = x + TIME_STEP * speed, angle + TIME_STEP * spin
            speed = np.where(np.abs(x) > TRACK, 0.0, speed)
            x = np.clip(x, -TRACK, TRACK)
        return np.stack([x, speed, angle, spin, time + 1], axis=1)

    def reward(self, state: np.ndarray) -> np.ndarray:
        upright, away = np.cos(state[:, ANGLE]), np.abs(state[:, X])
        if self._sparse:
            return ((upright > UPRIGHT) & (away < CENTRED)).astype(float)
        calm = 1 / (1 + np.square(state[:, SPIN] / 5))
        return (1 + upright) / 2 * (1 - 0.5 * away / TRACK) * (1 + calm) / 2

    def observe(self, state: np.ndarray) -> np.ndarray:
        x, speed, angle, spin, time = state.T
        return np.stack([x, speed, np.cos(angle), np.sin(angle), spin, self._shaking(time) / FORCE], axis=1)

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        cart = np.array([0.5 + 0.18 * state[X], 0.4])
        tip = cart + 0.3 * np.array([np.sin(state[ANGLE]), np.cos(state[ANGLE])])
        canvas.fill("#f4f1e8")
        canvas.line((0.02, 0.36), (0.98, 0.36), 0.01, "#888888")
        canvas.box(cart, (0.07, 0.035), "#c0392b" if self._tremor else "#2c5d8a")
        canvas.line(cart, tip, 0.025, "#d8a15a")
        canvas.circle(cart, 0.015, "#333333")

    def _shaking(self, time: np.ndarray) -> np.ndarray:
        if not self._tremor:
            return time * 0.0
        return TREMOR / 3 * np.sin(time[:, None] * self._waves[:, 0] + self._waves[:, 1]).sum(axis=-1)
