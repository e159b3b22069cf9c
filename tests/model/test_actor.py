"""Acting for some of the environments, while others rest."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problem import TINY, make_model, make_table
from pipeline.model.actor import Actor
from tests.acting import check_a_part_acts_as_if_alone
from tests.tiny import TINY_PLANNER

ROWS = torch.arange(3)


@pytest.mark.parametrize("plan", [True, False, torch.tensor([False, True])])
def test_a_part_acts_as_if_alone_and_the_others_keep_everything(plan: bool | torch.Tensor) -> None:
    actor, alone = (Actor(make_model(), make_table(), TINY_PLANNER) for _ in range(2))
    check_a_part_acts_as_if_alone(actor, alone, plan)


def test_observations_of_others_than_those_asked_are_refused() -> None:
    actor = Actor(make_model(), make_table(), TINY_PLANNER)
    actor.reset(3, seed=1)
    with pytest.raises(ValueError, match="3 observations and 3 task rows came for 2 environments"):
        actor.act(torch.zeros(3, TINY.obs_dim), ROWS, True, envs=torch.tensor([0, 1]))


def test_only_who_plans_is_planned_for_and_as_if_alone() -> None:
    actor, other = (Actor(make_model(), make_table(), TINY_PLANNER) for _ in range(2))
    obs, rows = torch.randn(4, TINY.obs_dim, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1])
    planned = torch.tensor([False, True, False, True])
    for one, num in ((actor, 4), (other, 2)):
        one.reset(num, seed=3)
    for _ in range(2):
        mixed = actor.act(obs, rows, planned, constraint_weight=torch.tensor([0.0, 1.0, 0.5, 0.0]))
        alone = other.act(obs[planned], rows[planned], True, constraint_weight=torch.tensor([1.0, 0.0]))
        torch.testing.assert_close(mixed[planned], alone)
        policy = actor.act(obs, rows, False)
        torch.testing.assert_close(mixed[~planned], policy[~planned])


def test_what_was_intended_is_the_action_without_noise() -> None:
    actor = Actor(make_model(), make_table(), TINY_PLANNER)
    obs, rows = torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    actor.reset(3, seed=3)
    noisy = actor.act(obs, rows, False, explore=True)
    intended = actor.intended
    assert not torch.equal(noisy, intended)
    assert torch.equal(actor.act(obs, rows, False), intended)
