"""Gymnasium's MuJoCo tasks as arrays: observations, and rewards as pipeline/tasks/gymnasium_mujoco.py has them.

Equal to the real environments but for this: Gymnasium reads where the ant's torso and the reacher's fingertip are from
within the last Runge-Kutta step, and the ant's contact forces too; arrays have the state after it alone. So the ant's
speed and the reacher's fingertip differ in the fourth digit, the ant's contact forces are hidden and their cost (at
most 0.04 of a reward near 6) is left out.
"""

from __future__ import annotations

import numpy as np

from pipeline.batched.form import ArrayForm
from pipeline.batched.states import States


def observe_runner(states: States) -> np.ndarray:
    """Positions but the one along the ground, velocities."""
    return np.concatenate([states.qpos[..., 1:], states.qvel], axis=-1)


def observe_walker(states: States) -> np.ndarray:
    """As `observe_runner`, velocities at most 10 rad/s or m/s."""
    return np.concatenate([states.qpos[..., 1:], states.qvel.clip(-10, 10)], axis=-1)


def observe_ant(states: States) -> np.ndarray:
    """Positions but the two along the ground, velocities, contact forces (hidden)."""
    contact = np.zeros((*states.qpos.shape[:-1], 78))
    return np.concatenate([states.qpos[..., 2:], states.qvel, contact], axis=-1)


def observe_pendulum(states: States) -> np.ndarray:
    """Positions, velocities."""
    return np.concatenate([states.qpos, states.qvel], axis=-1)


def observe_reacher(states: States) -> np.ndarray:
    """Cosines and sines of the joints, the target, joint velocities, from the target to the fingertip."""
    joints, target = states.qpos[..., :2], states.qpos[..., 2:]
    to_tip = _fingertip(states) - target
    return np.concatenate([np.cos(joints), np.sin(joints), target, states.qvel[..., :2], to_tip], axis=-1)


def ant(states: States, before: States) -> np.ndarray:
    """Forward speed + 1 while the torso is between 0.2 and 1 m high - control cost."""
    height = states.qpos[..., 2]
    return _speed(states, before) + ((height >= 0.2) & (height <= 1.0)) - 0.5 * np.square(states.ctrl).sum(-1)


def half_cheetah(states: States, before: States) -> np.ndarray:
    """Forward speed - control cost."""
    return _speed(states, before) - 0.1 * np.square(states.ctrl).sum(-1)


def hopper(states: States, before: States) -> np.ndarray:
    """Forward speed + 1 - control cost, at least 0, while healthy, else -1."""
    height, angle = states.qpos[..., 1], states.qpos[..., 2]
    rest = np.concatenate([states.qpos[..., 2:], states.qvel], axis=-1)
    healthy = (height > 0.7) & (np.abs(angle) < 0.2) & (np.abs(rest) < 100).all(axis=-1)
    return _while_healthy(states, before, healthy)


def walker(states: States, before: States) -> np.ndarray:
    """Forward speed + 1 - control cost, at least 0, while healthy, else -1."""
    height, angle = states.qpos[..., 1], states.qpos[..., 2]
    return _while_healthy(states, before, (height > 0.8) & (height < 2) & (np.abs(angle) < 1))


def inverted_pendulum(states: States, before: States) -> np.ndarray:
    """1 while the pole is within 0.2 rad of upright."""
    return (np.abs(states.qpos[..., 1]) <= 0.2).astype(float)


def reacher(states: States, before: States) -> np.ndarray:
    """- distance of the fingertip to the target - control cost."""
    distance = np.linalg.norm(_fingertip(states) - states.qpos[..., 2:], axis=-1)
    return -distance - np.square(states.ctrl).sum(-1)


def _speed(states: States, before: States) -> np.ndarray:
    return (states.qpos[..., 0] - before.qpos[..., 0]) / (states.time - before.time)


def _while_healthy(states: States, before: States, healthy: np.ndarray) -> np.ndarray:
    gained = _speed(states, before) + 1 - 1e-3 * np.square(states.ctrl).sum(-1)
    return np.where(healthy, np.maximum(gained, 0), -1.0)


def _fingertip(states: States) -> np.ndarray:
    """Return (P, T, 2), m: the links are 0.1 and 0.11 m long."""
    first, second = states.qpos[..., 0], states.qpos[..., 0] + states.qpos[..., 1]
    return np.stack([0.1 * np.cos(first) + 0.11 * np.cos(second), 0.1 * np.sin(first) + 0.11 * np.sin(second)], axis=-1)


FORMS: dict[str, ArrayForm] = {
    "Ant-v5": ArrayForm(observe_ant, ant, hidden=slice(27, 105)),
    "HalfCheetah-v5": ArrayForm(observe_runner, half_cheetah),
    "Hopper-v5": ArrayForm(observe_walker, hopper),
    "InvertedPendulum-v5": ArrayForm(observe_pendulum, inverted_pendulum),
    "Reacher-v5": ArrayForm(observe_reacher, reacher),
    "Walker2d-v5": ArrayForm(observe_walker, walker),
}
