"""Stopping early: what the scores say, and whose weights are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.problem import LEARNING, make_model, make_table
from pipeline import config
from pipeline.learn.early_stop import EarlyStop
from pipeline.learn.evaluator import Result
from pipeline.learn.learner import Learner
from pipeline.learn.training_run import TrainingRun
from pipeline.model.actor import Actor
from pipeline.model.task_table import FREE, POLICY, TIED, TaskTable
from pipeline.model.world_model import WorldModel
from tests.tiny import TINY_PLANNER


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([], False),
        ([0.2, 0.9], True),  # good enough
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.5], True),  # twice no new best
        ([0.5, 0.4, 0.6], False),
    ],
)
def test_when_it_stops(tmp_path: Path, scores: list[float], stops: bool):
    assert EarlyStop(make_model(), make_table(), tmp_path / "best", stop_score=0.9, patience=2).reached(scores) == stops


def test_the_best_weights_come_back_of_equal_ones_the_latest(tmp_path: Path):
    model, table, heard = make_model(), make_table(), []
    model.encoder.requires_grad_(False)
    stop = EarlyStop(model, table, tmp_path / "best.safetensors", 1.0, 9, lambda: heard.append(1))
    stop.restore()  # nothing was evaluated, nothing changes
    bias, frozen = model.reward_head[0].linear.bias, model.encoder[0].linear.bias
    target = model.target_q_heads[0][0].linear.bias
    scores: list[float] = []
    for value, score in enumerate([0.3, 0.6, 0.6, 0.5]):
        with torch.no_grad():
            for tensor in (bias, frozen, target):
                tensor.fill_(float(value))
        table.constraint[1] = {0.6: POLICY, 0.5: FREE}.get(score, TIED)
        scores.append(score)
        assert not stop.evaluated(scores)
    stop.restore()
    assert (bias == 2).all()
    assert table.constraint.tolist()[:2] == [TIED, POLICY]
    assert (target == 2).all()
    assert (frozen == 3).all()
    assert len(heard) == 4


@pytest.mark.parametrize(
    ("scores", "stops", "kept"),
    [
        ([1.0], False, 0),  # what was there before ends nothing
        ([1.0, 0.9, 0.8], False, 1),  # by chance better than what was learned
        ([0.9, 0.2, 0.3, 0.1], False, 0),  # only harmed
        ([0.9, 0.2, 0.7, 0.3], False, 2),  # recovered
        ([0.9, 0.2, 0.1, 0.2], True, 0),
        ([0.5, 1.0], True, 1),
    ],
)
def test_what_was_there_before_comes_back_if_learning_only_did_harm(
    tmp_path: Path, scores: list[float], stops: bool, kept: int
):
    model, table = make_model(), make_table()
    stop = EarlyStop(model, table, tmp_path / "best.safetensors", 1.0, 2, start_episodes=10)
    bias = model.reward_head[0].linear.bias
    for number in range(len(scores)):
        with torch.no_grad():
            bias.fill_(float(number))
        stopped = stop.evaluated(scores[: number + 1])
    assert stopped == stop.reached(scores) == stops
    stop.restore()
    assert (bias == kept).all()


class Judge:
    """Stands in for an evaluator: scores of the policy and of plans are given, and it is noted how plans were made."""

    def __init__(self, table: TaskTable, alone: dict[str, float], planned: dict[str, float]):
        self.table, self.scores, self.planned_by = table, (alone, planned), {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, actor, told, plan, *_) -> list[Result]:
        if plan:
            self.planned_by = {name: int(self.table.constraint[self.table.names.index(name)]) for name in told}
        return [Result([self.scores[plan][name]], [0.0]) for name in told]


def judged_run(folder: Path, judge: Judge, model: WorldModel, stop: EarlyStop | None = None) -> TrainingRun:
    """Return a run whose evaluations are the judge's."""
    learner, actor = Learner(model, judge.table, LEARNING), Actor(model, judge.table, TINY_PLANNER)
    runtime = config.Runtime(
        device="cpu", threads=1, env_workers=0, precision="fp32", accumulate=1, keep_saves=1, stop_seconds=0,
        trackers=(), replay="memory", matmul="torch", plan_products="float32",
    )  # fmt: skip
    settings = config.load(config.Pretrain, "tests/tiny.yaml")
    specs = [SimpleNamespace(name=name) for name in judge.table.names]
    return TrainingRun("adapt", folder, learner, actor, settings, specs, judge, runtime, 1, True, stop)  # type: ignore[arg-type]


def test_an_evaluation_decides_whether_the_policy_does_better_alone(tmp_path: Path):
    table, model = make_table(), make_model()
    table.constraint.copy_(torch.tensor([POLICY, FREE, FREE]))
    names = table.names
    judge = Judge(table, dict(zip(names, [0.4, 0.9, 0.5], strict=True)), dict(zip(names, [0.6, 0.2, 0.5], strict=True)))
    stop = EarlyStop(model, table, tmp_path / "best.safetensors", 1.0, 9)
    with judged_run(tmp_path, judge, model, stop) as run:
        assert run.evaluate()
    assert judge.planned_by == dict(zip(names, [TIED, FREE, FREE], strict=True))  # what was given up is tried again
    assert table.constraint.tolist() == [TIED, POLICY, POLICY]
    assert run.scores == [pytest.approx((0.6 + 0.9 + 0.5) / 3)]


def test_without_early_stop_plans_are_judged_at_the_last_evaluation_alone(tmp_path: Path):
    table, model = make_table(), make_model()
    names = table.names
    judge = Judge(table, dict(zip(names, [0.4, 0.9, 0.5], strict=True)), dict(zip(names, [0.6, 0.2, 0.5], strict=True)))
    with judged_run(tmp_path, judge, model) as run:
        assert run.evaluate()
        assert not judge.planned_by
        run.position = run.total
        assert run.evaluate()
    assert table.constraint.tolist() == [TIED, POLICY, POLICY]
    assert run.scores == [pytest.approx(0.6)] * 2  # of the policy, by position


def test_returns_tell_equal_scores_apart():
    policy, plan = Result([1.0, 1.0], [90.0, 110.0]), Result([1.0, 1.0], [100.0, 104.0])
    assert plan.better_than(policy)
    assert not policy.better_than(plan)
    assert not plan.better_than(plan)
    assert policy.better_than(Result([0.9, 1.0], [100.0, 104.0]))  # 0.05 of the score outweighs 2 % of the return
    assert Result([0.6], [100.0]).better_than(Result([0.5], [180.0]))  # and any difference of returns, here 0.044
    assert Result([1.0], [-0.01]).better_than(Result([0.0], [0.01]))
    assert Result([0.0], [-1.0]).better_than(Result([0.0], [-3.0]))
    assert not Result([0.0], [0.0]).better_than(Result([0.0], [0.0]))
