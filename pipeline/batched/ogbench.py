"""Our tasks on OGBench's ant as arrays; pipeline/tasks/ogbench.py has them one by one.

The points have no physics to speak of, and the way through their mazes is known: they have no array form.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pipeline.batched.form import ArrayForm
from pipeline.batched.states import States
from pipeline.tasks.mazes import interpolate
from pipeline.tasks.ogbench import BALL_REACHED, CELL, LAYOUTS, REACHED, Run, maze_of

_STEP = 0.1  # s, of a control step


def has_form(env_id: str) -> bool:
    """Return whether a task, e.g. `ant/run`, has an array form."""
    body, _, place = env_id.partition("/")
    return body == "ant" and place in ("run", "ball", *LAYOUTS)


@cache
def form(env_id: str) -> ArrayForm:
    """Return the array form of a task that has one."""
    if env_id == "ant/run":
        return ArrayForm(_observe_run, _run, drawn=lambda simulator: simulator.goal.directions.ravel())
    if env_id == "ant/ball":
        return ArrayForm(_observe_ball, _ball, drawn=lambda simulator: simulator.goal.target, success=_ball_there)
    return _maze(env_id.partition("/")[2])


def _direction(states: States) -> np.ndarray:
    """Return the direction to run along, (P, T, 2), as it is after so many control steps."""
    directions = states.drawn.reshape(len(states.drawn), Run.changes, 2)
    step = np.rint(states.time / _STEP).astype(int)
    return directions[np.arange(len(directions))[:, None], step // Run.every % Run.changes]


def _observe_run(states: States) -> np.ndarray:
    return np.concatenate([states.qpos[..., 2:], states.qvel, _direction(states)], axis=-1)


def _run(states: States, before: States) -> np.ndarray:
    """Metres moved along the direction."""
    return ((states.qpos[..., :2] - before.qpos[..., :2]) * _direction(before)).sum(-1)


def _observe_ball(states: States) -> np.ndarray:
    qpos, ball = states.qpos, states.qpos[..., -7:-5]
    parts = [qpos[..., 2:-7], qpos[..., -5:], states.qvel, ball - qpos[..., :2], states.drawn - ball]
    return np.concatenate(parts, axis=-1)


def _ball(states: States, before: States) -> np.ndarray:
    """25 per metre that the ball nears the goal, 10 per metre that the ant nears the ball."""
    (near_then, left_then), (near, left) = _distances(before), _distances(states)
    return 25 * (left_then - left) + 10 * (near_then - near)


def _ball_there(states: States) -> np.ndarray:
    return _distances(states)[1] <= BALL_REACHED


def _distances(states: States) -> tuple[np.ndarray, np.ndarray]:
    """Return how far it is from ant to ball and from ball to goal, (P, T) each, m."""
    ant, ball = states.qpos[..., :2], states.qpos[..., -7:-5]
    return np.linalg.norm(ant - ball, axis=-1), np.linalg.norm(ball - states.drawn, axis=-1)


def _maze(layout: str) -> ArrayForm:
    maze, middle = maze_of("ant", layout)
    shape = maze.grid_shape

    def drawn(simulator: Any) -> np.ndarray:
        goal = simulator.goal
        return np.concatenate([goal.target, [goal.distances.longest], goal.distances.values.ravel()])

    def to_goal(states: States) -> np.ndarray:
        return states.drawn[..., :2] - states.qpos[..., :2]

    def observe(states: States) -> np.ndarray:
        return np.concatenate([states.qpos, states.qvel, to_goal(states)], axis=-1)

    def there(states: States) -> np.ndarray:
        return np.linalg.norm(to_goal(states), axis=-1) <= REACHED["ant"]

    def reward(states: States, before: States) -> np.ndarray:
        """Minus the part of the longest way that is left; 0 at the goal."""
        copies, times = states.qpos.shape[:2]
        values = states.drawn[..., 3:].reshape(copies, *shape)
        left = (
            np.stack([interpolate(values, states.qpos[:, t, :2] / CELL + middle) for t in range(times)], axis=1)
            / states.drawn[..., 2]
        )
        return np.where(there(states), 0.0, -np.minimum(left, 1.0))

    return ArrayForm(observe, reward, drawn=drawn, success=there)
