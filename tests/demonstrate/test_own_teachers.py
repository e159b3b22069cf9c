"""Teachers of a user's own environments: those of examples/, with and without an array form."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.batched.agreement import check_form
from pipeline.batched.forms import array_form, has_array_form
from pipeline.cli import main
from pipeline.demonstrate import teach_tasks as teaching
from pipeline.demonstrate.teach import Training, load_recipes, play_teacher, usual_recipe
from pipeline.demonstrate.teach_tasks import Lesson
from pipeline.demonstrate.teacher import load_teacher
from pipeline.tasks import registry

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PUSH = EXAMPLES / "eft_push/push/tasks/push-ball.yaml"
JUGGLE = EXAMPLES / "eft_juggle/juggle/tasks/juggle.yaml"


@pytest.fixture
def push(monkeypatch) -> Any:
    """The example's module."""
    monkeypatch.syspath_prepend(EXAMPLES / "eft_push")
    import push

    return push


def eft(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder where Python finds nothing of examples/."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_examples_form_is_its_environment(push):
    spec = registry.load_file(PUSH)
    assert has_array_form(spec)
    check_form(spec, steps=100)
    # Where it is going as well: to the ball and on to the mark.
    check_form(spec, steps=100, expert=lambda env: lambda obs: np.array([1.0 if obs[4] > 0.3 else -1.0], np.float32))


def test_its_recipe_lies_beside_it_and_is_no_task(push):
    assert load_recipes(PUSH)["push-ball"] == load_recipes(PUSH.parent)["push-ball"] != usual_recipe()
    assert "push-ball" in registry.load_catalogue(PUSH.parent)


def test_the_recipes_of_installed_packages_are_found(monkeypatch):
    from importlib.metadata import EntryPoint

    monkeypatch.syspath_prepend(EXAMPLES / "eft_push")
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("push", "push.tasks", registry.GROUP)])
    assert "push-ball" in registry.load_catalogue()
    assert load_recipes()["push-ball"] == load_recipes(PUSH)["push-ball"]


