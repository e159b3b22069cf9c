"""Point maze: move a point through a maze to the goal and stay there.

Action: velocity (x, y); at full speed 0.1 cells per step along each axis. Walls stop the motion across them.
Reward: minus the length of the way that is left, as a part of the longest in the maze, so in [-1, 0]; 0 at the goal.
Success: the point is within 0.3 cells of the goal.
Observation (4): position in cells from the middle of the maze (x, y), and from the point to the goal (x, y).
"""

from __future__ import annotations

import numpy as np

from pipeline.tasks.mazes import Maze, interpolate
from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.game import Game

LAYOUTS = {  # fork, comb, rooms, hook
    "var1": """
        #######
        #G...G#
        #.###.#
        #..S..#
        #.###.#
        #G...G#
        #######""",
    "var2": """
        #######
        #G#G#G#
        #.#.#.#
        #.....#
        #.#.#.#
        #S#S#S#
        #######""",
    "var3": """
        #######
        #S.#.G#
        #.....#
        ##.#.##
        #.....#
        #S.#.G#
        #######""",
    "var4": """
        #######
        #S....#
        #####.#
        #G..#.#
        ###.#.#
        #.....#
        #######""",
}
SPEED, RADIUS, REACHED = 0.1, 0.15, 0.3  # cells per step; half side of the point's body; cells from the goal

X, Y, GOAL_X, GOAL_Y = range(4)


class PointMaze(Game):
    """One point in one maze.

    Args:
        layout: a name in `LAYOUTS`.
    """

    obs_dim, action_dim, drawn = 4, 2, ("_ways", "_longest")

    def __init__(self, layout: str):
        self._maze = Maze(LAYOUTS[layout], clearance=RADIUS)

    def reset(self, rng: np.random.Generator) -> np.ndarray:
        start, goal = self._maze.draw(rng)
        self.distances = self._maze.distances(goal)
        self._ways, self._longest = self.distances.values[None], np.array([self.distances.longest])
        return np.concatenate([start, goal])

    def step(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        state = state.copy()
        for axis in (X, Y):
            moved = state[:, :2].copy()
            moved[:, axis] += SPEED * action[:, axis]
            free = ~self._maze.blocked(moved, RADIUS)
            state[free, axis] = moved[free, axis]
        return state

    def reward(self, state: np.ndarray) -> np.ndarray:
        ways = np.broadcast_to(self._ways, (len(state), *self._maze.grid_shape))
        left = np.minimum(interpolate(ways, state[:, :2]) / self._longest, 1)
        return np.where(self.success(state), 0.0, -left)

    def success(self, state: np.ndarray) -> np.ndarray:
        return np.linalg.norm(state[:, :2] - state[:, 2:], axis=1) <= REACHED

    def observe(self, state: np.ndarray) -> np.ndarray:
        return np.column_stack([state[:, :2] - self._middle, state[:, 2:] - state[:, :2]])

    def draw(self, canvas: Canvas, state: np.ndarray) -> None:
        side = max(self._maze.walls.shape)
        canvas.fill("#f5efe0")
        for row, column in np.argwhere(self._maze.walls):
            canvas.box(((column + 0.5) / side, (row + 0.5) / side), (0.5 / side, 0.5 / side), "#4a5568")
        canvas.circle((state[2:] + 0.5) / side, REACHED / side, "#e0584f")
        canvas.circle((state[:2] + 0.5) / side, RADIUS / side, "#2b6cb0")

    @property
    def _middle(self) -> np.ndarray:
        return (np.array(self._maze.walls.shape[::-1]) - 1) / 2
