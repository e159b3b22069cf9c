"""The examples under examples/, installed like any package, without touching this project."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tasks import registry
from pipeline.tasks.check import check_task

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "eft_juggle"


def eft(*arguments, path, cwd):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(EXAMPLES.parent)])}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "task", "instruction"),
    [("eft_juggle", "juggle", "Keep the ball in the air"), ("eft_push", "push-ball", "Push the ball to the mark")],
)
def test_an_installed_package_brings_its_task(tmp_path, package, task, instruction):
    source, target, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", EXAMPLES / package, source], check=True)  # building writes beside the sources
    elsewhere.mkdir()
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True)

    listed = eft("tasks", task, path=target, cwd=elsewhere)
    assert listed.returncode == 0, listed.stderr
    assert instruction in listed.stdout
    frame = tmp_path / "frame.png"
    checked = eft("check-task", task, "--frame", frame, path=target, cwd=elsewhere)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "steps/s" in checked.stdout
    assert frame.read_bytes()[1:4] == b"PNG"
    without = eft("tasks", task, path=elsewhere, cwd=elsewhere)
    assert without.returncode == 2
    assert "not known" in without.stderr


def test_its_file_alone_does_as_well(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLE)
    file = EXAMPLE / "juggle" / "tasks" / "juggle.yaml"
    assert registry.get(["juggle"], file)[0].split == "custom"
    findings = check_task(registry.load_file(file), tmp_path / "juggle.png", file)
    assert [finding for finding in findings if not finding.passed] == []
    assert {"actions", "observations", "image", "random episodes"} <= {finding.check for finding in findings}


def test_a_package_whose_tasks_cannot_be_read_is_named(monkeypatch):
    from importlib.metadata import EntryPoint

    broken = EntryPoint("broken", "no_such_package.tasks", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(ValueError, match="broken offers tasks in 'no_such_package.tasks', which cannot be read"):
        registry.load_catalogue()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "goal"), [("point-maze", slice(2, 4)), ("fetch-reach", slice(3, 6))])
def test_goal_conditioned_tasks_of_another_package_pass_the_check(name: str, goal: slice) -> None:
    pytest.importorskip("gymnasium_robotics")
    if name == "fetch-reach" and tuple(map(int, version("mujoco").split(".")[:2])) >= (3, 12):
        pytest.skip("its package does not work with this MuJoCo")
    spec = registry.load_file(EXAMPLES / "robotics" / f"{name}.yaml")
    findings = check_task(spec)
    assert [one for one in findings if not one.passed or one.doubtful] == []
    layout = next(one.detail for one in findings if one.check == "observations")
    assert f"desired_goal {goal.start}-{goal.stop - 1}," in layout
    env = registry.make(spec, spec.obs_dim, spec.action_dim)
    simulator: Any = env.simulator
    assert np.array_equal(env.reset(seed=2)[0][goal], np.float32(simulator.env.unwrapped.goal))
    env.close()
