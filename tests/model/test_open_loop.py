"""Acting without feedback: between two plans nothing that is observed counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.problem import TINY, make_model, make_table
from pipeline.model.actor import Actor
from pipeline.model.open_loop import OpenLoopActor
from pipeline.model.task_table import FREE, POLICY
from tests.tiny import TINY_PLANNER


def observations(seed: int) -> torch.Tensor:
    return torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(seed))


def act(seen: list[int], steps: int = 3, ended_at: int | None = None) -> torch.Tensor:
    """Return the actions (len(seen), N, A) after observing what these seeds say."""
    table = make_table()
    table.constraint[0], table.constraint[1] = POLICY, FREE
    actor = OpenLoopActor(Actor(make_model(), table, TINY_PLANNER), steps, horizon=5)
    actor.reset(3, seed=7)
    actions = []
    for number, seed in enumerate(seen):
        if number == ended_at:
            actor.begin_episodes(torch.tensor([False, True, False]))
        actions.append(actor.act(observations(seed), torch.arange(3)))
    return torch.stack(actions)


def test_what_is_seen_counts_only_when_it_plans():
    first, second = act([0, 1, 2, 3, 4]), act([0, 8, 9, 3, 8])
    assert torch.equal(first, second)
    assert not torch.equal(first[3:], act([0, 1, 2, 9, 4])[3:])
    assert first.abs().max() <= 1
    assert not (first * (1 - make_table().action_mask)).any()
    # The steps of one plan differ: it is a sequence, not one action repeated.
    assert not torch.equal(first[0], first[1])


def test_an_episode_that_begins_is_planned_anew_alone():
    going_on, ended = act([0, 1, 2]), act([0, 1, 2], ended_at=1)
    assert torch.equal(going_on[:, [0, 2]], ended[:, [0, 2]])
    assert not torch.equal(going_on[1, 1], ended[1, 1])


def test_more_steps_than_planned_are_refused():
    with pytest.raises(ValueError, match="1 to 5 can be executed, not 6"):
        act([0], steps=6)
