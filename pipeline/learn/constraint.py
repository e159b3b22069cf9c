"""How far the planner may leave the policy while episodes are collected: by a schedule, or by measured evidence.

Both answer `choose`, get every finished episode by `record`, and are saved and resumed with the run.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.collector import Finished
from pipeline.model.task_table import POLICY, TIED, TaskTable

_DOUBT = (0.0, 0.15, 0.3)  # how much worse than the policy each constraint is believed to score before it was tried
_FIRST_EPISODES = 2  # of a task that the policy plays alone before anything else is tried
_PRIOR_STD, _PRIOR_EPISODES = 0.2, 2.0  # what is believed of the spread of scores before it was seen
_SMALLEST_VARIANCE = 1e-4


def constraint_weight(env_steps: int, constraint_steps: int, constraint_decay: int) -> float:
    """Return the weight in [0, 1] by which a plan starts from the policy: 1, then falling linearly to 0.

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
    """The published rule: the policy alone while seeding, then plans whose tie to it falls with time, all tasks alike.

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
        """Learn nothing from an episode."""

    def publish(self, table: TaskTable) -> Tensor | None:
        """Leave the table's constraints as they are; the value counts fully for every task."""

    def metrics(self) -> dict[str, float]:
        """Return nothing to be logged."""
        return {}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return nothing: all follows from the environment steps made."""
        return {}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""


class Evidence:
    """Ours: each episode is played under one of three constraints, chosen by the scores that each has reached.

    A task's episodes are played by the policy alone, by plans tied to it, or by free ones. Of each, the mean score is
    believed to lie around what recent episodes scored, the more surely the more of them; what was not tried yet is
    believed to be worse than the policy. A constraint is drawn as often as it is probably the best of the three
    (Thompson sampling). So the policy goes on where planning harms, as it does where a centimetre counts, a planner
    that is better takes over within a few episodes, and what nothing can improve is hardly put at risk. For the same
    reason the policy maximises the value, by which plans are made, only on tasks where plans did better (`publish`).

    Args:
        rows: (N,) row of the task table of each environment of the run, on whichever rank it is: all ranks get all
            episodes and decide alike.
        names: the tasks of the table.
        window: episodes of a task after which old ones have faded; the model and the policy change meanwhile.
        seed: of the draws.

    Source: Thompson sampling with a Gaussian posterior of pooled variance, Russo et al. (arXiv 1707.02038).
    """

    def __init__(self, rows: Tensor, names: tuple[str, ...], window: int, seed: int):
        self._rows, self._names, self._fading = rows.tolist(), names, 1 - 1 / window
        self._sums = torch.zeros(len(names), 3, 3, dtype=torch.float64)  # episodes, scores, squared scores
        self._playing = torch.full((len(rows),), POLICY)
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, env_steps: int, seeded: bool) -> tuple[Tensor, Tensor]:
        """Return who plans (N,) bool and the weight (N,) by which their plans start from the policy."""
        return self._playing != POLICY, (self._playing == TIED).float()

    def record(self, episode: Finished, seeded: bool) -> None:
        """Count a finished episode, and draw the constraint of the next one in its environment."""
        row, score = self._rows[episode.env], episode.score
        self._sums[row] *= self._fading
        played = int(self._playing[episode.env])
        self._sums[row, played] += torch.tensor([1.0, score, score**2], dtype=torch.float64)
        self._playing[episode.env] = self._draw(row) if seeded else POLICY

    def publish(self, table: TaskTable) -> Tensor | None:
        """Write the constraint that is believed best into the table, for every task that was played.

        Returns:
            (n,) weight of the value in each task's policy loss: 0 where plans by it have not done better than the
            policy, which then learns from what was done well alone; else 1.
        """
        rows = [row for row in sorted(set(self._rows)) if float(self._sums[row, :, 0].sum()) > 0]
        best = [POLICY if self._too_early(row) else int(np.argmax(self.beliefs(row)[0])) for row in rows]
        table.constraint[rows] = torch.tensor(best, dtype=torch.long, device=table.constraint.device)
        return (table.constraint != POLICY).float()

    def metrics(self) -> dict[str, float]:
        """Return each task's weight: the share of its recent episodes that the policy played alone."""
        shares = self._sums[:, :, 0] / self._sums[:, :, 0].sum(1, keepdim=True).clamp(min=1e-9)
        return {
            f"constraint/{self._names[row]}": float(shares[row, POLICY])
            for row in sorted(set(self._rows))
            if float(self._sums[row, :, 0].sum()) > 0
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what was measured, what is being played and the random state, for a bit-for-bit resume."""
        return {"sums": self._sums, "playing": self._playing, "generator": self._generator.get_state()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._sums, self._playing = state["sums"].clone(), state["playing"].clone()
        self._generator.set_state(state["generator"])

    def beliefs(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and std (3,) of what is believed of a task's mean score under each constraint."""
        episodes, scores, squares = self._sums[row].numpy().T
        played = np.maximum(episodes, 1e-9)
        within = np.maximum(squares - scores**2 / played, 0).sum()
        variance = (within + _PRIOR_EPISODES * _PRIOR_STD**2) / (episodes.sum() + _PRIOR_EPISODES)
        variance = max(variance, _SMALLEST_VARIANCE)
        prior = scores[POLICY] / played[POLICY] - np.array(_DOUBT)
        weight = np.array([0.0, 1.0, 1.0])  # of the prior, in episodes
        mean = (scores + weight * prior) / (played + weight)
        return mean, np.sqrt(variance / (played + weight))

    def _too_early(self, row: int) -> bool:
        return float(self._sums[row, :, 0].sum()) < _FIRST_EPISODES * self._fading

    def _draw(self, row: int) -> int:
        if self._too_early(row):
            return POLICY
        mean, std = self.beliefs(row)
        return int(np.argmax(mean + std * torch.randn(3, generator=self._generator, dtype=torch.float64).numpy()))


def make_constraint(
    settings: config.Finetune, rows: Tensor, names: tuple[str, ...], seed: int, plan: bool = True
) -> Schedule | Evidence:
    """Return the rule that `finetune.constraint` names, for environments of these rows (N,) of the task table.

    With `plan` false there is nothing to choose: the policy plays alone.
    """
    if settings.constraint == "schedule" or not plan:
        return Schedule(settings, len(rows), plan)
    return Evidence(rows, names, settings.evidence_memory, seed)
