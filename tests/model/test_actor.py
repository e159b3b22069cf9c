"""Acting for some of the environments, while others rest."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problem import TINY, make_model, make_table
from pipeline.model.actor import Actor
from tests.tiny import TINY_PLANNER

DIMS = Actor.ENV_DIMS
ROWS = torch.arange(3)


@pytest.mark.parametrize("plan", [True, False, torch.tensor([False, True])])
def test_a_part_acts_as_if_alone_and_the_others_keep_everything(plan: bool | torch.Tensor) -> None:
    actor, alone = (Actor(make_model(), make_table(), TINY_PLANNER) for _ in range(2))
    draw = torch.Generator().manual_seed(3)
    seen = [torch.randn(3, TINY.obs_dim, generator=draw) for _ in range(5)]
    actor.reset(3, seed=1)
    alone.reset(2, seed=1)
    actor.act(seen[0], ROWS, True, True, 0.5)
    actor.begin_episodes(torch.tensor([False, True, True]))
    before, part = actor.state_tensors(), torch.tensor([0, 2])
    assert before.keys() == DIMS.keys() | {"generator"}
    alone.load_state_tensors(
        {name: value.index_select(DIMS[name], part) if name in DIMS else value for name, value in before.items()}
    )
    kept = {name: before[name].select(dim, 1).clone() for name, dim in DIMS.items()}
    for obs in seen[1:]:
        action = actor.act(obs[part], ROWS[part], plan, True, torch.tensor([0.5, 0.0]), part)
        assert torch.equal(action, alone.act(obs[part], ROWS[part], plan, True, torch.tensor([0.5, 0.0])))
    after = actor.state_tensors()
    assert all(torch.equal(after[name].select(DIMS[name], 1), value) for name, value in kept.items())
    for name, value in alone.state_tensors().items():
        assert torch.equal(after[name].index_select(DIMS[name], part) if name in DIMS else after[name], value), name


def test_observations_of_others_than_those_asked_are_refused() -> None:
    actor = Actor(make_model(), make_table(), TINY_PLANNER)
    actor.reset(3, seed=1)
    with pytest.raises(ValueError, match="3 observations and 3 task rows came for 2 environments"):
        actor.act(torch.zeros(3, TINY.obs_dim), ROWS, True, envs=torch.tensor([0, 1]))
