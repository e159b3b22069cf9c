"""A grown model: old inputs, padded, give old outputs; new dims begin without effect and learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from benchmarks.problem import TINY, make_model, make_table
from pipeline.model.grow import grow
from pipeline.model.math import decode
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel

WIDER = dataclasses.replace(TINY, obs_dim=TINY.obs_dim + 5, action_dim=TINY.action_dim + 2, termination=True)


def outputs(model: WorldModel, obs: torch.Tensor, action: torch.Tensor, table: TaskTable) -> list[torch.Tensor]:
    with torch.no_grad():
        ctx = model.context(table, torch.arange(3))
        z = model.encode(obs, ctx)
        policy = model.policy(z, ctx, torch.ones_like(table.action_mask))
        found = [z, model.next(z, action, ctx)[0], model.reward(z, action, ctx)]
        found += [model.q(z, action, ctx), model.q(z, action, ctx, target=True), model.termination(z, action, ctx)]
        found.append(decode(found[3], model.bins))
        return [*found, *(part[:, : TINY.action_dim] for part in (policy.mean, policy.log_std, policy.action))]


def test_old_inputs_give_old_outputs_and_new_ones_reach_gradients():
    model, table = make_model(dataclasses.replace(TINY, termination=True)), make_table()
    grown = grow(model, WIDER.obs_dim, WIDER.action_dim)
    assert grown.config == WIDER
    obs, action = torch.randn(3, TINY.obs_dim), torch.rand(3, TINY.action_dim)
    before = outputs(model, obs, action, table)
    wide = dataclasses.replace(table, action_mask=F.pad(table.action_mask, (0, 2)))
    after = outputs(grown, F.pad(obs, (0, 5)), F.pad(action, (0, 2)), wide)
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, rtol=1e-5, atol=1e-6)
    # What is observed in the new dims does not count yet, but can be learned.
    for old, new in zip(before, outputs(grown, F.pad(obs, (0, 5), value=2.0), F.pad(action, (0, 2)), wide)):  # noqa: B905
        assert torch.allclose(old, new, rtol=1e-5, atol=1e-6)
    ctx = grown.context(table, torch.arange(3))
    grown.encode(F.pad(obs, (0, 5), value=2.0), ctx).square().sum().backward()
    grad = grown.encoder[0].linear.weight.grad
    assert grad is not None
    assert (grad[:, TINY.obs_dim : WIDER.obs_dim] != 0).any()


def test_it_does_not_shrink():
    with pytest.raises(ValueError, match="can only grow"):
        grow(make_model(), TINY.obs_dim - 1, TINY.action_dim)
