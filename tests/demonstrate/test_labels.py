"""Who labels which tasks, what is said of it, and teachers that are of no use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.episode import Episode
from pipeline.demonstrate.experts import expert_kind, open_expert
from pipeline.demonstrate.labels import find_labels, methods_of, teachers_of, who_labels
from pipeline.demonstrate.teacher import teacher_file
from pipeline.run.ranks import Ranks
from pipeline.tasks.registry import get, make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv
from tests.experts import untrained_teacher

SPECS = get(["mw-reach", "pendulum-spin", "mw-door-open", "cup-spin"])
FILE = Path("checkpoints/teach/pendulum-spin/teacher.safetensors")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_off_asks_nobody_and_says_nothing(capsys):
    assert find_labels("finetune", SPECS, "off", {}) is None
    assert who_labels(SPECS, "off", {}) is None
    assert teachers_of(SPECS, "off", {}) == []
    assert capsys.readouterr().err == ""


def test_it_is_said_who_labels_what_and_where_nobody_can(capsys):
    untrained_teacher(SPECS[1]).save(FILE)
    labels = find_labels("finetune", SPECS, "label", {})
    assert labels is not None
    assert labels.kinds == {"mw-reach": "scripted", "pendulum-spin": "teacher", "mw-door-open": "scripted"}
    assert teachers_of(SPECS, "label", {}) == [FILE]
    assert capsys.readouterr().err == (
        "finetune: what is done is labelled, in mw-reach, mw-door-open by scripted; pendulum-spin by teacher; "
        "cup-spin by nobody (no script, and no good teacher in checkpoints/teach: `eft tasks --experts`)\n"
    )


def test_where_no_task_has_an_expert_nobody_is_asked(capsys):
    assert find_labels("adapt cup-spin", SPECS[3:], "label", {}) is None
    assert who_labels(SPECS[3:], "label", {}) == {}
    said = capsys.readouterr().err
    assert said.startswith(
        "adapt cup-spin: what is done is labelled, in cup-spin by nobody (no script, and no good teacher in "
    )


def test_demonstrations_of_ones_own_are_not_labelled_by_another_expert(capsys):
    untrained_teacher(SPECS[1]).save(FILE)
    methods = {"mw-reach": ["gamepad"], "pendulum-spin": ["planner", "teacher"], "mw-door-open": ["scripted"]}
    labels = find_labels("finetune", SPECS, "label", methods)
    assert labels is not None
    assert labels.kinds == who_labels(SPECS, "label", methods) == {"mw-door-open": "scripted"}
    assert teachers_of(SPECS, "label", methods) == []
    assert capsys.readouterr().err == (
        "finetune: what is done is labelled, in mw-reach by nobody (its demonstrations are by gamepad, its expert is "
        "scripted: two would be imitated in turns); pendulum-spin by nobody (its demonstrations are by planner, "
        "teacher, its expert is teacher: two would be imitated in turns); mw-door-open by scripted; "
        "cup-spin by nobody (no script, and no good teacher in checkpoints/teach: `eft tasks --experts`)\n"
    )


def test_who_played_demonstrations_is_told_by_each_of_them():
    episodes = [make_episode(method) for method in ("teacher", "gamepad", "teacher")]
    found = methods_of({"mw-reach": episodes, "cup-spin": []})
    assert found == {"mw-reach": ["gamepad", "teacher"], "cup-spin": []}

    class SecondRank(Ranks):
        def from_main(self, value):
            return found  # it has no demonstrations itself

    assert methods_of({}, SecondRank()) == found


def make_episode(method: str) -> Episode:
    obs, action = np.zeros((2, 39), np.float32), np.zeros((1, 4), np.float32)
    return Episode("mw-reach", obs, action, action, np.zeros(1, np.float32), False, False, 0.0, 0.0, 1, method)


def test_a_teacher_that_is_passed_over_is_named_where_it_is_asked(capsys):
    teacher = untrained_teacher(SPECS[1])
    teacher.notes["score"] = 0.31
    teacher.save(FILE)
    assert who_labels(SPECS[1:2], "label", {}) == {}
    env = make(SPECS[1], 3, 1)
    passed_over = rf"{FILE} scores 0.31, more than 0.1 below the planner's 0.84\. .* then `dvc repro teach` trains it"
    with pytest.raises(ValueError, match=passed_over):
        open_expert(SPECS[1], env, "checkpoints/teach")
    with pytest.raises(ValueError, match=r"no teacher in elsewhere. .* `eft teach pendulum-spin --output elsewhere`"):
        open_expert(SPECS[1], env, "elsewhere")
    with pytest.raises(ValueError, match="no folder of teachers was given"):
        open_expert(SPECS[1], env, None)
    env.close()


def test_a_teacher_below_a_planner_that_nobody_can_follow_demonstrates_if_it_is_above_its_clones():
    (pong,) = get(["pygame-pong"])  # planned: 1.00, a clone of that: 0.25
    teacher = untrained_teacher(pong)
    for score, kind in {0.3: None, 0.4: "teacher", 0.95: "teacher"}.items():
        teacher.notes["score"] = score
        teacher.save(teacher_file("checkpoints/teach", pong))
        assert expert_kind(pong, "checkpoints/teach") == kind


def changed(specs: Sequence[TaskSpec]) -> TaskSpec:
    return dataclasses.replace(specs[1], episode_length=specs[1].episode_length + 1)


@pytest.mark.parametrize(("damage", "message"), [("other", "this teacher is of 'pendulum-spin-"), ("bytes", "not a t")])
def test_a_teacher_of_no_use_is_refused_before_anything_is_collected(damage, message):
    untrained_teacher(changed(SPECS)).save(FILE)
    if damage == "bytes":
        FILE.write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match=f"{FILE}: {message}"):
        find_labels("finetune", SPECS, "label", {})


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_teacher_labels_in_a_worker_what_it_says_of_the_state(num_workers):
    teacher = untrained_teacher(SPECS[1])
    teacher.save(FILE)
    labels = find_labels("finetune", SPECS[1:2], "label", {})
    with VectorEnv(SPECS[1:2], 10, 3, 0, num_workers, labels=labels) as envs:
        obs = envs.reset()
        for _ in range(5):
            step = envs.step(np.ones((1, 3), np.float32))
            assert np.array_equal(step.label[0], [*teacher.label(obs[0, : SPECS[1].obs_dim]), 0, 0])
            obs = step.obs
