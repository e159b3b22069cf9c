"""Nothing that a GPU would have to be waited for in an update or a plan, and no more operations than the budget."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.operations import BUDGET, Operations, a_plan, an_update, count
from benchmarks.problem import TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner, Mode
from pipeline.model.actor import Actor
from pipeline.shapes import Batch
from tests.tiny import TINY_PLANNER


def test_the_mode_sees_what_it_is_to_see() -> None:
    x = torch.arange(3.0)
    for read in (lambda: float(x.sum()), lambda: x[x > 1], x.nonzero, lambda: torch.unique(x), lambda: bool(x.any()),
                 lambda: x.masked_select(x > 1), lambda: torch.equal(x, x)):  # fmt: skip
        with Operations() as found:
            read()
        assert found.reads, read
    with Operations() as found:
        x[torch.arange(2)].sum()
    assert not found.reads
    assert not found.made
    assert found.counted == {"arange": 1, "index": 1, "sum": 1}


def learn(mode: Mode, learning: config.Learning, batch: Batch, learner: Learner) -> None:
    learner.learning = learning
    draw = torch.Generator().manual_seed(0)
    learner.update(batch, mode, draw)
    with Operations() as found:
        learner.update(batch, mode, draw)
    assert not found.reads
    assert not found.made


@pytest.mark.parametrize("mode", ["pretrain", "online"])
@pytest.mark.parametrize("value_target", ["td", "returns"])
@pytest.mark.parametrize("unknown", [False, True])
def test_an_update_at_default_options_reads_nothing(mode: Mode, value_target: str, unknown: bool) -> None:
    learning = dataclasses.replace(config.load(config.Learning), value_target=value_target)
    table = make_table()
    batch = make_batch(table)
    if unknown:
        batch.reward[:, 2] = torch.nan
    if value_target == "returns":
        batch = batch._replace(value_target=batch.reward.clone())
    learn(mode, learning, batch, Learner(make_model(), table, learning))


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("who", ["all", "some", "none", "by the table"])
def test_a_step_of_acting_reads_nothing(explore: bool, who: str) -> None:
    table = make_table()
    table.constraint[1] = 0  # by the policy alone
    actor = Actor(make_model(), table, TINY_PLANNER)
    actor.reset(4, seed=0)
    obs, rows = torch.randn(4, TINY.obs_dim), torch.tensor([0, 1, 2, 1])
    plan = {"all": True, "some": torch.tensor([True, False, True, True]), "none": False, "by the table": True}[who]
    weight = None if who == "by the table" else torch.ones(4)
    actor.act(obs, rows, plan, explore, weight)
    begun = torch.tensor([True, False, False, False])
    with Operations() as found:
        actor.act(obs, rows, plan, explore, weight)
        actor.begin_episodes(begun)
        actor.refresh()
        actor.act(obs, rows, plan, explore, weight)
    assert not found.reads


@pytest.mark.parametrize("name", ["plan", "update"])
def test_what_a_gpu_is_given_stays_within_the_budget(name: str) -> None:
    found = count({"plan": a_plan(), "update": an_update()}[name])
    assert not found.reads
    assert found.total <= BUDGET[name], found.counted.most_common(30)
