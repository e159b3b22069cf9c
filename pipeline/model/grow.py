"""Widening a world model in observations and actions without changing its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config
from pipeline.model.layers import MLP
from pipeline.model.world_model import WorldModel


def grow(
    model: WorldModel, obs_dim: int, action_dim: int, build: Callable[[config.Model], WorldModel] = WorldModel
) -> WorldModel:
    """Return a wider copy of a model without adapters.

    The weights of new observation and action dims are zero, and get gradients as soon as those inputs are not zero;
    the policy's new dims have mean 0. Zero-padded old inputs give the old outputs up to rounding: a product with more
    columns may be summed in another order.

    Args:
        model: the world model.
        obs_dim: O of the new one, at least that of `model`.
        action_dim: A of the new one, at least that of `model`.
        build: makes a world model of given sizes.

    Raises:
        ValueError: it would become narrower.
    """
    sizes = model.config
    if obs_dim < sizes.obs_dim or action_dim < sizes.action_dim:
        raise ValueError(
            f"the model has obs_dim {sizes.obs_dim} and action_dim {sizes.action_dim}: it can only grow, not shrink to "
            f"{obs_dim} and {action_dim}."
        )
    grown = build(dataclasses.replace(sizes, obs_dim=obs_dim, action_dim=action_dim))
    state = dict(model.state_dict())
    before = {name: module.widths for name, module in model.named_modules() if isinstance(module, MLP)}
    after = {name: module.widths for name, module in grown.named_modules() if isinstance(module, MLP)}
    for name, widths in before.items():
        key = f"{name}.0.linear.weight"  # over [x; e; a]
        parts = zip(state[key].split(widths, dim=1), after[name], strict=True)
        state[key] = torch.cat([F.pad(part, (0, width - part.shape[1])) for part, width in parts], dim=1)
    for name, module in model.named_modules():
        if isinstance(module, MLP) and name.split(".")[0] == "policy_head":
            for key in (f"{name}.{len(module) - 1}.linear.{part}" for part in ("weight", "bias")):
                state[key] = torch.cat([_more_rows(half, action_dim) for half in state[key].chunk(2)])  # mean, log-std
    grown.load_state_dict(state)
    return grown.to(model.bins.device).train(model.training)


def _more_rows(tensor: Tensor, rows: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])
