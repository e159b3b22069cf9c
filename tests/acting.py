"""What every actor must do, whatever its system."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.problem import TINY
from pipeline.model.actor import Actor


def check_a_part_acts_as_if_alone(actor: Actor, alone: Actor, plan: bool | Tensor) -> None:
    """Of three environments the first and the last act: as two alone would, and the other keeps all that it had.

    Args:
        actor, alone: the same, not reset; they know three tasks or more.
        plan: whether to plan; for each of the two environments, or for both.
    """
    draw, rows, dims = torch.Generator().manual_seed(3), torch.arange(3), actor.ENV_DIMS
    seen = [torch.randn(3, TINY.obs_dim, generator=draw) for _ in range(5)]
    actor.reset(3, seed=1)
    alone.reset(2, seed=1)
    actor.act(seen[0], rows, True, True, 0.5)
    actor.begin_episodes(torch.tensor([False, True, True]))
    before, part = actor.state_tensors(), torch.tensor([0, 2])
    assert before.keys() == dims.keys() | {"generator"}
    alone.load_state_tensors(
        {name: value.index_select(dims[name], part) if name in dims else value for name, value in before.items()}
    )
    kept = {name: before[name].select(dim, 1).clone() for name, dim in dims.items()}
    for obs in seen[1:]:
        action = actor.act(obs[part], rows[part], plan, True, torch.tensor([0.5, 0.0]), part)
        assert torch.equal(action, alone.act(obs[part], rows[part], plan, True, torch.tensor([0.5, 0.0])))
    after = actor.state_tensors()
    assert all(torch.equal(after[name].select(dims[name], 1), value) for name, value in kept.items())
    for name, value in alone.state_tensors().items():
        assert torch.equal(after[name].index_select(dims[name], part) if name in dims else after[name], value), name
