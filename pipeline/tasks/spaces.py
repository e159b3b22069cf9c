"""Gymnasium's spaces as vectors: what a continuous action means to an environment, how an observation is laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, flatdim

from pipeline.tasks.spec import Bounds

_LARGEST = 2.0**53  # integers up to it are exact as floats; bounds beyond it are no bounds
_UNBOUNDED = float(np.finfo(np.float32).max)


class Actions(NamedTuple):
    """How an action of `a` numbers, [-1, 1] scaled to `low` and `high`, becomes one of the environment's own."""

    low: np.ndarray  # (a,)
    high: np.ndarray  # (a,)
    convert: Callable[[np.ndarray], Any]  # of (a,) float64 within these bounds
    text: str  # the same for a reader

    def of_unit(self, action: np.ndarray) -> Any:
        """Return the environment's own action for one of the agent, (a,) in [-1, 1]; values outside are clipped."""
        unit = np.clip(np.asarray(action, np.float64), -1, 1)
        return self.convert(unit * ((self.high - self.low) / 2) + (self.low + self.high) / 2)


def actions_of(name: str, space: Space, bounds: Bounds | None = None) -> Actions:
    """Return how actions of a space are made.

    Box: as they are, integers and booleans in even steps of the range. Discrete: the largest of n numbers chooses, the
    first of equal ones. MultiDiscrete: so does the largest of each group. MultiBinary: a number above 0 is 1.

    Args:
        name: what errors call the environment.
        space: its action space.
        bounds: limits of a Box, where its own are none or wider; see `TaskSpec.action_bounds`.

    Raises:
        ValueError: the agent cannot use such actions, or the bounds do not fit.
    """
    if isinstance(space, Box) and 0 in space.shape:
        raise ValueError(f"{name}: its actions are {space}, of no number at all: there is nothing to choose.")
    if isinstance(space, Box):
        return _numbers(name, space, bounds)
    if bounds is not None:
        raise ValueError(f"{name}: its actions are {space}; `action_bounds` are for a Box. Remove them.")
    if isinstance(space, Discrete):
        choose, start = space.dtype.type, int(space.start)
        text = f"{space}: the largest of {space.n} numbers chooses"
        return _unit(int(space.n), lambda action: choose(start + action.argmax()), text)
    if isinstance(space, MultiDiscrete):
        return _choices(space)
    if isinstance(space, MultiBinary):
        text = f"{space}: each of {flatdim(space)} numbers is 1 above 0, else 0"
        return _unit(flatdim(space), lambda action: (action > 0).astype(space.dtype).reshape(space.shape), text)
    raise ValueError(
        f"{name}: its actions are {space}; expected a Box, Discrete, MultiDiscrete or MultiBinary. Wrap the "
        "environment so that it takes one of these."
    )


def layout_of(name: str, space: Space) -> str:
    """Say in which order the parts of an observation become one vector: `goal 0-2, last 3-4`; a Box: `Box (3,)`.

    Parts come in the order of `space.spaces`: a Dict's are sorted by name, unless it was made of an OrderedDict or
    with sort_keys=False; a Tuple's are counted. A choice among n is n numbers, 1 for what is chosen, else 0.

    Raises:
        ValueError: the observations are no numbers of a fixed count.
    """
    if not space.is_np_flattenable:
        raise ValueError(
            f"{name}: its observations are {space}; expected numbers in a Box, or a Dict or Tuple of such. Wrap the "
            "environment so that it gives one vector."
        )
    if not isinstance(space, Dict | Tuple):
        return f"Box {space.shape}" if isinstance(space, Box) else f"{space}, as {flatdim(space)} numbers"
    described, first = [], 0
    for part, width in _parts("", space):
        last = first + width - 1
        described.append(f"{part} {first}-{last}" if width > 1 else f"{part} {first}" if width else f"{part} (empty)")
        first += width
    return f"{type(space).__name__}, in this order: {', '.join(described)}"


def _parts(name: str, space: Space) -> Iterator[tuple[str, int]]:
    """Yield name and width of every part, as `gymnasium.spaces.flatten` puts them side by side."""
    if not isinstance(space, Dict | Tuple):
        yield name, flatdim(space)
        return
    for key, part in space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces):
        yield from _parts(f"{name}.{key}" if name else str(key), part)


def _unit(size: int, convert: Callable[[np.ndarray], Any], text: str) -> Actions:
    return Actions(-np.ones(size), np.ones(size), convert, text)


def _choices(space: MultiDiscrete) -> Actions:
    counts, start = space.nvec.ravel(), np.ravel(space.start)
    cuts = np.cumsum(counts)[:-1]

    def convert(action: np.ndarray) -> np.ndarray:
        chosen = [part.argmax() for part in np.split(action, cuts)]
        return (start + chosen).astype(space.dtype).reshape(space.shape)

    groups = " + ".join(map(str, counts.tolist()))
    return _unit(int(counts.sum()), convert, f"{space}: the largest of each group of {groups} numbers chooses")


def _numbers(name: str, space: Box, bounds: Bounds | None) -> Actions:
    low, high = _limits(name, space, bounds)
    shape, dtype = space.shape, space.dtype
    edge = f"in [{low.min():g}, {high.max():g}]"

    if np.issubdtype(dtype, np.floating):
        text = f"Box {shape} {dtype} {edge}, which [-1, 1] is mapped onto"
        # Scaling may miss a bound by the last digit of a float64.
        return Actions(low, high, lambda action: np.clip(action, low, high).astype(dtype).reshape(shape), text)
    text = f"Box {shape} {dtype} {edge}: [-1, 1] is divided evenly among these values"
    return Actions(
        low - 0.5, high + 0.5, lambda action: np.clip(np.rint(action), low, high).astype(dtype).reshape(shape), text
    )


def _limits(name: str, space: Box, bounds: Bounds | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a Box's actions, (a,) float64 each: its own, or those of the task file within them."""
    own_low, own_high = (side.astype(np.float64).ravel() for side in (space.low, space.high))
    dtype: Any = space.dtype
    floats = np.issubdtype(dtype, np.floating)
    most = min(_UNBOUNDED, float(np.finfo(dtype).max)) if floats else _LARGEST
    if bounds is None:
        if not space.is_bounded() or (np.abs([own_low, own_high]) >= most).any():
            raise ValueError(
                f"{name}: its actions are unbounded ({space}), and [-1, 1] must be mapped onto something. Give limits "
                "in the task file, e.g. `action_bounds: [-2, 2]`, or wrap it with gymnasium.wrappers.RescaleAction."
            )
        return own_low, own_high
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), own_low.shape).copy() for bound in bounds)
    said = f"{name}: action_bounds from {low.min():g} to {high.max():g}"
    if (low < own_low).any() or (high > own_high).any():
        raise ValueError(f"{said} go beyond its own actions, {space}. Narrow them.")
    if (np.abs([low, high]) >= most).any():
        raise ValueError(f"{said} reach the largest number of its actions, {most:g} for {dtype}. Narrow them.")
    if not floats:
        low, high = np.ceil(low), np.floor(high)
        if (low > high).any():
            raise ValueError(f"{said} leave no whole number to its actions, {space}. Widen them.")
    return low, high
