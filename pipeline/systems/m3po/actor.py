"""Acting that keeps how likely each action was."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.actor import Actor
from pipeline.model.math import Policy
from pipeline.model.planner import Plan
from pipeline.model.world_model import TaskContext
from pipeline.systems.m3po.density import plan_log_prob, policy_log_prob


class M3poActor(Actor):
    """An actor whose `columns` hold `log_prob` (N,) of the last actions, under the plan or policy that chose them.

    Only actions with noise have one: `columns` is empty after a step without exploring.
    """

    def acted(
        self,
        obs: Tensor,
        action: Tensor,
        envs: Tensor | None,
        ctx: TaskContext,
        planned: Tensor,
        plan: Plan | None,
        policy: Policy | None,
        explore: bool,
    ) -> None:
        """Compute the log-probabilities of what was chosen."""
        super().acted(obs, action, envs, ctx, planned, plan, policy, explore)
        self.columns = {}
        if explore:
            log_prob = torch.zeros(len(action), device=self.device)
            if policy is not None:
                log_prob = policy_log_prob(policy, policy.action, ctx.action_mask)
            if plan is not None:
                of_plan = plan_log_prob(plan.elites, plan.weights, plan.std[0], plan.action, ctx.action_mask)
                log_prob = torch.where(planned, of_plan, log_prob)
            self.columns = {"log_prob": log_prob.cpu()}
