"""The replay written in the original's way: what the speed of `pipeline.learn.replay` is measured against.

Transitions lie one after the other with the number of their episode beside them, as in TorchRL's storages; each time a
batch is drawn, the boundaries of the episodes are found by scanning all that is stored, as its `SliceSampler` does.
The distribution is the same: the episode uniformly, then its start uniformly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.shapes import Batch


class PlainReplay:
    """Episodes in a ring of single transitions.

    Args:
        capacity: rows; an episode of L transitions takes L + 1.
        obs_dim: O.
        action_dim: A.
        horizon: T, transitions per slice.
    """

    def __init__(self, capacity: int, obs_dim: int, action_dim: int, horizon: int):
        self.capacity, self.horizon = capacity, horizon
        self.obs = torch.zeros(capacity, obs_dim)
        self.action = torch.zeros(capacity, action_dim)
        self.reward = torch.zeros(capacity)
        self.terminated = torch.zeros(capacity)
        self.task = torch.zeros(capacity, dtype=torch.int64)
        self.episode = torch.full((capacity,), -1)
        self.num_added = 0
        self.num_rows = 0  # rows in use
        self.next_row = 0

    def add(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: bool, task: int) -> None:
        """Store one whole episode, as `ReplayBuffer.add` does; it may wrap around the end of the ring."""
        length = len(action)
        rows = (self.next_row + torch.arange(length + 1)) % self.capacity
        self.obs[rows] = torch.nn.functional.pad(obs, (0, self.obs.shape[1] - obs.shape[1]))
        # A row's action and reward are those that led away from its observation; the last row has none.
        self.action[rows] = torch.nn.functional.pad(action, (0, self.action.shape[1] - action.shape[1], 0, 1))
        self.reward[rows] = torch.nn.functional.pad(reward, (0, 1))
        self.terminated[rows] = 0
        self.terminated[rows[-2]] = float(terminated)
        self.task[rows] = task
        self.episode[rows] = self.num_added
        self.num_added += 1
        self.num_rows = min(self.num_rows + length + 1, self.capacity)
        self.next_row = int(rows[-1] + 1) % self.capacity

    def sample(self, num: int, generator: torch.Generator) -> Batch:
        """Draw `num` slices."""
        start, length = self._boundaries()
        num_starts = length - self.horizon
        start, num_starts = start[num_starts > 0], num_starts[num_starts > 0]
        chosen = torch.randint(len(start), (num,), generator=generator)
        offset = (torch.rand(num, generator=generator) * num_starts[chosen]).floor().long()
        rows = (start[chosen] + offset).unsqueeze(1) + torch.arange(self.horizon + 1)
        rows = (rows % self.capacity).flatten()
        obs, action, reward, terminated, task = (
            column[rows].unflatten(0, (num, self.horizon + 1)).transpose(0, 1).contiguous()
            for column in (self.obs, self.action, self.reward, self.terminated, self.task)
        )
        return Batch(obs, action[:-1], action[:-1], reward[:-1], terminated[:-1], task[0], torch.ones(num))

    def _boundaries(self) -> tuple[Tensor, Tensor]:
        """Return first row and number of rows of every stored episode, the oldest one perhaps cut short."""
        episode = self.episode[: self.num_rows]
        end = torch.ones(self.num_rows, dtype=torch.bool)
        end[:-1] = episode[1:] != episode[:-1]
        if self.num_rows == self.capacity:
            end[-1] = episode[0] != episode[-1]
            end[self.next_row - 1] = True
        stop = end.nonzero().squeeze(1)
        start = (stop.roll(1) + 1) % self.num_rows
        return start, (stop - start) % self.num_rows + 1
