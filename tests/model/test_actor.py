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
