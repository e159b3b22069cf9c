"""Following the shortest way through a maze: the experts of every task in which a point is moved to a goal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

_AHEAD = 0.4  # cells: how far ahead the shortest way is looked for
_TO_GOAL = slice(2, 4)  # place in the observations of both kinds of maze


def has_path(spec: TaskSpec) -> bool:
    """Return whether this task is to move a point through a maze."""
    return (spec.suite == "miniarcade" and spec.env_id == "point-maze") or (
        spec.suite == "ogbench" and spec.env_id.startswith("point/")
    )


def path(env: TaskEnv) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Return who acts in an episode that has just been reset: along the shortest way, the last bit straight."""
    simulator: Any = env.simulator
    if env.task.suite == "miniarcade":
        from pipeline.tasks.miniarcade.point_maze import SPEED as reach

        def way() -> np.ndarray:
            return simulator.game.distances.way(simulator.state[:2], _AHEAD)
    else:
        reach = 0.2 * env.task.action_repeat  # m per agent step at full speed

        def way() -> np.ndarray:
            return simulator.goal.way(simulator.env.data.qpos[:2])

    def act(obs: np.ndarray, success: bool) -> np.ndarray:
        to_goal = obs[_TO_GOAL].astype(float)
        if np.linalg.norm(to_goal) < 3 * reach:
            return np.clip(to_goal / reach, -1, 1)
        direction = way()
        return direction / np.abs(direction).max()

    return act
