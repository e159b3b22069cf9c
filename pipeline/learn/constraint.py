"""Constrained planning while episodes are collected: by a schedule, or chosen per task by the scores reached.

The constraint says how closely plans follow the policy prior. Both classes have the same methods: `choose` before each
step, `record` for each finished episode, `publish` after that, and the state that is saved with the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.collector import Finished
from pipeline.model.task_table import FREE, POLICY, TIED, TaskTable

_DOUBT = (0.0, 0.15, 0.3)  # prior mean of each constraint's score (policy, tied, free): so much below the policy's
_FIRST_EPISODES = 2  # of a task that the policy plays alone before anything else is tried
_PRIOR_STD, _PRIOR_EPISODES = 0.2, 2.0  # prior of the scores' std, worth so many episodes
_SMALLEST_VARIANCE = 1e-4


def constraint_weight(env_steps: int, constraint_steps: int, constraint_decay: int) -> float:
    """Return the weight in [0, 1] of the policy in a plan's first mean and std: 1, then falling linearly to 0.

    Args:
        env_steps: environment steps made so far.
        constraint_steps: up to here the weight is 1.
        constraint_decay: it then falls to 0 over this many steps; 0 drops it at once.

    Source: Newt (arXiv 2511.19584), constrained planning.
    """
    if env_steps < constraint_steps:
        return 1.0
    if constraint_decay == 0:
        return 0.0
    return max(0.0, 1 - (env_steps - constraint_steps) / constraint_decay)


class Schedule:
    """The published rule, equal for all tasks: the policy alone while seeding, then plans by `constraint_weight`.

    With `plan` false the policy plays every episode alone.

    Source: Newt (arXiv 2511.19584), constrained planning.
    """

    def __init__(self, settings: config.Finetune, num_envs: int, plan: bool = True):
        self._settings, self._num_envs, self._plan = settings, num_envs, plan

    def choose(self, env_steps: int, seeded: bool) -> tuple[Tensor, Tensor]:
        """Return who plans (N,) bool and the weight (N,) by which their plans start from the policy."""
        weight = constraint_weight(env_steps, self._settings.constraint_steps, self._settings.constraint_decay)
        return torch.full((self._num_envs,), seeded and self._plan), torch.full((self._num_envs,), weight)

    def record(self, episode: Finished, seeded: bool) -> None:
        """Do nothing: a schedule does not depend on scores."""

    def publish(self, table: TaskTable) -> Tensor | None:
        """Leave the table's constraints as they are; None: the weight of Q is 1 for every task."""

    def metrics(self) -> dict[str, float]:
        """Return nothing to be logged."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return nothing: all follows from the environment steps made."""
        return {}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""


