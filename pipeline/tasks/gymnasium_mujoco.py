"""Gymnasium's MuJoCo tasks, which here never terminate, as a `Simulator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

from pipeline.config import near
from pipeline.tasks.any_gymnasium import GymnasiumSimulator, drawing_options


class _Task(NamedTuple):
    make: Callable[..., gymnasium.Env]
    options: dict[str, Any]
    penalised: bool  # its reward is max(0, r) while the body is healthy, else -1


_NEVER = {"terminate_when_unhealthy": False}
_TASKS = {
    "Ant-v5": _Task(AntEnv, _NEVER, False),
    "HalfCheetah-v5": _Task(HalfCheetahEnv, {}, False),
    "Hopper-v5": _Task(HopperEnv, _NEVER, True),
    "InvertedPendulum-v5": _Task(InvertedPendulumEnv, {}, False),
    "Reacher-v5": _Task(ReacherEnv, {}, False),
    "Walker2d-v5": _Task(Walker2dEnv, _NEVER, True),
}


class GymnasiumMuJoCo(GymnasiumSimulator):
    """One of Gymnasium's MuJoCo tasks. Observations are Gymnasium's own (version 5).

    Rewards are Gymnasium's, except that an episode goes on where Gymnasium would end it:
    Ant: forward speed + 1 while healthy - control and contact cost. HalfCheetah: forward speed - control cost.
    Hopper, Walker2d: forward speed + 1 - control cost, at least 0, while the body is healthy (upright and in range),
    else -1. InvertedPendulum: 1 while the pole is within 0.2 rad of upright, else 0.
    Reacher: - distance of the fingertip to the target - control cost.

    Args:
        env_id: Gymnasium's name, e.g. `Ant-v5`.
        env_kwargs: keyword arguments of the environment's constructor.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        if env_id not in _TASKS:
            raise ValueError(f"env_id {env_id!r} is not among these tasks.{near(env_id, list(_TASKS))}")
        make, options, self._penalised = _TASKS[env_id]
        drawing = {**drawing_options(), "width": render_size, "height": render_size} if render_size else {}
        super().__init__(env_id, make(**options, **drawing, **env_kwargs), render_size)

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, False, False, success)."""
        reward, *_, success = super().step(action)
        if self._penalised:
            body: Any = self.env.unwrapped
            reward = max(0.0, reward) if body.is_healthy else -1.0
        return reward, False, False, success
