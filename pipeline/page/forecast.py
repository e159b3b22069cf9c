"""What the model expects of the step it takes, and how far its Q members agree about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.model.math import decode
from pipeline.model.planner import Plan, still_alive
from pipeline.model.world_model import TaskContext

if TYPE_CHECKING:
    from pipeline.agent import Agent


class Forecast(NamedTuple):
    """What the model expects from here on."""

    value: float  # predicted discounted return: rewards along the plan, then Q at its end
    spread: float  # standard deviation of the Q members at the action taken, as a part of their mean
    planned: bool  # it follows a plan; else the policy
    discount: float  # of what the agent was told


@contextmanager
def forecasting(agent: Agent) -> Iterator[list[Forecast]]:
    """Within it, the list that is yielded gets what the model expects of each step of `agent.act`, in one environment.

    It reads what the actor reads: the image's vector among the observations, and the steps before.
    """
    actor, found = agent.actor, list[Forecast]()
    own = actor.acted

    def acted(
        obs: Tensor, action: Tensor, envs: Any, ctx: TaskContext, planned: Tensor, plan: Plan | None, *rest: Any
    ) -> None:
        found.append(_forecast(agent, obs, action, ctx, actor.past(envs), plan))
        own(obs, action, envs, ctx, planned, plan, *rest)

    vars(actor)["acted"] = acted  # for a while, before the method of its class
    try:
        yield found
    finally:
        del vars(actor)["acted"]


@contextmanager
def driven(agent: Agent, action: np.ndarray) -> Iterator[None]:
    """Within it, the agent takes note of a hand's `action` (a,) as what was done, whatever it would do itself."""
    actor = agent.actor
    own = actor.acted

    def acted(obs: Tensor, its: Tensor, *rest: Any) -> None:
        done = torch.zeros_like(its)
        done[0, : len(action)] = torch.from_numpy(action).to(its)
        own(obs, done, *rest)

    vars(actor)["acted"] = acted
    try:
        yield
    finally:
        del vars(actor)["acted"]


def _forecast(agent: Agent, obs: Tensor, action: Tensor, ctx: TaskContext, past: Any, plan: Plan | None) -> Forecast:
    """Return what is expected at obs (1, O) when action (1, A) is taken, and then the plan's or the policy's."""
    model, horizon, later = agent.model, agent.planner.horizon, None if plan is None else plan.mean[1:]
    z, carry = model.begin(obs, ctx, past)
    members = decode(model.q(z, action, ctx), model.bins).flatten()  # (M,)
    spread = float(members.std() / members.mean().abs().clamp_min(1e-3)) if len(members) > 1 else 0.0
    total, weight, alive = torch.zeros_like(ctx.discount), torch.ones_like(ctx.discount), None
    for step in range(horizon):
        if step:
            action = model.policy(z, ctx).mean.tanh() if later is None else later[step - 1].to(z.dtype)
        reward = decode(model.reward(z, action, ctx), model.bins)
        total = total + weight * (reward if alive is None else alive * reward)
        alive = still_alive(model, ctx, z, action, alive)
        z, carry = model.next(z, action, ctx, carry)
        weight = weight * ctx.discount
    last = decode(model.q(z, model.policy(z, ctx).mean.tanh(), ctx), model.bins).mean(0)
    value = total + weight * (last if alive is None else alive * last)
    return Forecast(float(value), spread, plan is not None, float(ctx.discount))


def came(values: Sequence[float], rewards: Sequence[float], discount: float, terminated: bool) -> np.ndarray:
    """Return the discounted return (L,) that followed each step: the rewards since, then the latest prediction.

    Args:
        values: (L,) predicted at each step.
        rewards: (L,) of each step.
        discount: of the task.
        terminated: the episode ended for good, so that nothing follows.
    """
    followed = np.zeros(len(values))
    for step in range(len(values) - 1, -1, -1):
        if step == len(values) - 1:  # the latest prediction was made before the last step, whose reward it holds
            followed[step] = rewards[step] if terminated else values[step]
        else:
            followed[step] = rewards[step] + discount * followed[step + 1]
    return followed