class Evidence:
    """Ours: a bandit per task with three arms: the policy alone, plans that start from its rollouts (tied), free plans.

    Each episode is played under one constraint, drawn by Thompson sampling: each arm has a Gaussian posterior of its
    mean score, from recent episodes, and one not yet tried is assumed to score below the policy (`_DOUBT`). So the
    policy keeps playing where planning scores worse, as on tasks that need centimetre precision, and a better planner
    takes over within a few episodes. Where plans, which maximise the model's values, score no better than the policy,
    those values are not trusted either: the policy does not maximise Q on such tasks (`publish`). All this is about
    collecting, where everybody acts with noise; whether the agent plans in the end, evaluations without noise decide.

    Args:
        rows: (N,) row of the task table of each environment of the run, on whichever rank it is: all ranks get all
            episodes and decide alike.
        names: the tasks of the table.
        window: episodes over which old scores are discounted, since the model and the policy change.
        seed: of the draws.

    Source: Thompson sampling with a Gaussian posterior of pooled variance, Russo et al. (arXiv 1707.02038).
    """

    def __init__(self, rows: Tensor, names: tuple[str, ...], window: int, seed: int):
        self._rows, self._names, self._fading = rows.tolist(), names, 1 - 1 / window
        self._sums = torch.zeros(len(names), 3, 3, dtype=torch.float64)  # episodes, scores, squared scores
        self._playing = torch.full((len(rows),), POLICY)
        self._generator = torch.Generator().manual_seed(seed)
        self._constraint, self._q_weight = torch.full((len(names),), TIED), torch.ones(len(names))  # as published
        self._changed: set[int] = set()  # rows with episodes that these do not count yet

    def choose(self, env_steps: int, seeded: bool) -> tuple[Tensor, Tensor]:
        """Return who plans (N,) bool and the weight (N,) by which their plans start from the policy."""
        return self._playing != POLICY, (self._playing == TIED).float()

    def record(self, episode: Finished, seeded: bool) -> None:
        """Count a finished episode, and draw the constraint of the next one in its environment."""
        row, score = self._rows[episode.env], episode.score
        sums, played = self._sums.numpy()[row], int(self._playing[episode.env])
        sums *= self._fading
        sums[played] += np.array([1.0, score, score**2])
        self._playing[episode.env] = self._draw(row) if seeded else POLICY
        self._changed.add(row)

    def publish(self, table: TaskTable) -> Tensor | None:
        """Write into the table how plans are made, tied or free by the higher posterior mean, for every task played.

        Only what has changed is computed: the tasks of which an episode has ended since.

        Returns:
            (n,) weight of Q in each task's policy loss: 0 where the policy alone has scored best, which then learns
            from the behaviour prior and entropy alone; else 1.
        """
        if rows := sorted(self._changed):
            means, _ = self.beliefs(rows)
            self._constraint[rows] = torch.from_numpy(np.where(means[:, FREE] > means[:, TIED], FREE, TIED))
            best = means.argmax(-1)
            self._q_weight[rows] = torch.from_numpy(~self._too_early(rows) & (best != POLICY)).float()
            self._changed.clear()
        # All tasks that were played: whatever else has written into the table meanwhile, as an evaluation may, goes.
        known = self._sums[:, :, 0].sum(1) > 0
        table.constraint.copy_(torch.where(known, self._constraint, table.constraint))  # in the processor's memory
        return self._q_weight.to(table.discount.device, copy=True)

    def metrics(self) -> dict[str, float]:
        """Return each task's weight: the share of its recent episodes that the policy played alone."""
        shares = self._sums[:, :, 0] / self._sums[:, :, 0].sum(1, keepdim=True).clamp(min=1e-9)
        return {
            f"constraint/{self._names[row]}": float(shares[row, POLICY])
            for row in sorted(set(self._rows))
            if float(self._sums[row, :, 0].sum()) > 0
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the scores, the constraint of each episode under way and the random state, to resume bit for bit."""
        return {"sums": self._sums, "playing": self._playing, "generator": self._generator.get_state()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._sums, self._playing = state["sums"].clone(), state["playing"].clone()
        self._generator.set_state(state["generator"])
        self._changed = set(torch.nonzero(self._sums[:, :, 0].sum(1)).flatten().tolist())

    def beliefs(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and std (k, 3) of the posterior of k tasks' mean scores under each constraint."""
        episodes, scores, squares = np.moveaxis(self._sums.numpy()[rows], -1, 0)
        played = np.maximum(episodes, 1e-9)
        within = np.maximum(squares - scores**2 / played, 0).sum(-1, keepdims=True)
        variance = (within + _PRIOR_EPISODES * _PRIOR_STD**2) / (episodes.sum(-1, keepdims=True) + _PRIOR_EPISODES)
        variance = np.maximum(variance, _SMALLEST_VARIANCE)
        prior = scores[:, [POLICY]] / played[:, [POLICY]] - np.array(_DOUBT)
        weight = np.array([0.0, 1.0, 1.0])  # of the prior, in episodes
        mean = (scores + weight * prior) / (played + weight)
        return mean, np.sqrt(variance / (played + weight))

    def _too_early(self, rows: Sequence[int]) -> np.ndarray:
        """Return which of k tasks (k,) have hardly been played."""
        return self._sums.numpy()[rows, :, 0].sum(-1) < _FIRST_EPISODES * self._fading

    def _draw(self, row: int) -> int:
        if self._too_early([row])[0]:
            return POLICY
        (mean,), (std,) = self.beliefs([row])
        return int(np.argmax(mean + std * torch.randn(3, generator=self._generator, dtype=torch.float64).numpy()))


def make_constraint(
    settings: config.Finetune, rows: Tensor, names: tuple[str, ...], seed: int, plan: bool = True
) -> Schedule | Evidence:
    """Return the rule that `finetune.constraint` names, for environments of these rows (N,) of the task table.

    With `policy`, or with `plan` false, there is nothing to choose: the policy plays alone.
    """
    if settings.constraint == "evidence" and plan:
        return Evidence(rows, names, settings.evidence_memory, seed)
    return Schedule(settings, len(rows), plan and settings.constraint == "schedule")
