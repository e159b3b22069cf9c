"""Acting for some of the environments, while others rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.model.actor import Actor
from tests.tiny import TINY_PLANNER

HISTORY = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=24, backbone="shared")
DIMS = {"prev_mean": 1, "is_first": 0, "past_obs": 1, "past_action": 1, "past_length": 0}
ROWS = torch.arange(3)


@pytest.mark.parametrize("plan", [True, False, torch.tensor([False, True])])
@pytest.mark.parametrize("history", [None, HISTORY])
def test_a_part_acts_as_if_alone_and_the_others_keep_everything(
    history: config.History | None, plan: bool | torch.Tensor
) -> None:
    sizes = replace(TINY, history=history)
    actor, alone = (Actor(make_model(sizes), make_table(), TINY_PLANNER) for _ in range(2))
    draw = torch.Generator().manual_seed(3)
    seen = [torch.randn(3, TINY.obs_dim, generator=draw) for _ in range(5)]
    actor.reset(3, seed=1)
    alone.reset(2, seed=1)
    actor.act(seen[0], ROWS, True, True, 0.5)
    actor.begin_episodes(torch.tensor([False, True, True]))
    before, part = actor.state_tensors(), torch.tensor([0, 2])
    alone.load_state_tensors(
        {name: value.index_select(DIMS[name], part) if name in DIMS else value for name, value in before.items()}
    )
    kept = {name: before[name].select(dim, 1).clone() for name, dim in DIMS.items() if name in before}
    for obs in seen[1:]:
        action, log_prob = actor.explore(obs[part], ROWS[part], plan, torch.tensor([0.5, 0.0]), part)
        expected, its_log_prob = alone.explore(obs[part], ROWS[part], plan, torch.tensor([0.5, 0.0]))
        assert torch.equal(action, expected)
        assert torch.equal(log_prob, its_log_prob)
    after = actor.state_tensors()
    assert all(torch.equal(after[name].select(DIMS[name], 1), value) for name, value in kept.items())
    for name, value in alone.state_tensors().items():
        assert torch.equal(after[name].index_select(DIMS[name], part) if name in DIMS else after[name], value), name


def test_observations_of_others_than_those_asked_are_refused() -> None:
    actor = Actor(make_model(), make_table(), TINY_PLANNER)
    actor.reset(3, seed=1)
    with pytest.raises(ValueError, match="3 observations and 3 task rows came for 2 environments"):
        actor.act(torch.zeros(3, TINY.obs_dim), ROWS, True, envs=torch.tensor([0, 1]))
