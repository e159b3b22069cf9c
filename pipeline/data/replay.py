"""Transitions as flat preallocated tensors; slices are found by index arithmetic, whatever is stored.

An episode of L steps takes L + 1 consecutive rows: row i holds observation i and what was done from it; the last row
holds the last observation and no action. Rows form a ring: a new episode overwrites the oldest ones, whole episodes at
a time, and never wraps around the end, so a slice is always contiguous.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.shapes import Batch

if TYPE_CHECKING:
    from pipeline.data.episode import Episode


class ReplayBuffer:
    """Episodes of many tasks, sampled in slices of `horizon` transitions.

    The distribution is the original's: the episode uniformly, then its start uniformly.

    Args:
        capacity: rows, i.e. transitions plus one row per episode.
        obs_dim: O, width observations are padded to.
        action_dim: A, width actions are padded to.
        horizon: T, transitions per slice.
        keep_expert_actions: also store what the expert intended; without it the executed action is imitated.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, horizon: int, keep_expert_actions: bool = False):
        if capacity <= horizon:
            raise ValueError(f"a replay of {capacity} rows cannot hold a slice of {horizon} transitions")
        self.capacity, self.horizon = capacity, horizon
        self.obs = torch.zeros(capacity, obs_dim)
        self.action = torch.zeros(capacity, action_dim)
        self.expert_action = torch.zeros(capacity, action_dim) if keep_expert_actions else self.action
        self.reward = torch.zeros(capacity)
        self.terminated = torch.zeros(capacity)
        # One entry per stored episode, oldest first; `_starts[i]` is its first row, `_lengths[i]` its transitions.
        self._starts: list[int] = []
        self._lengths: list[int] = []
        self._tasks: list[int] = []
        self._imitation: list[float] = []
        self._next_row = 0
        self._table = torch.empty(3, 0, dtype=torch.int64)  # starts, possible slice starts, tasks: what sampling reads
        self._imitation_table = torch.empty(0)
        self._offsets = torch.arange(horizon + 1).unsqueeze(1)

    @property
    def num_episodes(self) -> int:
        """Episodes stored."""
        return len(self._starts)

    @property
    def num_transitions(self) -> int:
        """Transitions stored."""
        return sum(self._lengths)

    def add(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        terminated: bool,
        task: int,
        expert_action: Tensor | None = None,
        imitation: float = 1.0,
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

        Returns:
            False if the episode is shorter than a slice and was left out.

        Raises:
            ValueError: the episode does not fit into the buffer, or holds values that are not finite.
        """
        length = len(action)
        if len(obs) != length + 1 or len(reward) != length:
            raise ValueError(
                f"an episode of {length} actions needs {length + 1} observations and {length} rewards; "
                f"it came with {len(obs)} and {len(reward)}"
            )
        if length < self.horizon:
            return False
        if length + 1 > self.capacity:
            raise ValueError(f"an episode of {length} transitions does not fit into a replay of {self.capacity} rows")
        for name, values in (("observation", obs), ("action", action), ("reward", reward)):
            if not torch.isfinite(values).all():
                raise ValueError(f"an episode of task row {task} holds a {name} that is not finite; it was not stored")
        start = self._make_room(length + 1)
        rows = slice(start, start + length)
        self.obs[start : start + length + 1] = 0
        self.obs[start : start + length + 1, : obs.shape[1]] = obs
        self.action[start : start + length + 1] = 0
        self.action[rows, : action.shape[1]] = action
        if expert_action is not None and self.expert_action is not self.action:
            self.expert_action[start : start + length + 1] = 0
            self.expert_action[rows, : expert_action.shape[1]] = expert_action
        self.reward[rows] = reward
        self.terminated[rows] = 0
        self.terminated[start + length - 1] = float(terminated)
        self._starts.append(start)
        self._lengths.append(length)
        self._tasks.append(task)
        self._imitation.append(imitation)
        self._refresh_table()
        return True

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw `batch_size` slices.

        Raises:
            ValueError: nothing is stored yet.
        """
        if not self._starts:
            raise ValueError("the replay holds no episode yet: nothing to sample from")
        starts, num_slices, tasks = self._table
        episode = torch.randint(len(starts), (batch_size,), generator=generator)
        offset = (torch.rand(batch_size, generator=generator, dtype=torch.float64) * num_slices[episode]).long()
        rows = starts[episode] + offset + self._offsets  # (T + 1, B)
        steps = rows[:-1]
        action = self.action[steps]
        same = self.expert_action is self.action
        return Batch(
            obs=self.obs[rows],
            action=action,
            expert_action=action if same else self.expert_action[steps],
            reward=self.reward[steps],
            terminated=self.terminated[steps],
            task=tasks[episode],
            imitation=self._imitation_table[episode],
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything needed to continue bit for bit, as tensors that safetensors can hold."""
        used = max((s + n + 1 for s, n in zip(self._starts, self._lengths, strict=True)), default=0)
        state = {name: getattr(self, name)[:used].contiguous() for name in ("obs", "action", "reward", "terminated")}
        if self.expert_action is not self.action:
            state["expert_action"] = self.expert_action[:used].contiguous()
        state["episodes"] = torch.tensor([self._starts, self._lengths, self._tasks], dtype=torch.int64).reshape(3, -1)
        state["imitation"] = self._imitation_table.clone()
        state["next_row"] = torch.tensor([self._next_row])
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned.

        Raises:
            ValueError: the saved rows do not fit into this buffer.
        """
        used = len(state["obs"])
        if used > self.capacity or state["obs"].shape[1] != self.obs.shape[1]:
            raise ValueError(
                f"the saved replay has {used} rows of width {state['obs'].shape[1]}, this one {self.capacity} "
                f"of width {self.obs.shape[1]}: replay_capacity or model.obs_dim was changed"
            )
        for name in ("obs", "action", "reward", "terminated"):
            getattr(self, name)[:used] = state[name]
        if self.expert_action is not self.action:
            self.expert_action[:used] = state["expert_action"]
        self._starts, self._lengths, self._tasks = state["episodes"].tolist()
        self._imitation = state["imitation"].tolist()
        self._next_row = int(state["next_row"])
        self._refresh_table()

    def _make_room(self, rows: int) -> int:
        """Free `rows` contiguous rows, dropping the oldest episodes that lie there, and return the first."""
        start = self._next_row
        if start + rows > self.capacity:
            # The tail of the ring is too short: episodes there are dropped too, since they are the oldest.
            while self._starts and self._starts[0] >= start:
                self._drop_oldest()
            start = 0
        while self._starts and start <= self._starts[0] < start + rows:
            self._drop_oldest()
        self._next_row = start + rows
        return start

    def _drop_oldest(self) -> None:
        for column in (self._starts, self._lengths, self._tasks, self._imitation):
            column.pop(0)

    def _refresh_table(self) -> None:
        starts = torch.tensor(self._starts)
        num_slices = torch.tensor(self._lengths) - self.horizon + 1
        self._table = torch.stack([starts, num_slices, torch.tensor(self._tasks)])
        self._imitation_table = torch.tensor(self._imitation)


def from_demos(episodes: list[tuple[int, Episode]], obs_dim: int, action_dim: int, horizon: int) -> ReplayBuffer:
    """Put demonstrations into a buffer of exactly their size.

    Args:
        episodes: (row of the task table, episode) pairs.
        obs_dim: O.
        action_dim: A.
        horizon: T.

    Raises:
        ValueError: there are none, or one is wider than the padding or shorter than the horizon.
    """
    if not episodes:
        raise ValueError("there are no demonstrations to learn from: run `dvc repro demos` and see demos.episodes")
    rows = sum(len(episode.obs) for _, episode in episodes)
    buffer = ReplayBuffer(rows, obs_dim, action_dim, horizon, keep_expert_actions=True)
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

    Raises:
        ValueError: one of the two gets no slice although its share is not 0.
    """
    count = round(batch_size * fraction)
    if count in (0, batch_size) and 0 < fraction < 1:
        raise ValueError(f"a batch of {batch_size} cannot be split {fraction:.0%} to {1 - fraction:.0%}: raise it")
    if count == batch_size:
        return first.sample(batch_size, generator)
    if count == 0:
        return second.sample(batch_size, generator)
    parts = zip(first.sample(count, generator), second.sample(batch_size - count, generator), strict=True)
    return Batch(*(torch.cat(pair, dim=min(1, pair[0].ndim - 1)) for pair in parts))
