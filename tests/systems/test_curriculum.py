"""Stages of training: what moves in each, what the optimisers keep, when a stage begins, which tasks rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.model.task_table import TaskTable
from pipeline.systems.scalezero.curriculum import Curriculum
from pipeline.systems.scalezero.staged_lora import ScaledMatrix, StagedLora
from tests.systems.test_staged_lora import SCALING

ADAPTER = "parametrizations.weight.0"


def make_learner(settings: config.Scaling = SCALING, seed: int = 0) -> Learner:
    return of(settings, make_table(), seed)._learner


def of(settings: config.Scaling, table: TaskTable, seed: int = 0) -> Curriculum:
    """The curriculum of a new learner."""
    model = make_model(seed=seed)
    found = Curriculum(StagedLora(model, settings, seed=1), table.names)
    Learner(model, table, LEARNING, extensions=[found])
    return found


def enter(learner: Learner, stage: int) -> None:
    (curriculum,) = learner.extensions
    assert isinstance(curriculum, Curriculum)
    curriculum._enter(stage)


def train(learner: Learner, updates: range) -> None:
    for i in updates:
        learner.update(make_batch(learner.table, seed=i), "online", torch.Generator().manual_seed(i))


def moved(learner: Learner, updates: range) -> set[str]:
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    train(learner, updates)
    return {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}


def declared(learner: Learner, stage: int) -> set[str]:
    """What is to move in a stage, by the names in the saved state, for scaled dynamics."""
    names = set(learner.model.state_dict())
    scaled = {name for name in names if name.startswith("dynamics.")}
    adapters = {name for name in scaled if f"{ADAPTER}." in name}
    if stage == 0:
        return names - adapters
    trained = {f"{ADAPTER}.A.{stage - 1}", f"{ADAPTER}.B.{stage - 1}"}
    trained |= {f"{ADAPTER}.logits.{j}" for j in range(stage)}
    return names - scaled | {name for name in adapters if any(name.endswith(end) for end in trained)}


def test_exactly_the_declared_parameters_move_in_every_stage() -> None:
    learner = make_learner()
    for stage in range(4):
        if stage:
            enter(learner, stage)
        expected = declared(learner, stage)
        assert moved(learner, range(5 * stage, 5 * stage + 2)) == expected, stage
        if stage:
            assert f"dynamics.0.linear.{ADAPTER}.logits.0" in expected  # a_0
            assert f"dynamics.0.linear.{ADAPTER}.B.{stage - 1}" in expected


def test_all_that_trains_is_in_an_optimiser_and_nothing_else() -> None:
    learner = make_learner(replace(SCALING, parts=("dynamics", "policy", "q")))
    for stage in range(3):
        if stage:
            enter(learner, stage)
        held = {parameter for _, _, parameter in learner.optimizers.parameters()}
        train(learner, range(1))  # each of whose steps holds still for a while what the other one moves
        assert held == {parameter for parameter in learner.model.parameters() if parameter.requires_grad}
        metrics = learner.extensions.metrics()
        assert metrics["scaling/trainable_parameters"] == sum(parameter.numel() for parameter in held)


def test_moments_stay_where_training_goes_on_and_go_where_it_ends() -> None:
    learner = make_learner()
    train(learner, range(2))
    before = {name: value.clone() for name, value in state_tensors(learner).items()}
    enter(learner, 1)
    after = state_tensors(learner)
    of_model = learner.model.state_dict().keys() | {f"model.{name}" for name in learner.model.state_dict()}
    frozen = {name for name in before.keys() - after.keys() if name not in of_model}
    assert frozen
    assert all(".dynamics." in name for name in frozen)
    kept = {name for name in after if name.endswith((".exp_avg", ".exp_avg_sq", ".step"))}
    assert kept
    assert not any(".dynamics." in name for name in kept)
    assert all(torch.equal(after[name], before[name]) for name in kept)


def test_target_q_goes_on_following_what_was_frozen() -> None:
    learner = make_learner(replace(SCALING, parts=("q",)))
    train(learner, range(2))
    enter(learner, 1)
    key = "q_heads.0.1.linear.parametrizations.weight.original"

    def gap() -> float:
        state = learner.model.state_dict()
        return float((state[key] - state[f"target_{key}"]).abs().max())

    before = gap()
    train(learner, range(2, 6))
    assert 0 < gap() < before


def test_resuming_in_a_stage_is_bit_equal(tmp_path: Path) -> None:
    straight = make_learner()
    train(straight, range(2))
    enter(straight, 1)
    train(straight, range(2, 4))
    save_file({name: value.clone() for name, value in state_tensors(straight).items()}, tmp_path / "state.safetensors")
    train(straight, range(4, 6))
    resumed = make_learner(seed=9)
    load_state_tensors(resumed, load_file(tmp_path / "state.safetensors"))
    assert resumed.extensions.metrics()["scaling/stage"] == 1
    train(resumed, range(4, 6))
    expected, found = state_tensors(straight), state_tensors(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("other", [replace(SCALING, rank=3), replace(SCALING, adapters=2), None])
def test_a_save_of_other_adapters_is_refused(other: config.Scaling | None) -> None:
    state = state_tensors(make_learner())
    learner = make_learner(other) if other else Learner(make_model(), make_table(), LEARNING)
    with pytest.raises(ValueError, match="the saved state is of another model: dynamics"):
        load_state_tensors(learner, state)


def test_each_sum_is_computed_once_per_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner()
    enter(learner, 1)
    calls, forward = [], ScaledMatrix.forward

    def count(self: ScaledMatrix, weight: torch.Tensor) -> torch.Tensor:
        calls.append(id(self))
        return forward(self, weight)

    monkeypatch.setattr(ScaledMatrix, "forward", count)
    batch = make_batch(learner.table)
    learner.update(batch, "pretrain", torch.Generator().manual_seed(0))
    assert len(calls) == len(set(calls)) == 3


# --- when a stage begins ----------------------------------------------------------------------------------------------

TASKS = [f"task-{i}" for i in range(6)]


def make_curriculum(**changes: object) -> Curriculum:
    return of(replace(SCALING, **changes), make_table(num_tasks=6))  # type: ignore[arg-type]


def evaluated(curriculum: Curriculum, *solved: int, **scores: float) -> list[str]:
    """Let the curriculum know scores of its tasks; return its lines."""
    found = {task: 0.9 if i in solved else 0.5 for i, task in enumerate(TASKS)}
    _, lines = curriculum.on_evaluation(found | {f"task-{name[1:]}": score for name, score in scores.items()})
    return lines


def stage_of(curriculum: Curriculum) -> float:
    return curriculum.metrics()["scaling/stage"]


def test_a_stage_begins_once_its_share_of_the_unsolved_is_newly_solved() -> None:
    curriculum = make_curriculum()
    evaluated(curriculum, 0)  # solved before anything was learned: five are left for three adapters
    assert (stage_of(curriculum), curriculum.solved) == (0, {"task-0"})
    evaluated(curriculum, 0, 1)
    assert stage_of(curriculum) == 0
    lines = evaluated(curriculum, 0, 1, 2)  # two of five
    assert stage_of(curriculum) == 1
    assert "stage 1 of 3 begins: 2 of 5 tasks newly solved" in lines[-1]
    evaluated(curriculum, 0, 1, 2, 3)  # three were left for two adapters: two are needed
    assert stage_of(curriculum) == 1
    evaluated(curriculum, 0, 1, 2, 3, 4)
    assert stage_of(curriculum) == 2
    assert any(map(curriculum.plays, TASKS))
    evaluated(curriculum, *range(6))
    assert not any(map(curriculum.plays, TASKS))
    assert curriculum.summary() == {"stage": 3, "solved": TASKS}


def test_a_stage_begins_after_so_many_updates_and_the_last_one_stays() -> None:
    curriculum = make_curriculum()
    learner = curriculum._learner
    begun = []
    for _ in range(12):
        learner.updates += 1
        begun += [learner.updates] if curriculum.after_update() else []
    assert begun == [3, 5, 7]  # first_stage_updates 3, stage_updates 2
    assert stage_of(curriculum) == 3
    evaluated(curriculum)
    evaluated(curriculum, *range(5))
    assert stage_of(curriculum) == 3


def test_a_solved_task_comes_back_below_its_target() -> None:
    curriculum = make_curriculum(targets={"task-1": 0.4}, slack=0.1)
    evaluated(curriculum, 0)
    assert curriculum.solved == {"task-0", "task-1"}
    assert [curriculum.plays(task) for task in ("task-0", "task-0", "task-2")] == [False, False, True]
    evaluated(curriculum, _0=0.8, _1=0.31)  # within the slack
    assert curriculum.solved == {"task-0", "task-1"}
    metrics, lines = curriculum.on_evaluation(dict.fromkeys(TASKS, 0.5) | {"task-0": 0.79, "task-1": 0.31})
    assert curriculum.solved == {"task-1"}
    assert lines == ["task-0 comes back (0.79, target 0.9)"]
    assert metrics["solved/task-0"] == 0
    assert metrics["scaling/solved_sum"] == metrics["solved/task-1"] == 1


def test_one_task_solved_again_and_again_is_not_newly_solved_twice() -> None:
    curriculum = make_curriculum()
    for solved in [(0,), (), (0,), (), (0,), (0, 1)]:
        evaluated(curriculum, *solved)
    assert stage_of(curriculum) == 0


def test_its_state_is_resumed(tmp_path: Path) -> None:
    first, second = make_curriculum(), make_curriculum()
    for solved in [(0,), (0, 1), (0, 1, 2)]:
        evaluated(first, *solved)
    first._learner.updates = 4
    save_file(state_tensors(first._learner), tmp_path / "state.safetensors")
    load_state_tensors(second._learner, load_file(tmp_path / "state.safetensors"))
    assert stage_of(second) == 1
    assert second.solved == first.solved == {"task-0", "task-1", "task-2"}
    for curriculum in (first, second):
        evaluated(curriculum, 0, 1, 2, 3)
    expected, found = first.state_tensors(), second.state_tensors()
    assert found.keys() == expected.keys() == {"stage", "began", "solved", "open"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_before_the_first_evaluation_nothing_counts_as_unsolved_after_resuming_either() -> None:
    first, second = make_curriculum(), make_curriculum()
    load_state_tensors(second._learner, {name: value.clone() for name, value in state_tensors(first._learner).items()})
    assert "open" not in second.state_tensors()
    for curriculum in (first, second):
        evaluated(curriculum, *range(5))  # all of them were solved before anything was learned
        assert stage_of(curriculum) == 0


def test_a_target_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="targets names 'task-9', which is not in tasks.train. Did you mean"):
        make_curriculum(targets={"task-9": 0.5})
