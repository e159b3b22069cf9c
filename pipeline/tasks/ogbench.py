"""Point and ant mazes, a running ant, and an ant with a ball, on OGBench's bodies, as a `Simulator`.

Bodies, motors and time steps are OGBench's; mazes, observations and rewards are ours where not said otherwise. Episodes
never terminate: who reaches the goal has to be there at the last step. A cell of a maze is 4 m wide, as in OGBench.

`point/<maze>`  Action: velocity (x, y). Observation (4): place from the middle of the maze and from there to the goal
                (x, y each, in m).
`ant/<maze>`    Action: torques of the eight joints. Observation (31): the ant's 15 coordinates, its 14 velocities, and
                from it to the goal (x, y).
    Reward of both: minus the length of the way that is left, as a part of the longest in the maze, so in [-1, 0], the
    range of OGBench's own; 0 at the goal. Success: at most 1 m from the goal (point), 0.5 m (ant).
`ant/run`       Run along a direction that changes every 100 steps. Observation (29): 13 coordinates without x and y, 14
                velocities, the direction (x, y). Reward, OGBench's own: metres moved along the direction in the step of
                0.1 s; about 0.25 at full speed.
`ant/ball`      Push the ball to the goal. Observation (42), OGBench's own: 13 coordinates of the ant without x and y, 5
                of the ball (height and orientation), 20 velocities, from ant to ball and from ball to goal (x, y each).
                Reward, OGBench's own: 25 per metre that the ball nears the goal, 10 per metre that the ant nears the
                ball. Success: the ball is at most 0.5 m from the goal.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from ogbench.locomaze.ant import AntEnv
from ogbench.locomaze.point import PointEnv

from pipeline.config import near
from pipeline.tasks.mazes import Distances, Maze
from pipeline.tasks.rendering import Camera

CELL, _WALL_HEIGHT = 4.0, 2.0  # m
_BODIES = {"point": PointEnv, "ant": AntEnv}
_WIDTH = {"point": 0.75, "ant": 1.0}  # m that the middle of the body keeps from walls on its way
REACHED = {"point": 1.0, "ant": 0.5}  # m from the goal
BALL_REACHED = 0.5

LAYOUTS = {
    "arena": """
        #######
        #G...G#
        #.....#
        #.....#
        #.....#
        #S...G#
        #######""",
    "maze": """
        #######
        #S..#G#
        ###...#
        #G#.#.#
        #...#.#
        #.#...#
        #######""",
    "bottleneck": """
        #######
        #S.#.G#
        #..#..#
        #.....#
        #..#..#
        #S.#.G#
        #######""",
    "circle": """
        ######
        #...G#
        #.##.#
        #.##.#
        #S...#
        ######""",
    "spiral": """
        ######
        #.S..#
        ####.#
        #.G#.#
        #....#
        ######""",
    "var1": """
        #######
        #S.####
        ##..###
        ###..##
        ####.G#
        #######""",
}


class OGBench:
    """One task.

    Args:
        env_id: `point/<maze>`, `ant/<maze>`, `ant/run` or `ant/ball`; the mazes are in `LAYOUTS`.
        env_kwargs: none is known.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        known = [*(f"{body}/{maze}" for body in _BODIES for maze in LAYOUTS), "ant/run", "ant/ball"]
        if env_id not in known or env_kwargs:
            raise ValueError(
                f"env_id {env_id!r} with env_kwargs {env_kwargs} is not a task of ours on OGBench's bodies; one looks "
                f"like `point/spiral`, without env_kwargs.{near(env_id, known)}"
            )
        body, _, place = env_id.partition("/")
        kinds = {"run": Run, "ball": _Ball}
        self.goal = kinds[place]() if place in kinds else _Way(body, place)
        tree = ET.parse(_BODIES[body].xml_file)
        world = tree.find(".//worldbody")
        assert world is not None  # every MuJoCo model has one
        self.goal.build(world)
        with tempfile.TemporaryDirectory() as folder:  # the environment reads its model from a file
            path = Path(folder) / "model.xml"
            tree.write(path)
            self.env = _BODIES[body](xml_file=str(path))
        self.low, self.high = self.env.action_space.low, self.env.action_space.high
        self.goal.start(self.env, np.random.default_rng(0))
        self.obs_dim = self.goal.observe(self.env).size
        self._camera: Camera | None = None
        self._render_size = render_size

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self.env.reset(seed=seed)
        self.goal.start(self.env, np.random.default_rng([seed, 1]))

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, terminated, truncated, success)."""
        before = self.env.data.qpos.copy()
        self.env.step(action)
        reward, success = self.goal.judge(self.env, before)
        return float(reward), False, False, bool(success)

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        out[:] = self.goal.observe(self.env)

    def render(self) -> np.ndarray:
        """Draw the scene from above, (render_size, render_size, 3) uint8."""
        if self._camera is None:
            self._camera = Camera(self.env.model, self._render_size, "above" if self.goal.fixed_camera else "back")
        return self._camera.draw(self.env.data)

    def close(self) -> None:
        """Release the drawing context and the simulator."""
        if self._camera is not None:
            self._camera.close()
        self.env.close()


def maze_of(body: str, layout: str) -> tuple[Maze, np.ndarray]:
    """Return a maze for `point` or `ant`, and the cell coordinates (2,) of its middle."""
    maze = Maze(LAYOUTS[layout], _WIDTH[body] / CELL)
    return maze, (np.array(maze.walls.shape[::-1]) - 1) / 2


