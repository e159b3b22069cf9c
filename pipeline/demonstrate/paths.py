"""Following the shortest way through a maze: the experts of points and ants that go to a goal.

An ant is driven by the teacher of `og-ant` that comes with Eft: it runs wherever it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.demonstrate.teacher import SHIPPED, load_teacher
from pipeline.tasks.mazes import Distances, Maze
from pipeline.tasks.registry import get
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

_AHEAD = 0.4  # cells: how far ahead the shortest way is looked for
_TO_GOAL = slice(2, 4)  # place in the observations of both kinds of point
_STRAIGHT, _STAND = 1.0, 0.35  # m from the goal: from here an ant goes straight to it, and here it stands still
_APART = 1.6  # m that the middle of an ant keeps from walls where it can: nearer its legs catch in corners
_LOOK, _SHARPNESS = 0.3, 0.03  # cells: how far an ant looks ahead, and the gain that makes a direction count
_ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_AROUND = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
_BODY, _ANT_TO_GOAL = slice(2, 29), slice(29, 31)  # places in the observations of an ant in a maze
_RUNNER = "og-ant"
RUNNER = SHIPPED / _RUNNER / "teacher.safetensors"  # what runs an ant


def has_path(spec: TaskSpec) -> bool:
    """Return whether this task is to move a point or an ant through a maze."""
    if spec.suite == "miniarcade":
        return spec.env_id == "point-maze"
    return spec.suite == "ogbench" and spec.env_id.partition("/")[2] not in ("run", "ball")


def path(env: TaskEnv) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Return who acts in an episode that has just been reset: along the shortest way, the last bit straight."""
    return _run(env) if needs_runner(env.task) else _move(env)


def needs_runner(spec: TaskSpec) -> bool:
    """Return whether it is an ant that follows the way, by the teacher of another task."""
    return spec.suite == "ogbench" and spec.env_id.startswith("ant/")


def _move(env: TaskEnv) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Return who moves a point."""
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


def _run(env: TaskEnv) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Return who runs an ant: its coordinates but x and y, its velocities and a direction are what the runner reads."""
    from pipeline.tasks.ogbench import CELL, LAYOUTS

    simulator: Any = env.simulator
    (spec,) = get([_RUNNER])
    runner, goal = load_teacher(RUNNER, spec), simulator.goal
    maze = Maze(LAYOUTS[env.task.env_id.partition("/")[2]], _APART / CELL)
    measured: dict[bytes, Distances] = {}  # of this episode's target

    def direction() -> np.ndarray:
        """Return the mean of the directions that lead on, by how much each does: a turning one would make it sway."""
        target = goal.target / CELL + goal.middle
        if target.tobytes() not in measured:
            measured.clear()
            measured[target.tobytes()] = maze.distances(target)
        place = simulator.env.data.qpos[:2] / CELL + goal.middle
        left = measured[target.tobytes()].at(place + _LOOK * _AROUND)
        way = np.exp((left.min() - left) / _SHARPNESS) @ _AROUND
        return way / max(float(np.linalg.norm(way)), 1e-6)

    def act(obs: np.ndarray, success: bool) -> np.ndarray:
        to_goal = obs[_ANT_TO_GOAL].astype(float)
        left = float(np.linalg.norm(to_goal))
        if left < _STAND:
            return np.zeros(env.task.action_dim, np.float32)
        way = to_goal / left if left < _STRAIGHT else direction()
        return runner.label(np.concatenate([obs[_BODY], way]))

    return act
