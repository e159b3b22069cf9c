"""The benchmark of one student of many tasks: its plumbing with two tasks and a few updates, and what it reads."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from benchmarks import results, student
from pipeline import config
from pipeline.files import write_json
from pipeline.tasks import registry

TINY = {
    "demos": {"episodes": 2, "held_out_episodes": 0, "workers": 1},
    "language": {"encoder": "hashed-ngrams-32", "phrasings": 2, "head": None},
    "model": {"task_dim": 32, "latent_dim": 16, "enc_dim": 16, "mlp_dim": 16, "num_q": 2, "num_bins": 11},
    "planner": {"iterations": 1, "num_samples": 4, "num_policy_samples": 3, "num_elites": 2},
    "runtime": {"device": "cpu", "env_workers": 0, "trackers": []},
    "pretrain": {
        "updates": 4, "batch_size": 8, "warmup_updates": 0, "log_every": 2, "save_every": 2, "eval_every": 4,
        "eval_episodes": 1,
    },
    "finetune": {"batch_size": 8, "warmup_updates": 0, "eval_episodes": 1},
    "evaluate": {"processes": 1},
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project with one teacher; what is measured goes beside it."""
    root = tmp_path / "project"
    for name in student._COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "teachers")
        shutil.copytree(student.ROOT / name, root / name, ignore=ignored)
    teachers = root / "pipeline/teachers"
    shutil.copytree(student.SHIPPED / "cartpole-balance", teachers / "cartpole-balance")
    monkeypatch.setattr(student, "ROOT", root)
    monkeypatch.setattr(student, "SHIPPED", teachers)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return root


def read(folder):
    return json.loads((folder / "teachers.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_student_clones_its_teacher_is_labelled_and_is_not_trained_again(project, tmp_path, monkeypatch):
    setup = {
        "tasks": ["cartpole-balance", "reacher-easy"],
        "episodes": 2,
        "own": 2,
        "seeding": 1,
        "updates": 3,
        "changed": TINY,
    }
    student.dmc(1, 1, setup)
    found = read(tmp_path)["parts"]["student.dmc"]
    assert found["without_teacher"] == ["reacher-easy"]
    assert list(found["tasks"]) == ["cartpole-balance"]
    assert found["updates"] == 4 + 3
    assert set(found["scores"]) == {"teachers", "cloned", "labelled"}
    (copy,) = (tmp_path / student.COPIES).iterdir()
    demos = json.loads((copy / "datasets/demos.json").read_text(encoding="utf-8"))
    assert demos["tasks"]["cartpole-balance"]["method"] == "teacher"

    def refuse(*arguments, **options):
        raise AssertionError("it was done")

    monkeypatch.setattr(student, "execute", refuse)
    monkeypatch.setattr(student, "Evaluator", refuse)
    student.dmc(1, 1, setup)
    assert read(tmp_path)["parts"]["student.dmc"]["scores"] == found["scores"]


@pytest.mark.slow
def test_both_students_of_meta_world_have_as_many_episodes_and_updates(project, tmp_path):
    setup = {
        "tasks": ["mw-reach", "mw-drawer-close"], "episodes": 2, "demonstrations": 1, "own": 2,
        "seeding": 1, "updates": 3, "changed": TINY,
    }  # fmt: skip
    student.mt50([5], 2, setup)
    found = read(tmp_path)["parts"]["student.mt50"]
    labels, demonstrations = found["runs"]
    assert (labels["arm"], labels["demonstrations"]) == ("labels", 2 * 1)
    assert (demonstrations["arm"], demonstrations["demonstrations"]) == ("demonstrations", 2 * (1 + 2))
    assert labels["updates"] == demonstrations["updates"] == 4 + 3
    assert set(found["tasks"]) == {"mw-reach", "mw-drawer-close"}
    for run in found["runs"]:
        assert run["success_at_any_step"] >= run["success"]


def test_the_set_ups_hold_valid_parameters_and_the_default_model():
    for part, count in (("dmc", 21), ("mt50", 49)):
        setup = student.read_setup(part)
        assert len(setup["tasks"]) == count
        specs = registry.get(setup["tasks"])
        online = {"finetune": student.own_episodes(specs, setup["own"], setup["updates"], setup["seeding"])}
        params = student.parameters(setup["tasks"], 1, setup["changed"], online)
        assert params["model"] == config.read_params("presets/quickstart.yaml")["model"]


def test_the_updates_of_a_finetuning_are_spread_over_the_episodes_after_the_first_ones():
    specs = registry.get(["mw-reach", "mw-drawer-close"])
    found = student.own_episodes(specs, 5, 37, 2)
    assert found["env_steps"] == 2 * 100 * 5
    assert int(found["utd"] * 2 * 100 * 3) == 37


def test_a_difference_is_taken_episode_by_episode():
    labels = [student.Played({"a": [1.0, 0.0], "b": [1.0, 1.0]}, {})]
    others = [student.Played({"a": [1.0, 0.0], "b": [0.0, 0.0]}, {})]
    found = student.compared({"labels": labels, "demonstrations": others}, "scores")
    # Both differences of a task are alike, so that the interval has no width.
    assert found["labels_minus_demonstrations"] == {"score": 0.5, "low": 0.5, "high": 0.5}
    assert found["labels"]["score"] == 0.75


def test_an_unfinished_stage_keeps_its_seconds(project, monkeypatch):
    params = student.parameters(["mw-reach"], 1, TINY)
    one = student.Student("one", params, 1)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(student, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.train(["demos"])
    write_json(one.folder / "demos.seconds.json", 60.0)
    monkeypatch.setattr(student, "execute", lambda *arguments: None)
    assert one.train(["demos"])["demos"] >= 1.0


def test_an_episode_that_was_successful_once_is_noted(monkeypatch):
    (spec,) = registry.get(["mw-reach"])
    envs = student.Watched([spec], spec.obs_dim, spec.action_dim, 0, 0)
    try:
        envs.reset()
        real = student.VectorEnv.end_step
        for number in range(2 * spec.episode_length):
            envs.begin_step(np.zeros((1, spec.action_dim), np.float32))

            def once(self, number=number):
                return real(self)._replace(success=np.array([number == 3]))

            monkeypatch.setattr(student.VectorEnv, "end_step", once)
            envs.end_step()
    finally:
        envs.close()
    assert envs.ever == [[1.0, 0.0]]