class _Way:
    """Go to a goal in a maze."""

    fixed_camera = True

    def __init__(self, body: str, layout: str):
        self.maze, self.middle = maze_of(body, layout)
        self.reached = REACHED[body]
        self.target = np.zeros(2)  # m
        self.distances: Distances

    def build(self, world: ET.Element) -> None:
        for row, column in np.argwhere(self.maze.walls):
            x, y = CELL * (np.array([column, row]) - self.middle)
            half = CELL / 2
            place = {"pos": f"{x} {y} {_WALL_HEIGHT / 2}", "size": f"{half} {half} {_WALL_HEIGHT / 2}"}
            ET.SubElement(world, "geom", place, type="box", contype="1", conaffinity="1", material="wall")
        _add_target(world)
        height = 1.35 * CELL * max(self.maze.walls.shape)
        ET.SubElement(world, "camera", name="above", pos=f"0 0 {height}", xyaxes="1 0 0 0 1 0")

    def start(self, env: Any, rng: np.random.Generator) -> None:
        start, goal = self.maze.draw(rng)
        self.distances = self.maze.distances(goal)
        self.target = CELL * (goal - self.middle)
        env.model.geom("target").pos[:2] = self.target
        env.set_xy(CELL * (start - self.middle))

    def judge(self, env: Any, before: np.ndarray) -> tuple[float, bool]:
        place = env.data.qpos[:2]
        success = bool(np.linalg.norm(place - self.target) <= self.reached)
        return 0.0 if success else -min(float(self.left(place)) / (CELL * self.distances.longest), 1.0), success

    def left(self, place: np.ndarray) -> np.ndarray:
        """Return the length of the way from places (..., 2) to the goal, (...), all in m."""
        return CELL * self.distances.at(place / CELL + self.middle)

    def way(self, place: np.ndarray) -> np.ndarray:
        """Return the unit vector (2,) along the shortest way from a place (2,)."""
        return self.distances.way(place / CELL + self.middle, 0.4)

    def observe(self, env: Any) -> np.ndarray:
        qpos, qvel = env.data.qpos, env.data.qvel
        to_goal = self.target - qpos[:2]
        # The point is moved by its place: its velocity means nothing.
        return np.concatenate([qpos, to_goal] if len(qpos) == 2 else [qpos, qvel, to_goal])


class Run:
    """Run along a direction that changes."""

    fixed_camera = False
    every, changes = 100, 10  # steps; how often in an episode

    def build(self, world: ET.Element) -> None:
        del world  # nothing but the floor

    def start(self, env: Any, rng: np.random.Generator) -> None:
        angles = rng.uniform(0, 2 * np.pi, self.changes)
        self.directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self._steps = 0

    @property
    def direction(self) -> np.ndarray:
        """The direction of now, (2,)."""
        return self.directions[self._steps // self.every % self.changes]

    def judge(self, env: Any, before: np.ndarray) -> tuple[float, bool]:
        reward = float((env.data.qpos[:2] - before[:2]) @ self.direction)
        self._steps += 1
        return reward, False

    def observe(self, env: Any) -> np.ndarray:
        return np.concatenate([env.data.qpos[2:], env.data.qvel, self.direction])


class _Ball:
    """Push the ball to the goal."""

    fixed_camera = True

    def build(self, world: ET.Element) -> None:
        _add_target(world)
        ball = ET.SubElement(world, "body", name="ball", pos="0 0 0.25")
        ET.SubElement(ball, "freejoint", name="ball_root")
        shape = {
            "type": "sphere",
            "size": "0.25",
            "material": "ball",
            "priority": "1",
            "conaffinity": "1",
            "condim": "6",
        }
        ET.SubElement(ball, "geom", shape, name="ball")
        ET.SubElement(world, "camera", name="above", pos="0 0 34", xyaxes="1 0 0 0 1 0")

    def start(self, env: Any, rng: np.random.Generator) -> None:
        qpos = env.data.qpos.copy()
        qpos[:2], qpos[-7:-5] = rng.uniform(-1, 1, 2), rng.uniform(-2, 2, 2)
        qpos[-5:] = 0.25, 1, 0, 0, 0
        env.set_state(qpos, env.data.qvel.copy())
        self.target = rng.uniform(-12, 12, 2)
        env.model.geom("target").pos[:2] = self.target

    def judge(self, env: Any, before: np.ndarray) -> tuple[float, bool]:
        (near_then, left_then), (near, left) = self.distances(before), self.distances(env.data.qpos)
        return float(25 * (left_then - left) + 10 * (near_then - near)), bool(left <= BALL_REACHED)

    def observe(self, env: Any) -> np.ndarray:
        qpos = env.data.qpos
        ant, ball = qpos[:2], qpos[-7:-5]
        return np.concatenate([qpos[2:-7], qpos[-5:], env.data.qvel, ball - ant, self.target - ball])

    def distances(self, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far it is from ant to ball and from ball to goal, (...) each, for coordinates (..., nq)."""
        ant, ball = qpos[..., :2], qpos[..., -7:-5]
        return np.linalg.norm(ant - ball, axis=-1), np.linalg.norm(ball - self.target, axis=-1)


def _add_target(world: ET.Element) -> None:
    shape = {"type": "cylinder", "size": ".5 .05", "pos": "0 0 .05", "material": "target"}
    ET.SubElement(world, "geom", shape, name="target", contype="0", conaffinity="0")
