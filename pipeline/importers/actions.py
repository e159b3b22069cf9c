"""Actions in others' units, brought into [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-4  # how far an action may lie outside [-1, 1] and still be taken for one on it


@dataclass
class Bounds:
    """Which actions are -1 and 1 with us.

    Attributes:
        low, high: (a,) each; where both are equal the dim never moves, and is 0 with us.
        clip: cut actions to them instead of refusing those outside.
        origin: who says so, for the report.
    """

    low: np.ndarray
    high: np.ndarray
    clip: bool
    origin: str
    _steps: int = 0
    _clipped: int = 0

    def scale(self, action: np.ndarray) -> np.ndarray:
        """Return actions (L, a) as float32 in [-1, 1].

        Raises:
            ValueError: one is not finite, or some lie outside and are not to be cut.
        """
        if not np.isfinite(action).all():
            step = int(np.argwhere(~np.isfinite(action))[0, 0])
            raise ValueError(f"its actions hold a value that is not finite, at step {step}")
        width = self.high - self.low
        scaled = np.where(width > 0, 2 * (action - self.low) / np.where(width > 0, width, 1) - 1, 0)
        outside = np.abs(scaled) > 1 + _ROUNDING
        if outside.any() and not self.clip:
            dim = int(outside.any(0).argmax())
            raise ValueError(
                f"its actions reach from {action[:, dim].min():g} to {action[:, dim].max():g} in dim {dim}, expected "
                f"[{self.low[dim]:g}, {self.high[dim]:g}] ({self.origin}). Say what -1 and 1 of the task's actions are "
                "in the data with --action-low and --action-high; or --fit-actions for the smallest and largest in the "
                "data; or --clip-actions if the environment cut them to these bounds when they were recorded"
            )
        self._steps += len(action)
        self._clipped += int(outside.any(1).sum())
        return scaled.clip(-1, 1).astype(np.float32)

    @property
    def notes(self) -> list[str]:
        """What was done to actions, for the report; nothing if they came in [-1, 1] and stayed."""
        found = []
        if np.any(self.low != -1) or np.any(self.high != 1):
            low, high = (" ".join(f"{value:g}" for value in side) for side in (self.low, self.high))
            found.append(
                f"actions: -1 stands for {low} and 1 for {high} ({self.origin}); they must mean the same to the task's "
                "environment"
            )
        if len(still := np.flatnonzero(self.low == self.high)):
            found.append(f"actions: dims {', '.join(map(str, still))} never move in the data, and are 0")
        if self._clipped:
            found.append(f"actions: {self._clipped} of {self._steps} lay outside these bounds and were cut to them")
        return found


def as_corners(chosen: np.ndarray, counts: Sequence[int], start: Sequence[int]) -> np.ndarray:
    """Return choices as the actions that make them (`pipeline/tasks/spaces.py`): 1 for what was chosen, else -1.

    Args:
        chosen: (..., k) whole numbers.
        counts: among how many each of the k was chosen.
        start: (k,) the lowest number of each.

    Returns:
        (..., sum of counts) float64.

    Raises:
        ValueError: there are other than k choices, or one is none of those.
    """
    if chosen.shape[-1:] != (len(counts),):
        raise ValueError(f"its actions have the shape {chosen.shape}, expected {len(counts)} choices each")
    parts = []
    for number, (count, first) in enumerate(zip(counts, start, strict=True)):
        index = chosen[..., number] - first
        if not np.isin(index, np.arange(count)).all():
            found = f"from {chosen[..., number].min():g} to {chosen[..., number].max():g}"
            raise ValueError(f"its actions choose {found}, expected whole numbers from {first} to {first + count - 1}")
        parts.append(np.where(index[..., None] == np.arange(count), 1.0, -1.0))
    return np.concatenate(parts, -1)


def say_corners(counts: Sequence[int]) -> str:
    """Say what `as_corners` did, for the report."""
    return f"actions: choices among {' and '.join(map(str, counts))}, each as 1 for what was chosen and -1 for all else"


def find_bounds(
    told: tuple[np.ndarray | float, np.ndarray | float],
    given: tuple[Sequence[float] | None, Sequence[float] | None],
    actions: Sequence[np.ndarray] | None,
    clip: bool,
    width: int,
) -> Bounds:
    """Decide on the bounds of an import.

    Args:
        told: low and high as the source says it.
        given: low and high as the user says it: one number or `width` of them, None for what the source says.
        actions: (L, at least `width`) each, take their smallest and largest, of rows that are finite; None to go by
            what is told or given.
        clip: cut actions to the bounds.
        width: a, action dims of the task.

    Raises:
        ValueError: the bounds are no numbers of this width, not in this order, or too far apart.
    """
    if actions is not None:
        if any(given_side is not None for given_side in given):
            raise ValueError("--fit-actions takes the bounds from the data: leave --action-low and --action-high out.")
        return _fitted(actions, clip, width)
    sides, origin = [], "as the source says" if np.ndim(told[0]) else "the default"
    for name, side, default in zip(("low", "high"), given, told, strict=True):
        if side is not None:
            origin = "as you said"
            if len(side) not in (1, width):
                raise ValueError(f"--action-{name} has {len(side)} numbers, expected one, or {width} of the task.")
        sides.append(np.broadcast_to(np.asarray(default if side is None else side, np.float64), (width,)))
    low, high = sides
    if not (_finite(low, high) and (high > low).all()):
        raise ValueError(
            f"the actions' bounds are {low} and {high} ({origin}), expected finite numbers, each low below its high. "
            "Say them with --action-low and --action-high, or take the data's own with --fit-actions."
        )
    return Bounds(low, high, clip, origin)


def _fitted(actions: Sequence[np.ndarray], clip: bool, width: int) -> Bounds:
    """Return the smallest and largest of the actions, (L, at least `width`) each, of rows that are finite."""
    wide = [action[:, :width].astype(np.float64) for action in actions if action.ndim == 2 and action.shape[1] >= width]
    rows = np.concatenate([np.zeros((0, width)), *(part[np.isfinite(part).all(1)] for part in wide)])
    if not len(rows):
        raise ValueError(
            "--fit-actions takes the bounds from the data: it needs at least one episode with finite actions of "
            f"{width} values; of {len(actions)} episodes that could be read, none has them."
        )
    low, high = rows.min(0), rows.max(0)
    if not _finite(low, high):
        raise ValueError(
            f"--fit-actions: the smallest and largest action in the data are {low} and {high}, too far apart to scale. "
            "Say what -1 and 1 of the task's actions are with --action-low and --action-high."
        )
    return Bounds(low, high, clip, "the smallest and largest in the data")


def _finite(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether both are finite, and so is what lies between them."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(high - low).all())
