"""The replay buffer: whole episodes of many tasks, sampled in slices of `horizon` transitions.

All episodes lie in one table with a row per time step: observation, action and reward side by side. An episode of L
transitions takes L + 1 rows; the last one holds the last observation and no action. The rows of an episode are
consecutive, so a slice is `horizon + 1` consecutive rows, found by adding to its first one. A new episode overwrites
the oldest ones. Sampling takes the same time however much is stored.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.shapes import Batch

if TYPE_CHECKING:
    from pipeline.data.episode import Episode

_EPISODE = np.dtype(
    [("start", "i8"), ("length", "i8"), ("task", "i8"), ("terminated", "?"), ("imitation", "f4")], align=True
)  # first row, transitions, row of the task table; 32 bytes


_TARGETS = "value_target"
_log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """Positions of B sampled slices, and facts about their episodes."""

    start: np.ndarray  # (B,) int64, first row of the slice
    before: np.ndarray  # (B,) int64, transitions of the episode before the slice
    task: np.ndarray  # (B,) int64, row of the task table
    terminated: np.ndarray  # (B,) bool, whether the episode terminates with the slice's last transition
    imitation: np.ndarray  # (B,) float32 in [0, 1]


class ReplayBuffer:
    """Stores episodes and samples slices: the episode uniformly, then its start uniformly.

    With `task_weights` the task is drawn by weight before that. A transition takes 4 (O + A + 1) bytes, 4 A more for
    expert actions and 4 more for each further column; an episode takes one row more than it has transitions, and at
    most 72 bytes beside its rows.

    Args:
        capacity: rows, i.e. transitions plus one row per episode.
        obs_dim: O, width observations are padded to.
        action_dim: A, width actions are padded to.
        horizon: T, transitions per slice.
        keep_expert_actions: also store what the expert intended; without it the executed action is imitated.
        device: where rows are kept and batches come from.
        folder: keep the rows in memory-mapped files there (on the CPU), which may be larger than memory. Existing files
            are overwritten: a run resumes from `state_tensors`, not from them.
        task_weights: (n,) sampling weight of each row of the task table; None samples uniformly over the episodes of
            all tasks.
        attach: map the files in `folder` that another process has made and filled, instead of making new ones.
        columns: names of further float32 values per step, (L,), that are stored and saved but not put into batches.
        keep_value_targets: also keep what Q should be at each step; it is put into batches, and not saved.
        by_steps: sample slices uniformly over the places where they can begin, so that ends are as frequent among last
            steps as they were; else uniformly over episodes (published), and so more often from short ones.

    Attributes:
        obs, action, reward: (capacity, O), (capacity, A) and (capacity,), the stored rows.

    Raises:
        ValueError: the capacity is below a slice.
        OSError: the files do not fit on the disk.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        *,
        keep_expert_actions: bool = False,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        task_weights: Tensor | None = None,
        attach: bool = False,
        columns: Sequence[str] = (),
        keep_value_targets: bool = False,
        by_steps: bool = False,
    ):
        if capacity <= horizon:
            raise ValueError(f"a replay of {capacity} rows cannot hold a slice of {horizon} transitions")
        self.capacity, self.horizon, self.device = capacity, horizon, torch.device(device)
        assert folder is None or self.device.type == "cpu", "memory-mapped files are read by the CPU"
        self.columns = tuple(columns)
        self.keeps_expert_actions = keep_expert_actions
        self._obs_dim = obs_dim
        shapes: dict[str, tuple[int, ...]] = {"rows": (capacity, obs_dim + action_dim + 1)}
        if keep_expert_actions:
            shapes["expert_action"] = (capacity, action_dim)
        shapes |= dict.fromkeys(self.columns, (capacity,))
        tensors = {}
        for name, shape in shapes.items():
            tensors[name] = (
                _mapped(folder / f"{name}.f32", shape, attach) if folder else torch.zeros(shape, device=device)
            )
        if keep_value_targets:
            tensors[_TARGETS] = torch.zeros(capacity, device=device)
        self._use(tensors)
        self._task_weights, self._by_steps = task_weights, by_steps
        self._episodes = self._no_episodes()
        self._next_row = 0

    @property
    def num_episodes(self) -> int:
        """Episodes stored."""
        return len(self._episodes.stored)

    @property
    def num_transitions(self) -> int:
        """Transitions stored."""
        return int(self._episodes.stored["length"].sum())

    @property
    def num_added(self) -> int:
        """Episodes ever stored, also those overwritten since; `state_tensors(since=...)` counts by it."""
        return self._episodes.num_added

    def num_transitions_of(self, tasks: Sequence[int]) -> int:
        """Return how many transitions are stored of these rows of the task table."""
        stored = self._episodes.stored
        return int(stored["length"][np.isin(stored["task"], tasks)].sum())

    def mean_age(self) -> float:
        """Return the mean age of stored episodes: transitions added after each."""
        lengths = self._episodes.stored["length"].astype(np.float64)
        return float((lengths.sum() - lengths.cumsum()).mean()) if len(lengths) else 0.0

    def weight_of(self, rows: Tensor) -> float:
        """Return the total sampling weight of tasks (n,)."""
        return float(len(rows) if self._task_weights is None else self._task_weights[rows].sum())

    def leave_out(self, tasks: Sequence[int]) -> bool:
        """Sample nothing of these rows of the task table until the next call; their episodes stay stored.

        Returns:
            Whether there are episodes of other tasks to sample from.
        """
        return self._episodes.leave_out(tasks)

    def add(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: bool,
        task: int,
        *,
        expert_action: Tensor | None = None,
        imitation: float = 1.0,
        columns: Mapping[str, Tensor] | None = None,
        value_target: Tensor | None = None,
    ) -> bool:
        """Store one whole episode of L transitions.

        Args:
            obs: (L + 1, o) with o <= O; the rest of a row is padding.
            action: (L, a) with a <= A.
            reward: (L,); NaN in every step if it is unknown.
            terminated: whether the episode ended for good, not by a time limit: its last step has no future value.
            task: row of the task table.
            expert_action: (L, a), what the expert intended; None for the executed action.
            imitation: in [0, 1], how much the online policy loss imitates this episode.
            columns: (L,) each, the values of the buffer's further columns.
            value_target: (L,) what Q should be; None sets 0, to be put right by `set_value_targets` before sampling.

        Returns:
            False if the episode is shorter than a slice and was left out.

        Raises:
            ValueError: the episode does not fit into the buffer, or holds values that are not finite; nothing was
                stored.
        """
        length = len(action)
        given = {"obs": obs, "action": action, "reward": reward}
        if self.keeps_expert_actions:
            given["expert_action"] = action if expert_action is None else expert_action
        given |= columns or {}
        self._check(given, length, task)
        if length < self.horizon:
            return False
        start = self._make_room(length + 1)
        for name, values in given.items():
            rows = self._stored[name][start : start + length + 1].zero_()
            rows[tuple(slice(size) for size in values.shape)] = values
        if self.keeps_value_targets:
            rows = self._tensors[_TARGETS][start : start + length + 1].zero_()
            rows[:length] = 0.0 if value_target is None else value_target
        self._episodes.append(start, length, task, terminated, imitation)
        return True

    @property
    def keeps_value_targets(self) -> bool:
        """Whether what Q should be is kept at each step."""
        return _TARGETS in self._tensors

    def set_value_targets(self, start: int, values: Tensor) -> None:
        """Set what Q should be in the steps (L,) of the episode whose first row is `start`."""
        self._tensors[_TARGETS][start : start + len(values)] = values

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Sample `batch_size` slices, on the buffer's device; obs, action and reward are views of one tensor."""
        return self._batch(self._read(self._draw(batch_size, generator)))

    def index_tensors(self, since: int = 0) -> dict[str, Tensor]:
        """Return the positions of the episodes numbered `since` and higher, for a buffer attached to the same files."""
        episodes, imitation = self._episodes.read(since)
        counters = [self.num_added - self.num_episodes, self.num_added, self._next_row]
        return {"episodes": episodes, "imitation": imitation, "counters": torch.tensor(counters)}

    def load_index(self, index: dict[str, Tensor]) -> None:
        """Restore what `index_tensors` of the buffer that filled the files returned."""
        first, _, self._next_row = index["counters"].tolist()
        self._episodes = self._no_episodes(first)
        self._episodes.extend(index["episodes"], index["imitation"])

    def state_tensors(
        self, since: int = 0, empty: Callable[[str, tuple[int, ...]], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return everything needed to continue bit for bit, as tensors that safetensors can hold.

        Args:
            since: only the episodes that were added after `num_added` had this value. To restore the buffer, load the
                state of then and after it this one.
            empty: gives memory of the CPU for the rows of a name, of a shape; None takes new memory of the device.

        Returns:
            All that is stored of these episodes, one after the other, by name; and the `index_tensors`.
        """
        index = self.index_tensors(since)
        spans = [slice(start, start + length + 1) for start, length in index["episodes"][:2].T.tolist()]
        steps = {}
        for name, rows in self._stored.items():
            pieces, height = [rows[:0], *(rows[span] for span in spans)], sum(span.stop - span.start for span in spans)
            if empty is None:
                steps[name] = torch.cat(pieces)
            elif rows.device.type == "cpu":
                steps[name] = torch.cat(pieces, out=empty(name, (height, *rows.shape[1:])))
            else:
                steps[name] = empty(name, (height, *rows.shape[1:])).copy_(torch.cat(pieces))
        return steps | index

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned; of a state `since` another, load that other before.

        A new buffer also takes a state whose earlier episodes have all been overwritten since.
        """
        episodes, imitation = state["episodes"], state["imitation"]
        first, end, self._next_row = state["counters"].tolist()
        assert (episodes[0] + episodes[1] < self.capacity).all(), "the saved replay is larger than this one"
        since = end - episodes.shape[1]
        if since <= first or not self.num_added:
            self._episodes = self._no_episodes(since)
        assert self.num_added == since, f"the saved replay starts at episode {since}, this one ends at {self.num_added}"
        while self.num_episodes and self.num_added - self.num_episodes < first:
            self._episodes.drop_oldest()
        self._episodes.extend(episodes, imitation)
        read = 0
        for start, length in episodes[:2].T.tolist():
            for name, stored in self._stored.items():
                stored[start : start + length + 1] = state[name][read : read + length + 1]
            read += length + 1

    def copy_to(self, device: torch.device | str) -> ReplayBuffer:
        """Return a buffer with the same episodes, kept in the memory of another device."""
        other = copy.copy(self)
        other.device, other._episodes = torch.device(device), copy.deepcopy(self._episodes)
        other._use({name: tensor.to(device, copy=True) for name, tensor in self._tensors.items()})
        return other

    def only(self, task: int) -> ReplayBuffer:
        """Return a view of the episodes of one task that are stored now, to sample from; rows are not copied."""
        view = copy.copy(self)
        view._task_weights, view._episodes = None, _Episodes()
        episodes, imitation = self._episodes.read(0)
        mine = episodes[2] == task
        assert mine.any(), f"the replay holds no episode of task row {task}"
        view._episodes.extend(episodes[:, mine], imitation[mine])
        return view

    def _use(self, tensors: dict[str, Tensor]) -> None:
        """Keep the rows in these tensors."""
        self._tensors = tensors
        self.obs, self.action, self.reward = self._split(tensors["rows"])
        self._stored = {"obs": self.obs, "action": self.action, "reward": self.reward}
        self._stored |= {name: tensor for name, tensor in tensors.items() if name not in ("rows", _TARGETS)}

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of observation (..., O), action (..., A) and reward (...) of rows."""
        return rows[..., : self._obs_dim], rows[..., self._obs_dim : -1], rows[..., -1]

    def _check(self, given: dict[str, Tensor], length: int, task: int) -> None:
        assert given.keys() == self._stored.keys(), f"came with {list(given)}, expected {list(self._stored)}"
        assert task >= 0, task
        assert self._task_weights is None or task < len(self._task_weights), task
        if length + 1 > self.capacity:
            raise ValueError(
                f"an episode of {length} transitions does not fit into {self.capacity} rows: raise replay_capacity"
            )
        for name, values in given.items():
            widest = self._stored[name].shape[1:]
            assert len(values) == length + (name == "obs"), f"{length} actions, but {len(values)} of `{name}`"
            fits = values.ndim == 1 + len(widest) and values.shape[1:] <= widest
            assert fits, f"`{name}` of shape {tuple(values.shape)}; this replay takes at most {tuple(widest)} per step"
            bad = ~torch.isfinite(values).reshape(len(values), -1).all(1)
            if bad.any() and not (name == "reward" and values.isnan().all()):
                raise ValueError(
                    f"an episode of task row {task} holds a value of `{name}` that is not finite at step "
                    f"{int(bad.nonzero()[0])}; it was not stored"
                )

    def _no_episodes(self, num_added: int = 0) -> _Episodes:
        """Return an empty index."""
        return _Episodes(self._task_weights, num_added, self.horizon if self._by_steps else None)

    def _make_room(self, rows: int) -> int:
        """Free `rows` consecutive rows by dropping the oldest episodes there; return the first row."""
        start, episodes = self._next_row, self._episodes
        if start + rows > self.capacity:
            # Too few rows are left at the end: the episodes there are the oldest, and are dropped too.
            while len(episodes.stored) and episodes.stored["start"][0] >= start:
                episodes.drop_oldest()
            start = 0
        while len(episodes.stored) and start <= episodes.stored["start"][0] < start + rows:
            episodes.drop_oldest()
        self._next_row = start + rows
        return start

    def _draw(self, num: int, generator: torch.Generator) -> Drawn:
        """Draw `num` slices."""
        episode = self._episodes.draw(num, generator)
        share = torch.rand(num, generator=generator, dtype=torch.float64).numpy()
        num_starts = episode["length"] - self.horizon + 1  # rows of the episode where a slice can start
        before = (share * num_starts).astype(np.int64)
        terminated = episode["terminated"] & (before == num_starts - 1)
        return Drawn(episode["start"] + before, before, episode["task"], terminated, episode["imitation"])

    def _read(self, drawn: Drawn) -> dict[str, Tensor]:
        """Copy slices out, with the slices in dim 1, or in dim 0 of what has no time."""
        rows = drawn.start + np.arange(self.horizon + 1)[:, None]  # (T + 1, B)
        slices = {"rows": self._gather("rows", rows)}
        executed = slices["rows"][:-1, :, self._obs_dim : -1]
        slices["expert_action"] = self._gather("expert_action", rows[:-1]) if self.keeps_expert_actions else executed
        if self.keeps_value_targets:
            slices[_TARGETS] = self._gather(_TARGETS, rows[:-1]).squeeze(-1)
        terminated = np.zeros((self.horizon, len(drawn.start)), np.float32)
        terminated[-1] = drawn.terminated
        known = {"terminated": terminated, "task": drawn.task, "imitation": drawn.imitation}
        return slices | {name: torch.from_numpy(values.copy()).to(self.device) for name, values in known.items()}

    def _gather(self, name: str, rows: np.ndarray) -> Tensor:
        """Return rows (T', B) of a stored tensor: (T', B, width)."""
        index = torch.from_numpy(rows).to(self.device)
        return self._tensors[name].index_select(0, index.flatten()).view(*rows.shape, -1)

    def _batch(self, slices: dict[str, Tensor]) -> Batch:
        """Make a batch of what was read."""
        obs, action, reward = self._split(slices["rows"])
        known = (slices[name] for name in ("terminated", "task", "imitation"))
        batch = Batch(obs, action[:-1], slices["expert_action"], reward[:-1], *known)
        return batch._replace(value_target=slices[_TARGETS]) if _TARGETS in slices else batch


def sample_mixture(
    first: ReplayBuffer, second: ReplayBuffer, batch_size: int, fraction: float, generator: torch.Generator
) -> Batch:
    """Sample `fraction` of the batch from `first` and the rest from `second`, e.g. demonstrations and online data.

    Both are of one class and on one device; their shares are whole numbers of slices.
    """
    assert type(first) is type(second), f"{type(first).__name__} and {type(second).__name__} do not mix"
    count = round(batch_size * fraction)
    assert abs(count - batch_size * fraction) < 1e-6, f"{fraction} x {batch_size} slices is no whole number"
    if count == batch_size:
        return first.sample(batch_size, generator)
    if count == 0:
        return second.sample(batch_size, generator)
    parts = first._read(first._draw(count, generator)), second._read(second._draw(batch_size - count, generator))
    joined = {name: torch.cat([part[name] for part in parts], min(1, parts[0][name].ndim - 1)) for name in parts[0]}
    return first._batch(joined)


def from_demos(
    episodes: list[tuple[int, Episode]],
    obs_dim: int,
    action_dim: int,
    horizon: int,
    *,
    make: Callable[..., ReplayBuffer] = ReplayBuffer,
    **options: Any,
) -> ReplayBuffer:
    """Put demonstrations into a buffer of exactly their size, with their expert actions.

    Args:
        episodes: (row of the task table, episode) pairs.
        obs_dim, action_dim, horizon: of the buffer.
        make: makes the buffer, called as `ReplayBuffer` is.
        **options: of the buffer.

    Raises:
        ValueError: there are none, one is wider than the padding, or all of a task are shorter than the horizon.
    """
    if not episodes:
        raise ValueError("there are no demonstrations to learn from: run `dvc repro demos` and see demos.episodes")
    long = [(task, episode) for task, episode in episodes if len(episode.action) >= horizon]
    _say_short(episodes, {task for task, _ in long}, horizon)
    rows = sum(len(episode.obs) for _, episode in long)
    buffer = make(rows, obs_dim, action_dim, horizon, keep_expert_actions=True, **options)
    for task, episode in long:
        if episode.obs.shape[1] > obs_dim or episode.action.shape[1] > action_dim:
            raise ValueError(
                f"a demonstration of {episode.task} has {episode.obs.shape[1]} observation and "
                f"{episode.action.shape[1]} action dims; model.obs_dim is {obs_dim} and model.action_dim {action_dim}: "
                "raise them"
            )
        steps = episode.obs, episode.action, episode.reward, episode.expert_action
        obs, action, reward, expert_action = map(torch.from_numpy, steps)
        buffer.add(obs, action, reward, episode.terminated, task, expert_action=expert_action)
    return buffer


def _say_short(episodes: Sequence[tuple[int, Episode]], kept: set[int], horizon: int) -> None:
    """Say which demonstrations are shorter than a slice and left out; `kept` are the tasks that have longer ones.

    Raises:
        ValueError: a task has no others.
    """
    short = Counter(task for task, episode in episodes if len(episode.action) < horizon)
    for task, name in dict.fromkeys((task, episode.task) for task, episode in episodes):
        if task not in kept:
            raise ValueError(
                f"every demonstration of {name} has fewer steps than planner.horizon = {horizon}: no slice of one "
                "fits. Lower the horizon or leave the task out."
            )
        if short[task]:
            _log.warning(
                "%d demonstrations of %s have fewer steps than planner.horizon = %d and are left out: no slice of one "
                "fits.", short[task], name, horizon,
            )  # fmt: skip


class _Episodes:
    """Index of the stored episodes: their positions and facts about them, the oldest first.

    Episodes are numbered as they come and leave in the same order: those stored are the newest ones.

    Args:
        task_weights: (n,) as `ReplayBuffer` takes them.
        num_added: number that the next episode gets.
        horizon: of slices, where an episode counts as often as there are slices in it; None where each counts once.
    """

    def __init__(self, task_weights: Tensor | None = None, num_added: int = 0, horizon: int | None = None):
        self._weights = None if task_weights is None else task_weights.double().cpu().numpy()
        if self._weights is not None:
            assert self._weights.min() >= 0, "task weights must not be negative"
            assert 0 < self._weights.max() < math.inf, "task weights must be finite, and one above 0"
        self.num_added, self._horizon = num_added, horizon
        self._table = np.zeros(16, _EPISODE)
        self._first = self._end = 0  # of the part of the table that is in use
        self._left_out: list[int] = []  # tasks that are not sampled
        self._drawable: tuple[np.ndarray, np.ndarray] | None = None  # as `_find_drawable` returns it
        self._slices = np.array(())  # (n,) slices in those that may be drawn, summed up

    @property
    def stored(self) -> np.ndarray:
        """The stored episodes, (n,) of `_EPISODE`."""
        return self._table[self._first : self._end]

    def append(self, start: int, length: int, task: int, terminated: bool, imitation: float) -> None:
        """Add the newest episode, of `length` transitions from row `start` on."""
        if self._end == len(self._table):  # move what is stored to the beginning of a table with twice the place
            stored = self.stored
            self._table = np.zeros(max(16, 2 * len(stored)), _EPISODE)
            self._table[: len(stored)] = stored
            self._first, self._end = 0, len(stored)
        self._table[self._end] = start, length, task, terminated, imitation
        self._end += 1
        self.num_added += 1
        self._drawable = None

    def drop_oldest(self) -> None:
        """Forget the oldest episode."""
        self._first += 1
        self._drawable = None

    def read(self, since: int) -> tuple[Tensor, Tensor]:
        """Return start, length, task, terminated (4, n) and imitation (n,) of the episodes from `since` on."""
        new = self.stored[max(0, len(self.stored) - (self.num_added - since)) :]
        numbers = np.stack([new[name] for name in ("start", "length", "task", "terminated")])
        return torch.from_numpy(numbers), torch.from_numpy(new["imitation"].copy())

    def extend(self, numbers: Tensor, imitation: Tensor) -> None:
        """Add what `read` returned."""
        for (start, length, task, terminated), weight in zip(numbers.T.tolist(), imitation.tolist(), strict=True):
            self.append(start, length, task, terminated, weight)

    def leave_out(self, tasks: Sequence[int]) -> bool:
        """Draw nothing of these tasks, and return whether there is something else to draw."""
        self._left_out, self._drawable = list(tasks), None
        return len(self._find_drawable()[0]) > 0

    def draw(self, num: int, generator: torch.Generator) -> np.ndarray:
        """Draw (num,) episodes: uniformly, or with weights the task by weight and then its episode uniformly.

        With a horizon, each in proportion to the slices in it.

        Raises:
            ValueError: nothing is stored of a task whose weight is above 0.
        """
        if self._drawable is None:
            self._drawable = self._find_drawable()
        drawable, counts = self._drawable
        assert len(drawable), "nothing to sample from: the replay holds no episode, or all are left out"
        if self._weights is None:
            chosen = torch.randint(len(drawable), (num,), generator=generator).numpy()
            if self._horizon is not None:
                share = torch.rand(num, generator=generator, dtype=torch.float64).numpy()
                chosen = self._by_slices(share, np.array(0), np.array(len(drawable)))
            return self.stored.take(drawable[chosen])  # much faster than indexing here
        weights = self._weights * (counts > 0)
        if not weights.any():
            raise ValueError("the replay holds no episode of a task whose weight is above 0: see tasks.weights")
        task = torch.multinomial(torch.from_numpy(weights), num, replacement=True, generator=generator).numpy()
        share = torch.rand(num, generator=generator, dtype=torch.float64).numpy()
        first_of_task = counts.cumsum() - counts
        if self._horizon is not None:
            first = first_of_task[task]
            return self.stored.take(drawable[self._by_slices(share, first, first + counts[task])])
        return self.stored.take(drawable[first_of_task[task] + (share * counts[task]).astype(np.int64)])

    def _by_slices(self, share: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Return which of the drawable episodes [first, end) hold the slices at this share in [0, 1) of all theirs."""
        before = np.append(0, self._slices)
        return np.searchsorted(self._slices, before[first] + share * (before[end] - before[first]), side="right")

    def _find_drawable(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which stored episodes may be drawn, with weights those of a task side by side, and (n,) how many."""
        task = self.stored["task"]
        drawable = np.flatnonzero(~np.isin(task, np.array(self._left_out, np.int64)))
        if self._weights is not None:
            drawable = drawable[task[drawable].argsort(kind="stable")]
        if self._horizon is not None:
            self._slices = (self.stored["length"][drawable] - self._horizon + 1).cumsum()
        if self._weights is None:
            return drawable, np.array(())
        return drawable, np.bincount(task[drawable], minlength=len(self._weights))


def _mapped(path: Path, shape: tuple[int, ...], attach: bool) -> Tensor:
    """Return a float32 tensor in a file whose space is reserved: a full disk must not kill the process later."""
    size = math.prod(shape)
    if not attach:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 4 * size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OSError(
                f"{path} needs {4 * size / 2**30:.2f} GiB, which could not be reserved: {error}. Free some space or "
                "lower replay_capacity."
            ) from None
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
