"""What the model expects of the step it takes, and how far its Q members agree about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.known_tasks import KnownTasks, Told
from pipeline.model import products
from pipeline.model.math import decode
from pipeline.model.task_table import POLICY

if TYPE_CHECKING:
    from pipeline.agent import Agent


class Forecast(NamedTuple):
    """What the model expects from here on."""

    value: float  # predicted discounted return: rewards along the plan, then Q at its end
    spread: float  # standard deviation of the Q members at the action taken, as a part of their mean
    planned: bool  # it follows a plan; else the policy
    discount: float  # of what the agent was told


@torch.no_grad()
def forecast(agent: Agent, obs: np.ndarray, action: np.ndarray, told: Mapping[str, Any], plan: bool) -> Forecast | None:
    """Return what the model expected when it chose `action` (a,) at `obs` (o,), right after `agent.act` did so.

    Args:
        agent: acts in one environment.
        obs: what it saw.
        action: what it did.
        told: the task or instruction, as given to `agent.act`.
        plan: it was asked to plan.

    Returns:
        None for a model that observes images, or reads earlier steps, which have gone on since.
    """
    actor, adapters = agent.actor, agent.actor.adapters
    name = told.get("task") or _row(agent, told, len(obs))
    if agent.vision or actor.past(None) is not None or name not in agent.table.names:
        return None
    row = actor.rows([name])
    active = adapters.acting(name if name in adapters.names else None) if adapters and adapters.names else nullcontext()
    model = agent.model
    widths = model.config.obs_dim - len(obs), model.config.action_dim - len(action)
    seen = torch.from_numpy(np.pad(obs, (0, widths[0])).astype(np.float32)).to(agent.device).unsqueeze(0)
    first = torch.from_numpy(np.pad(action, (0, widths[1])).astype(np.float32)).to(agent.device).unsqueeze(0)
    with products.use(actor.mode), active:
        ctx = model.context(agent.table, row.to(agent.device), target_q=())
        planned = plan and int(agent.table.constraint[row]) != POLICY
        later = actor.state_tensors()["prev_mean"][1:] if planned else None
        z, _ = model.begin(seen, ctx)
        members = decode(model.q(z, first, ctx), model.bins).flatten()  # (M,)
        value = _rollout(agent, ctx, z, first, later)
    spread = float(members.std() / members.mean().abs().clamp_min(1e-3)) if len(members) > 1 else 0.0
    return Forecast(float(value), spread, planned, float(ctx.discount))


def _rollout(agent: Agent, ctx: Any, z: Tensor, first: Tensor, later: Tensor | None) -> Tensor:
    """Return the discounted return of an action and the ones that are to follow it, those of the plan or the policy."""
    model, horizon = agent.model, agent.planner.horizon
    total, weight, action, carry = torch.zeros_like(ctx.discount), torch.ones_like(ctx.discount), first, None
    for step in range(horizon):
        if step:
            action = model.policy(z, ctx).mean.tanh() if later is None else later[step - 1].to(z.dtype)
        total = total + weight * decode(model.reward(z, action, ctx), model.bins)
        z, carry = model.next(z, action, ctx, carry)
        weight = weight * ctx.discount
    end = model.policy(z, ctx).mean.tanh()
    return total + weight * decode(model.q(z, end, ctx), model.bins).mean(0)


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


def _row(agent: Agent, told: Mapping[str, Any], obs_dim: int) -> str:
    """Return the name of the row of the task table that an instruction has."""
    known = KnownTasks(agent.tasks, agent.embeddings, agent.table, len(agent.tasks))
    return known.understand(Told(None, told["instruction"], told["action_dim"]), obs_dim).name