@pytest.mark.slow
def test_the_example_is_learned(push, tmp_path):
    spec = registry.load_file(PUSH)
    recipe = dataclasses.replace(load_recipes(PUSH)["push-ball"], steps=250_000, evaluate=250_000)
    training = Training(spec, recipe, 1, tmp_path)
    before = play_teacher(training.ppo.teacher(), 10, 0).mean()
    training.run()
    teacher = training.finish()
    training.close()
    assert before < 0.3
    assert teacher.notes["score"] > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            lambda env: {"drawn": lambda simulator: env.mark},  # of another environment than the one that was reset
            r"push-ball: .* at step 1: entry 4 of the observation is -?\d.* on arrays and -?\d.* in the environment",
        ),
        (
            lambda env: {"reward": lambda states, before: -states.qpos[..., 1]},
            r"push-ball: .* at step 1: the reward is 0\.\d+ on arrays and 0\.\d+ in the environment",
        ),
        (
            lambda env: {"reward": lambda states, before: states.qpos[:, -1, 0]},
            r"`reward` .* shape \(3,\), expected \(3, 1\)",
        ),
        (
            lambda env: {"reward": lambda states: -states.qpos[..., 1]},
            r"`reward` .* failed: TypeError: .* called as reward\(states, before\), with qpos of shape \(3, 1, 2\)",
        ),
        (lambda env: {"observe": lambda states: states.qpos}, r"`observe` .* shape \(3, 1, 2\), expected \(3, 1, 5\)"),
    ],
)
def test_a_form_that_disagrees_is_refused_before_anything_is_trained(
    push, monkeypatch, tmp_path, capsys, changes, message
):
    original = push.Push.array_form
    monkeypatch.setattr(push.Push, "array_form", lambda env: dataclasses.replace(original(env), **changes(env)))
    monkeypatch.chdir(tmp_path)
    assert main(["teach", str(PUSH)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("shaping: 0.5", "push-ball: teachers.yaml asks for shaping, and .* `shaping: 0`"),
        ("demos: 2", "push-ball: teachers.yaml asks for demonstrations .* `demos: 0`"),
        ("step: 9", "teachers.yaml: push-ball: `step` is not a parameter. Did you mean `steps`"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_is_trained(
    push, monkeypatch, tmp_path, capsys, line, message
):
    file = Path(shutil.copy(PUSH, tmp_path))
    (tmp_path / "teachers.yaml").write_text(f"tasks:\n  push-ball: {{{line}}}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["teach", str(file)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["push-ball.yaml", "teachers.yaml"]
    assert main(["teach", str(file), "--output", str(file)]) == 2
    assert "push-ball.yaml is a file: --output takes a folder" in capsys.readouterr().err


def test_what_is_no_form_or_no_body_of_mujoco_is_refused(push, monkeypatch):
    spec = registry.load_file(PUSH)
    monkeypatch.setattr(push.Push, "array_form", lambda env: {"observe": None})
    with pytest.raises(
        ValueError, match="`array_form` of Push returned dict, expected a pipeline.batched.form.ArrayForm"
    ):
        array_form(spec)
    monkeypatch.syspath_prepend(EXAMPLES / "eft_juggle")
    import juggle

    monkeypatch.setattr(juggle.Juggle, "array_form", lambda env: 1, raising=False)
    with pytest.raises(ValueError, match="Juggle has a method `array_form` and is no Gymnasium MujocoEnv"):
        array_form(registry.load_file(JUGGLE))


@pytest.mark.slow
def test_eft_teach_trains_an_environment_without_arrays(tmp_path):
    done = eft(tmp_path, "teach", str(JUGGLE), "--steps", "1000")
    assert done.returncode == 0, done.stderr
    assert "juggle: no teachers.yaml names it: the common values are taken" in done.stderr
    assert re.search(r"^juggle: 0\.\d\d \+- 0\.\d\d in 40 episodes, after 4,096 steps", done.stdout)
    assert sorted(path.name for path in (tmp_path / "taught/juggle").iterdir()) == [
        "curve.json",
        "curve.svg",
        "teacher.safetensors",
    ]
    again = eft(tmp_path, "teach", str(JUGGLE), "--steps", "1000")
    assert "juggle: there already, by the same recipe and seed" in again.stderr
    assert again.stdout == done.stdout
    assert "to look at: runs ask the teachers in checkpoints/teach alone" in again.stderr
    shutil.copytree(tmp_path / "taught/juggle", tmp_path / "checkpoints/teach/juggle")
    asked = eft(tmp_path, "teach", str(JUGGLE), "--steps", "1000", "--output", "checkpoints/teach")
    assert "juggle: there already" in asked.stderr
    assert "to look at" not in asked.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_was_learned(tmp_path, number):
    (tmp_path / "taught/push-ball").mkdir(parents=True)
    (tmp_path / "taught/push-ball/mine.txt").write_text("kept")
    line = command("teach", str(PUSH), "--steps", "200_000")
    process = subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".resume/teach-push-ball-*/state.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.endswith("the same command goes on from there.\n")
    assert [path.name for path in (tmp_path / "taught/push-ball").iterdir()] == ["mine.txt"]
    done = eft(tmp_path, "teach", str(PUSH), "--steps", "200_000")
    assert done.returncode == 0, done.stderr
    assert "teach: push-ball: goes on; judged every 50,000 steps" in done.stderr
    assert (tmp_path / "taught/push-ball/mine.txt").read_text() == "kept"
    spec = registry.load_file(PUSH)
    assert load_teacher(tmp_path / "taught/push-ball/teacher.safetensors", spec).notes["trained_steps"] >= 200_000


def test_own_forms_are_checked_by_the_stage_too(push, monkeypatch, tmp_path):
    def refuse(spec):
        raise ValueError(f"{spec.name} disagrees")

    monkeypatch.setattr(teaching, "check_form", refuse)
    with pytest.raises(ValueError, match="push-ball disagrees"):
        teaching.teach_tasks([Lesson(registry.load_file(PUSH), usual_recipe(), 1)], tmp_path)
