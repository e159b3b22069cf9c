"""Open-loop control: the first steps of a long plan are executed without new observations."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pipeline.model.actor import Actor
from pipeline.model.task_table import FREE


class OpenLoopActor(Actor):
    """Plans every `steps` steps from the present observation, and in between executes the plan.

    A model that reads past steps gets none, since those in between were not observed.

    Args:
        actor: its model, tasks and planner settings are used.
        steps: how many of each plan are executed.
        horizon: of the plans, at least `steps`.

    Source: Newt (arXiv 2511.19584), its experiments on open-loop control.
    """

    def __init__(self, actor: Actor, steps: int, horizon: int):
        if not 1 <= steps <= horizon:
            raise ValueError(f"of plans over {horizon} steps, 1 to {horizon} can be executed, not {steps}.")
        planner = dataclasses.replace(actor.planner, horizon=horizon)
        super().__init__(actor.model, actor.table, planner, actor.mode, actor.adapters)
        self.steps = steps

    def reset(self, num_envs: int, seed: int) -> None:
        """Begin an episode in each of `num_envs` environments; what is drawn from here on follows from `seed`."""
        super().reset(num_envs, seed)
        self._executed = torch.full((num_envs,), self.steps)
        self._planned = self._prev_mean.clone()  # (T, N, A)

    def begin_episodes(self, which: Tensor) -> None:
        """Plan anew in the environments where `which` (N,) bool is true."""
        super().begin_episodes(which)
        self._executed[which] = self.steps

    def act(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor = True,
        explore: bool = False,
        constraint_weight: float | Tensor | None = None,
        envs: Tensor | None = None,
    ) -> Tensor:
        """Return the next action (N, A) of each environment's plan; arguments as in `Actor.act`."""
        due = self._executed >= self.steps
        if due.any():
            self._is_first[:] = True  # no warm start from a plan that was executed
            if constraint_weight is None:
                constraint_weight = (self.table.constraint[rows.cpu()] != FREE).float()
            super().act(obs, rows, True, explore, constraint_weight)
            self._planned[:, due] = self._prev_mean[:, due]
            self._executed[due] = 0
        action = self._planned[self._executed, torch.arange(len(rows))]
        self._executed += 1
        return action.cpu()
