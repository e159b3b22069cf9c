"""Clones of demonstrations: what is measured, who labels which states, and what is left out because it is there."""

from __future__ import annotations

import json
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks import clones, results
from pipeline.demonstrate import ppo
from pipeline.demonstrate.planner import load_recipes
from pipeline.tasks.registry import get, make


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(ppo, "_CLONING_UPDATES", 20)
    for name, value in {"DEMOS": 2, "EPISODES": 2, "ROUNDS": 2, "LABELLED": 1}.items():
        monkeypatch.setattr(clones, name, value)


def test_a_task_is_a_part_and_is_left_out_when_it_is_there(tmp_path, capsys):
    clones.main(["--tasks", "pygame-reacher-easy"])
    row = json.loads((tmp_path / "clones.json").read_text())["parts"]["pygame-reacher-easy planner"]
    assert row["command"] == "python -m benchmarks.clones --tasks pygame-reacher-easy"
    assert row["attempts"] >= 2
    assert row["score"] >= load_recipes()["pygame-reacher-easy"].min_score
    assert "labelled" not in row
    capsys.readouterr()
    clones.main(["--tasks", "pygame-reacher-easy"])
    told = capsys.readouterr()
    assert "there already" in told.err
    assert "| pygame-reacher-easy | planner | 2 of" in told.out
    clones.main(["--tasks", "pygame-reacher-easy", "pygame-point-maze-var1", "--labels"])
    parts = json.loads((tmp_path / "clones.json").read_text())["parts"]
    assert [len(part["labelled"]) for part in parts.values()] == [2, 2]
    assert parts["pygame-point-maze-var1 path"]["method"] == "path"


def test_labels_are_of_the_states_that_the_student_went_to():
    (spec,) = get(["pygame-reacher-easy"])
    student = clones.clone(spec, [(np.eye(10, dtype=np.float32), np.zeros((10, 2)))])
    states, labels = clones.ask(spec, student, [3], None)
    env = make(spec, spec.obs_dim, spec.action_dim)
    obs, _ = env.reset(seed=3)
    for number in range(spec.episode_length):
        if number % 2 == 0:  # where it would have planned: `replan_every` is 2
            np.testing.assert_array_equal(states[number // 2], obs)
        obs, *_ = env.step(student.label(obs))
    assert len(states) == len(labels) == spec.episode_length // 2
    assert np.abs(labels).max() <= 1
    with ExitStack() as opened:  # the first label is what the planner does in the first state
        env.reset(seed=3)
        plan = clones.open_planner(spec, env, 3, np.random.default_rng([3, 1]), opened).plan()
    np.testing.assert_array_equal(labels[0], plan[0])


def test_an_expert_that_fails_is_given_up(monkeypatch):
    monkeypatch.setattr(clones, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(clones, "least_score", lambda spec, teachers: 1.1)
    with pytest.raises(RuntimeError, match="pygame-reacher-easy: 0 of 2 attempts are good, 2 are wanted"):
        clones.collect(*get(["pygame-reacher-easy"]), None)
