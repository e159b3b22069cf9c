"""Transitions as one flat preallocated tensor; slices are found by index arithmetic, whatever is stored.

An episode of L steps takes L + 1 consecutive rows: row i holds observation i and what was done from it; the last row
holds the last observation and no action. Rows form a ring: a new episode overwrites the oldest ones, whole episodes at
a time, and never wraps around the end, so a slice is always contiguous.

Observation, action and reward of a step are neighbours in its row, so that a slice is one piece of memory: what limits
sampling is how many places it reads, since a replay is far larger than any cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.data.episode_table import EpisodeTable
from pipeline.data.rows import Slices, gather, mapped, zeros
from pipeline.shapes import Batch, Past

if TYPE_CHECKING:
    from pipeline.data.episode import Episode


class ReplayBuffer:
    """Episodes of many tasks, sampled in slices of `horizon` transitions.

    The distribution is the original's: the episode uniformly, then its start uniformly; with `task_weights`, the task
    by weight before that. A transition takes 4 (O + A + 1) bytes, 4 A more for what an expert intended and 4 more for
    a log-probability; an episode takes one row more than it has transitions, and at most 80 bytes of bookkeeping.

    Args:
        capacity: rows, i.e. transitions plus one row per episode.
        obs_dim: O, width observations are padded to.
        action_dim: A, width actions are padded to.
        horizon: T, transitions per slice.
        keep_expert_actions: also store what the expert intended; without it the executed action is imitated.
        device: where rows are kept and batches come from.
        folder: keep the rows in memory-mapped files there (on the CPU), which may be larger than memory. Files that lie
            there are overwritten: `state_tensors` is what a run resumes from.
        attach: the files are those another process has made and filled, and are mapped as they are.
        task_weights: (n,) how often each row of the task table is drawn, relative to the others; None leaves it to how
            many episodes each has.
        context: W, steps before a slice that come with it; 0 for none.
        keep_log_probs: also store how likely each action was when it was taken; slices leave it out, and
            `state_tensors` has it as `log_prob`.

    Raises:
        ValueError: the capacity is below a slice, a weight is impossible, or files are asked for on another device.
        OSError: the files do not fit on the disk.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        keep_expert_actions: bool = False,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        task_weights: Tensor | None = None,
        attach: bool = False,
        context: int = 0,
        keep_log_probs: bool = False,
    ):
        if capacity <= horizon:
            raise ValueError(f"a replay of {capacity} rows cannot hold a slice of {horizon} transitions")
        if folder is not None and torch.device(device).type != "cpu":
            raise ValueError(f"a replay in files is read by the CPU, not by {device}: choose one of the two")
        self.capacity, self.horizon, self.device = capacity, horizon, torch.device(device)
        widths = {"rows": obs_dim + action_dim + 1}
        if keep_expert_actions:
            widths["expert_action"] = action_dim
        if keep_log_probs:
            widths["log_prob"] = 1
        self._tensors = {
            name: zeros(capacity, width, self.device)
            if folder is None
            else mapped(folder / f"{name}.f32", (capacity, width), attach)
            for name, width in widths.items()
        }
        self._widths = [obs_dim, action_dim, 1]
        self.obs, self.action, reward = self._tensors["rows"].split(self._widths, 1)
        self.reward = reward.squeeze(1)
        self.expert_action = self._tensors.get("expert_action", self.action)
        self.log_prob = self._tensors["log_prob"].squeeze(1) if keep_log_probs else None
        self._names = ("obs", "action", "reward", *list(widths)[1:])
        self._task_weights = task_weights
        self._episodes = EpisodeTable(horizon, task_weights)
        self._next_row = 0
        self._offsets = np.arange(horizon + 1)[:, None]
        self._context, self._past_offsets = context, np.arange(-context, 0)[:, None]

    @property
    def num_episodes(self) -> int:
        """Episodes stored."""
        return len(self._episodes)

    @property
    def num_transitions(self) -> int:
        """Transitions stored."""
        return self._episodes.num_transitions

    @property
    def num_added(self) -> int:
        """Episodes ever stored, those overwritten since included: `state_tensors(since=...)` counts by it."""
        return self._episodes.end

    def mean_age(self) -> float:
        """Return how many transitions were added since a stored episode, in the mean over episodes."""
        lengths = self._episodes.read(self._episodes.first)[0][1].double()
        return float((lengths.sum() - lengths.cumsum(0)).mean()) if len(lengths) else 0.0

    def weight_of(self, rows: Tensor) -> float:
        """Return how often episodes of tasks (n,) are drawn together, relative to those of other tasks."""
        return float(len(rows) if self._task_weights is None else self._task_weights[rows].sum())

    def leave_out(self, tasks: Sequence[int]) -> bool:
        """Draw no episode of these rows of the task table until told otherwise; they stay stored.

        Returns:
            Whether episodes of other tasks are stored, so that something can be drawn.
        """
        self._episodes.leave_out(tasks)
        return len(self._episodes.numbers()) > 0

    def index_tensors(self) -> dict[str, Tensor]:
        """Return where the stored episodes lie, for a buffer attached to the same files."""
        columns, imitation = self._episodes.read(0)
        counters = [self._episodes.first, self._episodes.end, self._next_row]
        return {"episodes": columns, "imitation": imitation, "counters": torch.tensor(counters)}

    def load_index(self, index: dict[str, Tensor]) -> None:
        """Take over what `index_tensors` of the buffer that filled the files returned."""
        first, _, self._next_row = index["counters"].tolist()
        self._episodes = EpisodeTable(self.horizon, self._task_weights)
        self._episodes.first = self._episodes.end = first
        for (start, length, task, terminated), weight in zip(
            index["episodes"].T.tolist(), index["imitation"].tolist(), strict=True
        ):
            self._episodes.append(start, length, task, bool(terminated), weight)

    def copy_to(self, device: torch.device) -> ReplayBuffer:
        """Return a buffer with the same episodes, kept on another device."""
        widths = self.obs.shape[1], self.action.shape[1]
        expert, log_probs = ("expert_action" in self._names), self.log_prob is not None
        copy = ReplayBuffer(
            self.capacity,
            *widths,
            self.horizon,
            expert,
            device,
            None,
            self._task_weights,
            context=self._context,
            keep_log_probs=log_probs,
        )
        for name, tensor in self._tensors.items():
            copy._tensors[name].copy_(tensor)
        copy.load_index(self.index_tensors())
        return copy

    def only(self, task: int) -> ReplayBuffer:
        """Return a view of the episodes of one task that are stored now, to sample from; rows are shared, not copied.

        Raises:
            ValueError: there are none.
        """
        columns, imitation = self._episodes.read(0)
        view = copy.copy(self)
        view._task_weights, view._episodes = None, EpisodeTable(self.horizon)
        for (start, length, row, terminated), weight in zip(columns.T.tolist(), imitation.tolist(), strict=True):
            if row == task:
                view._episodes.append(start, length, row, bool(terminated), weight)
        if not view.num_episodes:
            raise ValueError(f"the replay holds no episode of task row {task}")
        return view

    def add(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: bool,
        task: int,
        expert_action: Tensor | None = None,
        imitation: float = 1.0,
        log_prob: Tensor | None = None,
    ) -> bool:
        """Store one whole episode of L transitions.

        Args:
            obs: (L + 1, o) with o <= O; the rest of a row is padding.
            action: (L, a) with a <= A.
            reward: (L,)
            terminated: whether the episode ended for good, so that its last step has no future value.
            task: row of the task table.
            expert_action: (L, a), for a buffer that keeps expert actions.
            imitation: in [0, 1], how much the online policy loss imitates this episode.
            log_prob: (L,), for a buffer that keeps log-probabilities.

        Returns:
            False if the episode is shorter than a slice and was left out.

        Raises:
            ValueError: the episode does not fit into the buffer, or holds values that are not finite; nothing was
                stored.
        """
        length = len(action)
        given = {"obs": obs, "action": action, "reward": reward}
        if "expert_action" in self._names:
            given["expert_action"] = action if expert_action is None else expert_action
        if self.log_prob is not None:
            if log_prob is None or len(log_prob) != length:
                raise ValueError(
                    f"an episode of {length} actions needs as many log-probabilities: this replay keeps them"
                )
            given["log_prob"] = log_prob
        self._check(given, length, task)
        if length < self.horizon:
            return False
        start = self._make_room(length + 1)
        for name, values in given.items():
            rows = getattr(self, name)[start : start + length + 1]
            if values.shape[1:] != rows.shape[1:] or len(values) < len(rows):
                rows.zero_()
            (rows[: len(values)] if rows.ndim == 1 else rows[: len(values), : values.shape[1]]).copy_(values)
        self._episodes.append(start, length, task, terminated, imitation)
        return True

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw `batch_size` slices, on the buffer's device. Observations, actions and rewards share one memory.

        Raises:
            ValueError: nothing is stored yet.
        """
        slices = self._empty(batch_size, "expert_action" in self._tensors)
        self._fill(slices, 0, batch_size, generator)
        return self._batch(slices)

    def state_tensors(self, since: int = 0) -> dict[str, Tensor]:
        """Return everything needed to continue bit for bit, as tensors that safetensors can hold.

        Args:
            since: leave out the rows of the episodes that were already there when `num_added` was this. What was
                returned then and what is returned now, loaded one after the other, give the buffer of now.
        """
        columns, imitation = self._episodes.read(since)
        spans: list[list[int]] = []  # of rows, as few as there are gaps
        for start, length in columns[:2].T.tolist():
            if spans and spans[-1][1] == start:
                spans[-1][1] = start + length + 1
            else:
                spans.append([start, start + length + 1])
        state = {}
        for name in self._names:
            column = getattr(self, name)
            state[name] = torch.cat([column[start:end] for start, end in spans] or [column[:0]])
        counters = [self._episodes.first, self._episodes.end, self._next_row]
        return state | {"episodes": columns, "imitation": imitation, "counters": torch.tensor(counters)}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; of a state since another, that other must be loaded before,
        unless the buffer is new and nothing of that other was kept.

        Raises:
            ValueError: the saved rows do not fit into this buffer, or do not follow what it holds.
        """
        columns, imitation = state["episodes"], state["imitation"]
        first, end, next_row = state["counters"].tolist()
        last_row = int((columns[0] + columns[1]).max()) if columns.numel() else 0
        if last_row >= self.capacity or state["obs"].shape[1] != self.obs.shape[1]:
            raise ValueError(
                f"the saved replay has {last_row + 1} rows of width {state['obs'].shape[1]}, this one {self.capacity} "
                f"of width {self.obs.shape[1]}: replay_capacity or model.obs_dim was changed"
            )
        since = end - columns.shape[1]
        # The first of several may leave out what had been dropped by the time of the last.
        if since <= first or not self.num_added:
            self._episodes = EpisodeTable(self.horizon, self._task_weights)
            self._episodes.first = self._episodes.end = since
        if self._episodes.end != since:
            raise ValueError(
                f"the saved replay goes on after episode {since}, this one ends with {self._episodes.end}: a save "
                "between the two is missing"
            )
        while self._episodes.first < min(first, self._episodes.end):
            self._episodes.drop_oldest()
        read = 0
        rows = {name: getattr(self, name) for name in self._names}
        for (start, length, task, terminated), weight in zip(columns.T.tolist(), imitation.tolist(), strict=True):
            for name, column in rows.items():
                column[start : start + length + 1] = state[name][read : read + length + 1]
            self._episodes.append(start, length, task, bool(terminated), weight)
            read += length + 1
        self._next_row = next_row

    def _check(self, given: dict[str, Tensor], length: int, task: int) -> None:
        num_tasks = math.inf if self._task_weights is None else len(self._task_weights)
        if not 0 <= task < num_tasks:
            raise ValueError(f"an episode came with task row {task}: expected at least 0 and below {num_tasks}")
        if len(given["obs"]) != length + 1 or len(given["reward"]) != length:
            raise ValueError(
                f"an episode of {length} actions needs {length + 1} observations and {length} rewards; "
                f"it came with {len(given['obs'])} and {len(given['reward'])}"
            )
        if length + 1 > self.capacity:
            raise ValueError(
                f"an episode of {length} transitions does not fit into a replay of {self.capacity} rows: raise "
                "replay_capacity"
            )
        for name, values in given.items():
            width, widest = values.shape[1:], getattr(self, name).shape[1:]
            if len(width) != len(widest) or width > widest:
                raise ValueError(
                    f"an episode of task row {task} has `{name}` of shape {tuple(values.shape)}; this replay takes at "
                    f"most {tuple(widest)} values per step"
                )
            finite = torch.isfinite(values)
            if not finite.all():
                step = int((~finite).reshape(len(values), -1).any(1).nonzero()[0])
                raise ValueError(
                    f"an episode of task row {task} holds a value of `{name}` that is not finite at step {step}; it "
                    "was not stored"
                )

    def _make_room(self, rows: int) -> int:
        """Free `rows` contiguous rows, dropping the oldest episodes that lie there, and return the first."""
        start, episodes = self._next_row, self._episodes
        if start + rows > self.capacity:
            # The tail of the ring is too short: episodes there are dropped too, since they are the oldest.
            while len(episodes) and episodes.oldest_start() >= start:
                episodes.drop_oldest()
            start = 0
        while len(episodes) and start <= episodes.oldest_start() < start + rows:
            episodes.drop_oldest()
        self._next_row = start + rows
        return start

    def _empty(self, batch_size: int, expert_actions: bool) -> Slices:
        """Return slices to be filled; without expert actions those are the executed ones."""
        steps, device, width = self.horizon, self.device, sum(self._widths)
        return Slices(
            torch.empty(steps + 1, batch_size, width, device=device),
            torch.empty(steps, batch_size, self._widths[1], device=device) if expert_actions else None,
            torch.empty(self._context, batch_size, width, device=device) if self._context else None,
            np.zeros((steps, batch_size), np.float32),
            np.empty(batch_size, np.int64),
            np.empty(batch_size, np.float32),
            np.empty(batch_size, np.int64),
        )

    def _fill(self, slices: Slices, first: int, num: int, generator: torch.Generator) -> None:
        """Draw `num` slices and put them at `first` and behind."""
        drawn = self._episodes.draw(num, generator)
        at = slice(first, first + num)
        slices.terminated[-1, at], slices.task[at], slices.imitation[at] = drawn.terminated, drawn.task, drawn.imitation
        rows = drawn.start + self._offsets  # (T + 1, num)
        gather(self._tensors["rows"], rows, slices.rows, at)
        if slices.expert_action is not None:
            if "expert_action" in self._tensors:
                gather(self.expert_action, rows[:-1], slices.expert_action, at)
            else:
                slices.expert_action[:, at] = slices.rows[:-1, at, self._widths[0] : -1]
        if slices.past is not None:
            # What would lie before the episode is its first row again: any finite values do.
            rows = drawn.start + np.maximum(self._past_offsets, -drawn.before)  # (W, num)
            gather(self._tensors["rows"], rows, slices.past, at)
            slices.past_length[at] = drawn.before.clip(max=self._context)

    def _batch(self, slices: Slices) -> Batch:
        rows, (obs_dim, action_dim, _) = slices.rows, self._widths
        done = rows.narrow(0, 0, self.horizon)
        action = done.narrow(2, obs_dim, action_dim)
        expert_action = action if slices.expert_action is None else slices.expert_action
        known = (slices.terminated, slices.task, slices.imitation, slices.past_length)
        *rest, length = (torch.from_numpy(part).to(self.device) for part in known)
        past = None
        if slices.past is not None:
            past = Past(slices.past.narrow(2, 0, obs_dim), slices.past.narrow(2, obs_dim, action_dim), length)
        return Batch(rows.narrow(2, 0, obs_dim), action, expert_action, done.select(2, -1), *rest, past=past)


