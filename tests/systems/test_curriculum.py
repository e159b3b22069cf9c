"""Stages of training: what moves in each, what the optimisers keep, when a stage begins, which tasks rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from pipeline import config
from pipeline.model.scaling import Stages
from pipeline.train.curriculum import Curriculum
from pipeline.train.step import Learner
from tests.model.test_scaling import SCALING

ADAPTER = "parametrizations.weight.0"


def make_learner(settings: config.Scaling = SCALING, seed: int = 0) -> Learner:
    model = make_model(seed=seed)
    return Learner(model, make_table(), LEARNING, stages=Stages(model, settings, seed=1))


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
            learner.enter_stage(stage)
        expected = declared(learner, stage)
        assert moved(learner, range(5 * stage, 5 * stage + 2)) == expected, stage
        if stage:
            assert f"dynamics.0.linear.{ADAPTER}.logits.0" in expected  # a_0
            assert f"dynamics.0.linear.{ADAPTER}.B.{stage - 1}" in expected


def test_all_that_trains_is_in_an_optimiser_and_nothing_else() -> None:
    learner = make_learner(replace(SCALING, parts=("dynamics", "policy", "q")))
    for stage in range(3):
        if stage:
            learner.enter_stage(stage)
        groups = [*learner._model_optimizer.param_groups, *learner._policy_optimizer.param_groups]
        held = {parameter for group in groups for parameter in group["params"]}
        train(learner, range(1))  # each of whose steps holds still for a while what the other one moves
        assert held == {parameter for parameter in learner.model.parameters() if parameter.requires_grad}
        assert learner.stages is not None
        assert learner.stages.trainable_parameters == sum(parameter.numel() for parameter in held)


def test_moments_stay_where_training_goes_on_and_go_where_it_ends() -> None:
    learner = make_learner()
    train(learner, range(2))
    before = {name: value.clone() for name, value in learner.state_tensors().items()}
    learner.enter_stage(1)
    after = learner.state_tensors()
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
    learner.enter_stage(1)
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
    straight.enter_stage(1)
    train(straight, range(2, 4))
    save_file({name: value.clone() for name, value in straight.state_tensors().items()}, tmp_path / "state.safetensors")
    train(straight, range(4, 6))
    resumed = make_learner(seed=9)
    resumed.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    assert resumed.stages is not None
    assert resumed.stages.stage == 1
    train(resumed, range(4, 6))
    expected, found = straight.state_tensors(), resumed.state_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("other", [replace(SCALING, rank=3), replace(SCALING, adapters=2), None])
def test_a_save_of_other_adapters_is_refused(other: config.Scaling | None) -> None:
    state = make_learner().state_tensors()
    learner = make_learner(other) if other else Learner(make_model(), make_table(), LEARNING)
    with pytest.raises(ValueError, match="the saved state is of another model: dynamics"):
        learner.load_state_tensors(state)


# --- when a stage begins ----------------------------------------------------------------------------------------------

TASKS = [f"task-{i}" for i in range(6)]


def make_curriculum(**changes: object) -> Curriculum:
    return Curriculum(replace(SCALING, **changes), make_learner(), TASKS)  # type: ignore[arg-type]


def scores(*solved: int) -> dict[str, float]:
    return {task: 0.9 if i in solved else 0.5 for i, task in enumerate(TASKS)}


def stage_of(curriculum: Curriculum) -> float:
    return curriculum.metrics()["scaling/stage"]


def test_a_stage_begins_once_its_share_of_the_unsolved_is_newly_solved() -> None:
    curriculum = make_curriculum()
    curriculum.evaluated(scores(0))  # solved before anything was learned: five are left for three adapters
    assert (stage_of(curriculum), curriculum.solved) == (0, {"task-0"})
    curriculum.evaluated(scores(0, 1))
    assert stage_of(curriculum) == 0
    said = curriculum.evaluated(scores(0, 1, 2))  # two of five
    assert stage_of(curriculum) == 1
    assert "stage 1 of 3 begins: 2 of 5 tasks newly solved" in said[-1]
    curriculum.evaluated(scores(0, 1, 2, 3))  # three were left for two adapters: two are needed
    assert stage_of(curriculum) == 1
    curriculum.evaluated(scores(0, 1, 2, 3, 4))
    assert stage_of(curriculum) == 2
    assert not curriculum.finished
    curriculum.evaluated(scores(*range(6)))
    assert curriculum.finished


def test_a_stage_begins_after_so_many_updates_and_the_last_one_stays() -> None:
    curriculum = make_curriculum()
    learner = curriculum._learner
    begun = []
    for _ in range(12):
        learner.updates += 1
        begun += [learner.updates] if curriculum.updated() else []
    assert begun == [3, 5, 7]  # first_stage_updates 3, stage_updates 2
    assert stage_of(curriculum) == 3
    curriculum.evaluated(scores())
    curriculum.evaluated(scores(*range(5)))
    assert stage_of(curriculum) == 3


def test_a_solved_task_comes_back_below_its_target() -> None:
    curriculum = make_curriculum(targets={"task-1": 0.4}, slack=0.1)
    curriculum.evaluated(scores(0))
    assert curriculum.solved == {"task-0", "task-1"}
    assert curriculum.playing(["task-0", "task-0", "task-2"]) == [False, False, True]
    curriculum.evaluated({**scores(), "task-0": 0.8, "task-1": 0.31})  # within the slack
    assert curriculum.solved == {"task-0", "task-1"}
    said = curriculum.evaluated({**scores(), "task-0": 0.79, "task-1": 0.31})
    assert curriculum.solved == {"task-1"}
    assert said == ["task-0 comes back (0.79, target 0.9)"]
    assert curriculum.solutions()["solved/task-0"] == 0
    assert curriculum.solutions()["scaling/solved_sum"] == 1


def test_one_task_solved_again_and_again_is_not_newly_solved_twice() -> None:
    curriculum = make_curriculum()
    curriculum.evaluated(scores(0))
    for solved in [(), (0,), (), (0,), (0, 1)]:
        curriculum.evaluated(scores(*solved))
    assert stage_of(curriculum) == 0


def test_its_state_is_taken_up() -> None:
    first = make_curriculum()
    for solved in [(0,), (0, 1), (0, 1, 2)]:
        first.evaluated(scores(*solved))
    first._learner.updates = 4
    second = make_curriculum()
    second._learner.enter_stage(1)
    second.load_state(first.state())
    second._learner.updates = 4
    for curriculum in (first, second):
        curriculum.evaluated(scores(0, 1, 2, 3))
    assert second.state() == first.state()
    assert second.solutions() == first.solutions()


def test_the_clipped_policy_step_is_refused() -> None:
    clipped = config.Clipped(
        plan=False, every=45, passes=2, batch_size=20, ratio=0.2, gae_lambda=0.9, bonus=1.0, bonus_limit=1.0
    )
    model = make_model()
    learner = Learner(model, make_table(), replace(LEARNING, clipped=clipped), stages=Stages(model, SCALING, seed=1))
    with pytest.raises(ValueError, match=r"learning\.clipped learns from new episodes alone: set one of the two"):
        Curriculum(SCALING, learner, TASKS)


def test_a_target_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="targets names 'task-9', which is not in tasks.train. Did you mean"):
        make_curriculum(targets={"task-9": 0.5})
