"""What Q should be: lambda-returns of whole stored episodes, computed anew now and then.

A target network that follows by `tau` lets values reach no more than 1 - exp(-tau (1 - discount) U) of the return after
U updates: a third of it in a short run. Returns of whole episodes are right from the first update on.

Source: TD(lambda), Sutton 1988; on whole episodes of a replay buffer, Daley and Amato (arXiv 1810.09967).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.learn.learner import Learner
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.training_run import TrainingRun

_ROWS = 4096  # observations that are valued at once
_LOW, _HIGH = 0.05, 0.95  # percentiles of a task's returns, whose distance is its value scale


def lambda_returns(reward: np.ndarray, value: np.ndarray, terminated: bool, discount: float, lam: float) -> np.ndarray:
    """Return r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1}) of every step of an episode, (L,).

    Args:
        reward: (L,); of NaN, where it is unknown, nothing but NaN follows.
        value: (L + 1,) of the states before each step and after the last.
        terminated: whether the episode ended for good: nothing comes after it; else its last value does.
        discount: gamma.
        lam: lambda; 1 are the rewards alone, with the value after the last step.
    """
    result, following = np.empty(len(reward)), 0.0 if terminated else float(value[-1])
    next_value = value[1:].astype(np.float64)
    next_value[-1] = following
    for t in reversed(range(len(reward))):
        following = reward[t] + discount * ((1 - lam) * next_value[t] + lam * following)
        result[t] = following
    return result


class Returns:
    """Keeps the value targets of replays, and the value scale of each task, up to date.

    Args:
        learner: whose target Q values states; its value scale becomes one per task.
        replays: with `keep_value_targets`.
    """

    def __init__(self, learner: Learner, replays: Sequence[ReplayBuffer]):
        self._learner, self._replays = learner, replays
        self._labelled_at = -1  # updates made when all were computed

    def relabel_if_due(self) -> None:
        """Compute all targets, at first and whenever `relabel_every` updates were made."""
        every = self._learner.learning.relabel_every
        if self._labelled_at < 0 or self._learner.updates // every != self._labelled_at // every:
            self.relabel()

    def forget(self) -> None:
        """Compute all targets anew before the next update."""
        self._labelled_at = -1

    def relabel(self) -> None:
        """Compute the targets of every stored episode, and the range of each task's; every rank calls this."""
        self._labelled_at = self._learner.updates
        found: dict[int, list[np.ndarray]] = {}
        for replay in self._replays:
            episodes = replay.index_tensors()["episodes"].T.tolist()
            for group in _groups(episodes):
                for (start, _, task, _), values in zip(group, self._returns(replay, group), strict=True):
                    replay.set_value_targets(start, torch.from_numpy(values).float())
                    if not np.isnan(values).all():  # else its rewards are unknown
                        found.setdefault(task, []).append(values)
        ranges = {task: _range(np.concatenate(parts)) for task, parts in found.items()}
        everyone = self._learner.ranks.collect(ranges)
        for task in sorted({task for one in everyone for task in one}):
            widths, steps = zip(*(one[task] for one in everyone if task in one), strict=True)
            self._learner.value_scale[task] = max(float(np.average(widths, weights=steps)), 1.0)

    def of_episode(self, obs: Tensor, reward: Tensor, terminated: bool, task: int) -> Tensor:
        """Return the targets (L,) of an episode of observations (L + 1, O) and rewards (L,)."""
        (values,) = self._values([obs], [task])
        return torch.from_numpy(self._lambda_returns(reward.numpy(), values, terminated, task)).float()

    def _returns(self, replay: ReplayBuffer, episodes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        spans = [slice(start, start + length + 1) for start, length, _, _ in episodes]
        values = self._values([replay.obs[span] for span in spans], [task for _, _, task, _ in episodes])
        return [
            self._lambda_returns(replay.reward[span][:-1].cpu().numpy(), value, bool(terminated), task)
            for span, value, (_, _, task, terminated) in zip(spans, values, episodes, strict=True)
        ]

    def _lambda_returns(self, reward: np.ndarray, value: np.ndarray, terminated: bool, task: int) -> np.ndarray:
        discount = float(self._learner.table.discount[task])
        return lambda_returns(reward, value, terminated, discount, self._learner.learning.return_lambda)

    @torch.no_grad()
    def _values(self, obs: Sequence[Tensor], tasks: Sequence[int]) -> list[np.ndarray]:
        """Return the values (L + 1,) of the states of some episodes: target Q of the policy's action there."""
        learner, device = self._learner, self._learner.table.discount.device
        lengths = [len(one) for one in obs]
        rows = torch.tensor(tasks).repeat_interleave(torch.tensor(lengths)).to(device)
        ctx = learner.model.context(learner.table, rows, q=())
        z, _ = learner.model.begin(torch.cat(list(obs)).to(device), ctx)
        value = learner.value(z, ctx)
        return [part.cpu().numpy() for part in value.split(lengths)]


def _range(returns: np.ndarray) -> tuple[float, int]:
    """Return how far the high returns lie above the low ones, and how many there are."""
    low, high = np.quantile(returns, [_LOW, _HIGH])
    return float(high - low), len(returns)


def _groups(episodes: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Split (start, length, task, terminated) of episodes into groups of about `_ROWS` observations."""
    groups: list[list[Sequence[int]]] = [[]]
    for episode in episodes:
        if groups[-1] and sum(one[1] + 1 for one in groups[-1]) + episode[1] > _ROWS:
            groups.append([])
        groups[-1].append(episode)
    return groups if groups[0] else []


def kept_returns(run: TrainingRun, replays: Sequence[ReplayBuffer]) -> Returns | None:
    """Let a run keep the value targets of its replays; None where Q has others (`learning.value_target`)."""
    if run.learner.learning.value_target == "td":
        return None
    returns = Returns(run.learner, replays)
    # Targets are not saved: a resumed run begins by computing them.
    run.before_update, run.on_save = returns.relabel_if_due, returns.forget
    return returns