def from_demos(
    episodes: list[tuple[int, Episode]],
    obs_dim: int,
    action_dim: int,
    horizon: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    task_weights: Tensor | None = None,
    context: int = 0,
) -> ReplayBuffer:
    """Put demonstrations into a buffer of exactly their size.

    Args:
        episodes: (row of the task table, episode) pairs.
        obs_dim: O.
        action_dim: A.
        horizon: T.
        device: of the buffer.
        folder: of the buffer.
        task_weights: of the buffer.
        context: of the buffer.

    Raises:
        ValueError: there are none, or one is wider than the padding or shorter than the horizon.
    """
    if not episodes:
        raise ValueError("there are no demonstrations to learn from: run `dvc repro demos` and see demos.episodes")
    rows = sum(len(episode.obs) for _, episode in episodes)
    buffer = ReplayBuffer(rows, obs_dim, action_dim, horizon, True, device, folder, task_weights, context=context)
    for task, episode in episodes:
        if episode.obs.shape[1] > obs_dim or episode.action.shape[1] > action_dim:
            raise ValueError(
                f"a demonstration of {episode.task} has {episode.obs.shape[1]} observation and "
                f"{episode.action.shape[1]} action dims; model.obs_dim is {obs_dim} and model.action_dim {action_dim}: "
                "raise them"
            )
        stored = buffer.add(
            torch.from_numpy(episode.obs),
            torch.from_numpy(episode.action),
            torch.from_numpy(episode.reward),
            episode.terminated,
            task,
            torch.from_numpy(episode.expert_action),
        )
        if not stored:
            raise ValueError(
                f"a demonstration of {episode.task} has {len(episode.action)} steps, planner.horizon is {horizon}: "
                "lower the horizon or leave the task out"
            )
    return buffer


def sample_mixture(
    first: ReplayBuffer, second: ReplayBuffer, batch_size: int, fraction: float, generator: torch.Generator
) -> Batch:
    """Draw `fraction` of the batch from `first` and the rest from `second`, e.g. demonstrations and online data.

    Both are copied straight into the batch, which is on the device of both.

    Raises:
        ValueError: a share is no whole number of slices.
    """
    count = round(batch_size * fraction)
    if abs(count - batch_size * fraction) > 1e-6:
        raise ValueError(
            f"a batch of {batch_size} cannot be split {fraction:.0%} to {1 - fraction:.0%}: {fraction} x "
            f"{batch_size} = {batch_size * fraction:g} slices is no whole number; change the batch size"
        )
    if count == batch_size:
        return first.sample(batch_size, generator)
    if count == 0:
        return second.sample(batch_size, generator)
    slices = first._empty(batch_size, expert_actions=True)
    first._fill(slices, 0, count, generator)
    second._fill(slices, count, batch_size - count, generator)
    return first._batch(slices)
