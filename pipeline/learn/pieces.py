"""How many environments are planned for at once: as many as fit into a device's memory beside what is learned there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline import config
from pipeline.model.actor import Actor

# Of one plan. A device of 24 GB also holds, at size L, model and optimisers (0.5 GB), an update of 1,024 slices
# (2 GB), ten million transitions (6 GB), and what CUDA takes for itself (1 GB).
PLAN_BYTES = 8 * 2**30
_MEMBERS = 2  # of Q, that a plan averages
_LIVE = 7  # copies of a hidden layer at one time: input, product, LayerNorm, Mish and what it computes with


def plan_bytes(sizes: config.Model, planner: config.Planner) -> int:
    """Return the most bytes that a plan needs per environment: all random numbers, and its widest layer."""
    samples, width = planner.num_samples, max(sizes.mlp_dim, sizes.latent_dim, sizes.num_bins)
    draws = planner.iterations * samples * (planner.horizon + 1) * sizes.action_dim
    sequences = 3 * planner.horizon * samples * sizes.action_dim  # noise, the actions, and the elites among them
    hidden = _LIVE * _MEMBERS * samples * width + 4 * samples * sizes.latent_dim
    return 4 * (draws + sequences + hidden)


def pieces(num_envs: int, sizes: config.Model, planner: config.Planner) -> int:
    """Return in how many pieces to plan for `num_envs` environments.

    It follows from the sizes alone, not from the device: plans in other pieces draw other random numbers.
    """
    return max(1, math.ceil(num_envs * plan_bytes(sizes, planner) / PLAN_BYTES))


def act_in_pieces(actor: Actor, obs: Tensor, rows: Tensor, plan: bool) -> Tensor:
    """Choose actions (N, A) without exploring, as `Actor.act` does, planning for some environments after the other.

    Args:
        obs: (N, O)
        rows: (N,) rows of the task table.
        plan: plan, else use the policy alone, which takes no memory to speak of.
    """
    number = pieces(len(rows), actor.model.config, actor.planner) if plan else 1
    if number == 1:
        return actor.act(obs, rows, plan)
    parts = torch.arange(len(rows)).tensor_split(number)
    return torch.cat([actor.act(obs[part], rows[part], plan, envs=part) for part in parts])
