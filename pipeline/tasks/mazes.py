"""Mazes drawn with characters, and how far it is through them."""

from __future__ import annotations

import numpy as np

_NODES = 5  # nodes of the distance grid per cell and axis
_MOVES = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if np.gcd(dy, dx) == 1]  # 16 directions: 3 % too long
_JITTER = 0.25  # starts and goals lie up to this far from the middle of their cell


class Maze:
    """Square cells of side 1: `#` is wall, `S` a cell to start from, `G` one to go to, anything else is free.

    The middle of the cell in the bottom row and the left column is (0, 0); x points right, y up.

    Args:
        drawing: rows of equal length, the top one first; its border must be wall.
        clearance: how near to a wall the middle of the body can come.

    Raises:
        ValueError: the drawing is not closed, has rows of different length, no start or no goal, or no way to one.
    """

    def __init__(self, drawing: str, clearance: float):
        rows = drawing.split()[::-1]
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"a maze needs rows of equal length, not\n{drawing}")
        cells = np.array([list(row) for row in rows])
        self.walls = cells == "#"  # (rows from the bottom, columns)
        border = np.ones_like(self.walls)
        border[1:-1, 1:-1] = False
        self.starts, self.goals = (np.argwhere(cells == mark)[:, ::-1].astype(float) for mark in "SG")
        if not self.walls[border].all() or not len(self.starts) or not len(self.goals):
            raise ValueError(f"a maze needs walls all around, a start S and a goal G, not\n{drawing}")
        self._free = self._away_from_walls(clearance)
        way = self.distances(self.goals[0])
        if (way.at(np.concatenate([self.starts, self.goals])) > way.longest).any():
            raise ValueError(f"no body {2 * clearance:g} cells wide gets from every start to every goal of\n{drawing}")

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the distance grid."""
        rows, columns = self._free.shape
        return rows, columns

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a start and a goal, (2,) each, up to a quarter of a cell off the middles of their cells."""
        ends = self.starts[rng.integers(len(self.starts))], self.goals[rng.integers(len(self.goals))]
        start, goal = ends + rng.uniform(-_JITTER, _JITTER, (2, 2))
        return start, goal

    def blocked(self, xy: np.ndarray, radius: float) -> np.ndarray:
        """Return whether a square body of half side `radius` at xy (..., 2) touches a wall, (...)."""
        touching = np.zeros(xy.shape[:-1], bool)
        for dy in (-radius, radius):
            for dx in (-radius, radius):
                column, row = np.rint(xy[..., 0] + dx).astype(int), np.rint(xy[..., 1] + dy).astype(int)
                touching |= self.walls[row, column]
        return touching

    def distances(self, goal: np.ndarray) -> Distances:
        """Measure the way to `goal` (2,) from everywhere."""
        nodes = (np.moveaxis(np.indices(self._free.shape), 0, -1)[..., ::-1] + 0.5) / _NODES - 0.5
        straight = np.linalg.norm(nodes - goal, axis=-1)
        near = np.where(self._free & (straight < 2 / _NODES), straight, np.inf)
        values = _spread(near, self._free)
        longest = float(values[np.isfinite(values)].max())
        values = np.minimum(values, _neighbours(values))  # for interpolating right at a wall; the other side is further
        return Distances(np.where(np.isfinite(values), values, 2 * longest), longest)

    def _away_from_walls(self, clearance: float) -> np.ndarray:
        """Return which nodes the middle of the body can be at."""
        rows, columns = self.walls.shape
        y, x = ((np.arange(n * _NODES) + 0.5) / _NODES - 0.5 for n in (rows, columns))
        free = np.ones((len(y), len(x)), bool)
        for row, column in np.argwhere(self.walls):
            gap = np.hypot(*np.meshgrid(_outside(x - column), _outside(y - row)))
            free &= gap > clearance
        return free


class Distances:
    """The length of the shortest way to one goal, from anywhere in a maze.

    Args:
        values: lengths at the nodes of the distance grid.
        longest: the longest way in the maze.
    """

    def __init__(self, values: np.ndarray, longest: float):
        self.values, self.longest = values, longest

    def at(self, xy: np.ndarray) -> np.ndarray:
        """Return the length of the way from xy (..., 2), interpolated between the nodes, (...)."""
        return interpolate(self.values, xy)

    def way(self, xy: np.ndarray, ahead: float) -> np.ndarray:
        """Return the unit vector (2,) along which a step of length `ahead` from xy (2,) shortens the way most."""
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return around[np.argmin(self.at(xy + ahead * around))]


def interpolate(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return lengths of ways from xy (..., 2), (...), between the nodes of a grid (rows, columns), or one grid each."""
    *_, rows, columns = values.shape
    place = (xy + 0.5) * _NODES - 0.5
    x, y = np.clip(place[..., 0], 0, columns - 1.001), np.clip(place[..., 1], 0, rows - 1.001)
    column, row = x.astype(int), y.astype(int)
    x, y = x - column, y - row
    which = tuple(np.indices(column.shape)[: values.ndim - 2])  # of one grid each, its own
    below = values[(*which, row, column)] * (1 - x) + values[(*which, row, column + 1)] * x
    above = values[(*which, row + 1, column)] * (1 - x) + values[(*which, row + 1, column + 1)] * x
    return below * (1 - y) + above * y


def _spread(values: np.ndarray, free: np.ndarray) -> np.ndarray:
    while True:
        shorter = np.where(free, np.minimum(values, _neighbours(values)), np.inf)
        if np.array_equal(shorter, values):
            return values
        values = shorter


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Return for each node the shortest way over one of its neighbours."""
    rows, columns = values.shape
    padded = np.pad(values, 2, constant_values=np.inf)
    best = np.full_like(values, np.inf)
    for dy, dx in _MOVES:
        np.minimum(
            best, padded[2 + dy : 2 + dy + rows, 2 + dx : 2 + dx + columns] + np.hypot(dy, dx) / _NODES, out=best
        )
    return best


def _outside(offset: np.ndarray) -> np.ndarray:
    """Return how far beyond a cell's side a point lies that is `offset` from its middle."""
    return np.maximum(np.abs(offset) - 0.5, 0)
