"""Where each stored episode lies, and which of them a sample falls on: a few integers per episode, in rings.

Episodes are numbered 0, 1, 2, ... as they come and leave in the same order, so what is stored is always a range of
numbers, and episode i is found at place i modulo the size of its ring: drawing one takes a random number and no search,
however many there are. Rings double when they are full, so that adding takes the same time on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_FIRST_SIZE = 16


class Drawn(NamedTuple):
    """Slices that were drawn: arrays of numpy, whose small operations take a third of the time of torch's."""

    start: np.ndarray  # (B,) int64, first row of each slice
    task: np.ndarray  # (B,) int64, row of the task table
    terminated: np.ndarray  # (B,) bool, whether the episode ends for good with the slice's last transition
    imitation: np.ndarray  # (B,) float32 in [0, 1]
    before: np.ndarray  # (B,) int64, transitions of the episode before each slice


class EpisodeTable:
    """The stored episodes, oldest first.

    Args:
        horizon: T, transitions per slice.
        task_weights: (n,) how often each row of the task table is drawn, relative to the others: the task by weight,
            then its episode uniformly. None draws the episode uniformly over all.

    Raises:
        ValueError: a weight is negative or not finite, or all are 0.
    """

    def __init__(self, horizon: int, task_weights: Tensor | None = None):
        if task_weights is not None and not (
            torch.isfinite(task_weights).all() and (task_weights >= 0).all() and task_weights.any()
        ):
            raise ValueError(
                f"task weights must be finite and not negative, and one above 0; they are {task_weights.tolist()}"
            )
        self.first = 0  # number of the oldest stored episode
        self.end = 0  # number that the next episode gets
        self.num_transitions = 0
        self._horizon = horizon
        self._columns = torch.zeros(4, _FIRST_SIZE, dtype=torch.int64)  # first row, transitions, task, terminated
        self._imitation = torch.zeros(_FIRST_SIZE)
        self._by_task = None if task_weights is None else _TaskRings(task_weights)
        self._left_out: tuple[int, ...] = ()  # tasks that are not drawn
        self._drawn_from: Tensor | None = None  # numbers of the episodes of the others, once they are asked for

    def __len__(self) -> int:
        return self.end - self.first

    def append(self, start: int, length: int, task: int, terminated: bool, imitation: float) -> None:
        """Add an episode of `length` transitions whose first row is `start`."""
        if len(self) == len(self._imitation):
            self._columns, self._imitation = (
                _doubled(ring, self.first, self.end) for ring in (self._columns, self._imitation)
            )
        place = self.end % len(self._imitation)
        self._columns[:, place] = torch.tensor([start, length, task, int(terminated)])
        self._imitation[place] = imitation
        if self._by_task is not None:
            self._by_task.append(task, self.end)
        self.end += 1
        self.num_transitions += length
        self._drawn_from = None

    def drop_oldest(self) -> None:
        """Forget the oldest episode."""
        _, length, task, _ = self._columns[:, self.first % len(self._imitation)].tolist()
        if self._by_task is not None:
            self._by_task.drop_oldest(task)
        self.first += 1
        self.num_transitions -= length
        self._drawn_from = None

    def leave_out(self, tasks: Sequence[int]) -> None:
        """Draw no episode of these tasks until told otherwise; they stay stored."""
        self._left_out, self._drawn_from = tuple(tasks), None
        if self._by_task is not None:
            self._by_task.left_out = self._left_out

    def numbers(self) -> Tensor:
        """Return the numbers of the stored episodes that are not left out, oldest first."""
        if self._drawn_from is None:
            numbers = torch.arange(self.first, self.end)
            task = self._columns[2, numbers % len(self._imitation)]
            self._drawn_from = numbers[~torch.isin(task, torch.tensor(self._left_out, dtype=torch.int64))]
        return self._drawn_from

    def oldest_start(self) -> int:
        """Return the first row of the oldest episode."""
        return int(self._columns[0, self.first % len(self._imitation)])

    def draw(self, num: int, generator: torch.Generator) -> Drawn:
        """Draw slices: the episode, then its start uniformly.

        Raises:
            ValueError: nothing is stored, or nothing of a task whose weight is above 0.
        """
        if not len(self) or (self._left_out and not len(self.numbers())):
            raise ValueError("the replay holds no episode yet: nothing to sample from")
        if self._by_task is not None:
            number = self._by_task.draw(num, generator)
        elif self._left_out:
            number = self.numbers()[torch.randint(len(self.numbers()), (num,), generator=generator)]
        else:
            number = torch.randint(self.first, self.end, (num,), generator=generator)
        place = number.numpy() & len(self._imitation) - 1  # modulo the size, a power of two
        share = torch.rand(num, generator=generator, dtype=torch.float64).numpy()
        start, length, task, terminated = self._columns.numpy().take(place, 1)
        length -= self._horizon - 1  # now the number of places where a slice can start
        offset = (share * length).astype(np.int64)
        start += offset
        at_end = offset == length - 1
        return Drawn(start, task, at_end & (terminated == 1), self._imitation.numpy().take(place), offset)

    def read(self, since: int) -> tuple[Tensor, Tensor]:
        """Return columns (4, n) and imitation (n,) of the stored episodes numbered `since` and higher."""
        place = torch.arange(max(since, self.first), self.end) % len(self._imitation)
        return self._columns[:, place], self._imitation[place]


class _TaskRings:
    """The numbers of each task's episodes, one ring per task."""

    def __init__(self, weights: Tensor):
        self._weights = weights.double().cpu()
        self.left_out: Sequence[int] = ()
        self._rings = torch.zeros(len(weights), _FIRST_SIZE, dtype=torch.int64)
        self._first = torch.zeros(len(weights), dtype=torch.int64)  # like `first` and `end` above, within each task
        self._end = torch.zeros(len(weights), dtype=torch.int64)

    def append(self, task: int, number: int) -> None:
        size = self._rings.shape[1]
        if self._end[task] - self._first[task] == size:
            self._rings = torch.stack(
                [_doubled(*parts) for parts in zip(self._rings, self._first, self._end, strict=True)]
            )
        self._rings[task, self._end[task] % self._rings.shape[1]] = number
        self._end[task] += 1

    def drop_oldest(self, task: int) -> None:
        self._first[task] += 1

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        count = self._end - self._first
        weights = self._weights * (count > 0)
        weights[list(self.left_out)] = 0
        if not weights.any():
            raise ValueError("the replay holds no episode of a task whose weight is above 0: see tasks.weights")
        task = torch.multinomial(weights, num, replacement=True, generator=generator)
        share = torch.rand(num, generator=generator, dtype=torch.float64)
        place = (share.mul_(count[task]).long() + self._first[task]) % self._rings.shape[1]
        return self._rings[task, place]


def _doubled(ring: Tensor, first: int | Tensor, end: int | Tensor) -> Tensor:
    """Return a ring (..., 2 size) that holds entries `first` to `end` of a ring (..., size)."""
    number = torch.arange(int(first), int(end))
    size = ring.shape[-1]
    out = ring.new_zeros(*ring.shape[:-1], 2 * size)
    out[..., number % (2 * size)] = ring[..., number % size]
    return out
