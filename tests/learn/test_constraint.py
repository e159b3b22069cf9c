"""How far plans may leave the policy: measured scores decide, per task, and a resumed run decides alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.learn.collector import Finished
from pipeline.learn.constraint import Evidence, Schedule, constraint_weight, make_constraint
from pipeline.model.actor import Actor
from pipeline.model.task_table import CONSTRAINTS, FREE, POLICY, TIED
from tests.tiny import TINY_PLANNER

FINETUNE = config.load(config.Finetune, "tests/tiny.yaml")
REACH, SWING, SOLVED = range(3)
# Mean scores under each constraint: planning harms, planning helps, nothing is left to gain.
MEANS = torch.tensor([[0.97, 0.5, 0.3], [0.75, 0.98, 0.9], [1.0, 1.0, 1.0]], dtype=torch.float64)


def play(evidence: Evidence, episodes: int, seed: int = 0) -> torch.Tensor:
    """Play this many episodes of each task; return what each was played under (episodes, task)."""
    draw = torch.Generator().manual_seed(seed)
    played = torch.zeros(episodes, 3, dtype=torch.long)
    for number in range(episodes):
        plan, weight = evidence.choose(0, True)
        for env in range(3):
            constraint = POLICY if not plan[env] else TIED if weight[env] else FREE
            played[number, env] = constraint
            noise = 0.0 if env == SOLVED else 0.15 * float(torch.randn((), generator=draw))
            score = min(1.0, max(0.0, float(MEANS[env, constraint]) + noise))
            evidence.record(Finished(env, f"task-{env}", 0.0, score), True)
    return played


def make_evidence(seed: int = 0) -> Evidence:
    return Evidence(torch.arange(3), ("task-0", "task-1", "task-2"), 30, seed)


def test_the_policy_goes_on_where_planning_harms_and_the_planner_takes_over_where_it_helps():
    table, shares = make_table(), []
    for seed in range(10):
        evidence = make_evidence(seed)
        played = play(evidence, 60, seed)
        assert (played[:2] == POLICY).all()
        shares.append([(played[:, env] == POLICY).double().mean() for env in range(3)])
        q_weight = evidence.publish(table)
        assert q_weight is not None
        assert q_weight[REACH] == 0  # its value has promised more than plans by it have brought
        assert q_weight[SWING] == 1
        assert table.constraint[SWING] == TIED
        assert POLICY not in table.constraint  # whether the policy acts alone, evaluations say
        metrics = evidence.metrics()
        assert metrics["constraint/task-0"] > 0.7
        assert metrics["constraint/task-1"] < 0.4
    reach, swing, _ = torch.tensor(shares).mean(0)
    assert reach > 0.8
    assert swing < 0.35


def test_what_is_tried_costs_little():
    # Of a policy whose plans score half as much, the episodes played keep 95 % of its score, averaged over 30 of them.
    lost = []
    for seed in range(20):
        played = play(make_evidence(seed), 30, seed)[:, REACH]
        lost.append(1 - float(MEANS[REACH][played].mean() / MEANS[REACH, POLICY]))
    assert sum(lost) / len(lost) < 0.05


def test_it_is_resumed_in_the_middle_bit_for_bit():
    whole, first = make_evidence(), make_evidence()
    play(whole, 20)
    play(first, 20)
    resumed = make_evidence(seed=9)
    resumed.load_state_tensors({name: tensor.clone() for name, tensor in first.state_tensors().items()})
    assert torch.equal(play(whole, 20, 1), play(resumed, 20, 1))


def test_the_policy_plays_alone_until_all_are_seeded():
    evidence = make_evidence()
    for _ in range(10):
        evidence.record(Finished(0, "task-0", 0.0, 0.5), False)
        assert not evidence.choose(0, False)[0].any()


def test_both_rules_can_be_chosen():
    rows = torch.arange(3)
    names = ("a", "b", "c")
    assert isinstance(make_constraint(dataclasses.replace(FINETUNE, constraint="evidence"), rows, names, 0), Evidence)
    schedule = make_constraint(dataclasses.replace(FINETUNE, constraint="schedule"), rows, names, 0)
    assert isinstance(schedule, Schedule)
    assert schedule.publish(make_table()) is None
    plan, weight = schedule.choose(750, True)
    assert plan.tolist() == [True] * 3
    assert weight.tolist() == [0.5] * 3
    assert not schedule.choose(0, False)[0].any()


def test_the_weight_of_the_policy_in_a_plan_falls_linearly_to_0() -> None:
    assert [constraint_weight(step, 20, 100) for step in (0, 19, 20, 70, 120, 500)] == [1, 1, 1, 0.5, 0, 0]
    assert [constraint_weight(step, 20, 0) for step in (19, 20)] == [1, 0]


def test_where_nobody_plans_there_is_nothing_to_choose():
    evidence = dataclasses.replace(FINETUNE, constraint="evidence")
    constraint = make_constraint(evidence, torch.arange(3), ("a", "b", "c"), 0, plan=False)
    assert isinstance(constraint, Schedule)
    assert not constraint.choose(0, True)[0].any()


def test_the_policy_can_play_all_own_episodes():
    constraint = make_constraint(
        dataclasses.replace(FINETUNE, constraint="policy"), torch.arange(3), ("a", "b", "c"), 0
    )
    assert not constraint.choose(750, True)[0].any()


@pytest.mark.parametrize("explore", [False, True])
def test_under_the_constraint_policy_the_action_is_the_policy_s_own(explore: bool):
    model, table = make_model(), make_table()
    table.constraint[:] = torch.tensor([POLICY, TIED, FREE])
    obs, rows = torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(0)), torch.arange(3)

    def act(**options) -> torch.Tensor:
        actor = Actor(model, table, TINY_PLANNER)
        actor.reset(3, seed=1)
        return actor.act(obs, rows, explore=explore, **options)

    by_table = act(plan=True)
    told = act(plan=torch.tensor([False, True, True]), constraint_weight=torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(by_table, told)
    if not explore:
        assert torch.equal(by_table[POLICY], act(plan=False)[POLICY])
    assert not torch.equal(by_table[1:], act(plan=False)[1:])
    assert CONSTRAINTS[POLICY] == "policy"


def test_what_is_published_is_computed_for_tasks_that_have_changed_and_stands_for_all(monkeypatch: pytest.MonkeyPatch):
    table, evidence = make_table(), make_evidence()
    table.constraint[:] = FREE
    for number in range(12):
        evidence.record(Finished(REACH, "task-0", 0.0, 0.1 * (number % 4)), True)
    evidence.record(Finished(SWING, "task-1", 0.0, 0.5), True)
    first = evidence.publish(table)
    assert table.constraint[SOLVED] == FREE, "it was not played"
    published, asked = table.constraint.clone(), []
    beliefs = evidence.beliefs
    monkeypatch.setattr(evidence, "beliefs", lambda rows: asked.append(list(rows)) or beliefs(rows))
    table.constraint[:] = POLICY  # as an evaluation may say
    assert torch.equal(evidence.publish(table), first)
    assert table.constraint.tolist() == [*published[:SOLVED].tolist(), POLICY]
    assert asked == []
    evidence.record(Finished(SWING, "task-1", 0.0, 0.5), False)
    evidence.publish(table)
    assert asked == [[SWING]]
    other = make_evidence()
    other.load_state_tensors(evidence.state_tensors())
    assert torch.equal(other.publish(table), evidence.publish(table))
    means, stds = other.beliefs([REACH, SWING])
    assert [beliefs([row])[0][0].tolist() for row in (REACH, SWING)] == means.tolist()
    assert [beliefs([row])[1][0].tolist() for row in (REACH, SWING)] == stds.tolist()
