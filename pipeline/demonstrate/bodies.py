"""What the planner wants of Gymnasium's MuJoCo bodies and OGBench's ant, on whole arrays of states.

Each of Gymnasium's is the task's own reward of a simulator step (pipeline/tasks/gymnasium_mujoco.py), with the speed of
the moment for the mean speed of the step, and without the costs of contact; `hopper` and `walker` add what keeps them
on their feet further than a plan can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.batched.states import States

Reward = Callable[[States], np.ndarray]  # (P, T): what is wanted of each state


def ant(states: States) -> np.ndarray:
    """Forward speed + 1 while the torso is between 0.2 and 1 m high - control cost."""
    height = states.qpos[..., 2]
    return states.qvel[..., 0] + ((height > 0.2) & (height < 1.0)) - 0.5 * np.square(states.ctrl).sum(-1)


def half_cheetah(states: States) -> np.ndarray:
    """Forward speed - control cost, and off the back: there it is slower, and does not come back."""
    overturned = np.clip(np.abs(states.qpos[..., 2]) - 0.8, 0, None)
    return states.qvel[..., 0] - 0.1 * np.square(states.ctrl).sum(-1) - 4 * overturned


def hopper(states: States) -> np.ndarray:
    """Forward speed + 1 - control cost while healthy, else -1; upright and high."""
    height, angle = states.qpos[..., 1], states.qpos[..., 2]
    gained = states.qvel[..., 0] + 1 - 1e-3 * np.square(states.ctrl).sum(-1)
    healthy = (height > 0.7) & (np.abs(angle) < 0.2)
    return _while_healthy(gained, healthy) - 5 * np.abs(angle) + 2 * height.clip(None, 1.25)


def walker(states: States) -> np.ndarray:
    """Forward speed + 1 - control cost while healthy, else -1; upright and high."""
    height, angle = states.qpos[..., 1], states.qpos[..., 2]
    gained = states.qvel[..., 0] + 1 - 1e-3 * np.square(states.ctrl).sum(-1)
    healthy = (height > 0.8) & (height < 2) & (np.abs(angle) < 1)
    return _while_healthy(gained, healthy) - np.abs(angle) + 2 * height.clip(None, 1.25)


def inverted_pendulum(states: States) -> np.ndarray:
    """1 while the pole is within 0.2 rad of upright; upright, and the cart near the middle."""
    angle, place = states.qpos[..., 1], states.qpos[..., 0]
    return (np.abs(angle) < 0.2) - 5 * np.square(angle) - 0.5 * np.square(place)


def reacher(states: States) -> np.ndarray:
    """- distance of the fingertip to the target - control cost."""
    first, second = states.qpos[..., 0], states.qpos[..., 0] + states.qpos[..., 1]
    x, y = 0.1 * np.cos(first) + 0.11 * np.cos(second), 0.1 * np.sin(first) + 0.11 * np.sin(second)
    target = states.qpos[..., 2:4]
    distance = np.hypot(x - target[..., 0], y - target[..., 1])
    return -distance - np.square(states.ctrl).sum(-1)


def ogbench_ant(env_id: str, goal: Any) -> Reward:
    """Return what is wanted of OGBench's ant, on its feet.

    `ant/run`: the speed along the direction. `ant/ball`: the ball near the goal, and the ant near the ball.

    Args:
        env_id: which task.
        goal: of the task (pipeline/tasks/ogbench.py), read at every call: it changes in an episode.
    """

    def reward(states: States) -> np.ndarray:
        x, y = states.qpos[..., 4], states.qpos[..., 5]  # of the torso's quaternion (w, x, y, z)
        fallen = 5 * np.clip(0.7 - (1 - 2 * (x * x + y * y)), 0, None)
        if env_id == "ant/run":
            return states.qvel[..., :2] @ goal.direction - fallen
        near, left = goal.distances(states.qpos)
        return -2.5 * left - near - fallen

    return reward


def _while_healthy(gained: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    return np.where(healthy, np.maximum(gained, 0), -1.0)


BODIES: dict[str, Reward] = {
    "Ant-v5": ant,
    "HalfCheetah-v5": half_cheetah,
    "Hopper-v5": hopper,
    "InvertedPendulum-v5": inverted_pendulum,
    "Reacher-v5": reacher,
    "Walker2d-v5": walker,
}
