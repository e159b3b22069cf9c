"""The stages `teach` and `demos`: a teacher learns, is kept, and demonstrates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.data.demos import load_demos

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one task whose teacher learns for some seconds."""
    params = YAML(typ="safe").load((ROOT / "tests/tiny.yaml").read_text())
    params["tasks"] |= {"train": ["pendulum-spin", "mw-reach"], "held_out": [], "pairs": []}
    params["demos"] |= {"episodes": 2}
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    shutil.copytree(ROOT / "my_tasks", tmp_path / "my_tasks")
    recipe = "tasks:\n  pendulum-spin: {steps: 150_000, discount: 0.98, evaluate: 75_000}\n"
    (tmp_path / "my_tasks/teachers.yaml").write_text(recipe)
    return tmp_path


def stage(folder: Path, name: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_a_teacher_learns_is_kept_and_demonstrates(project: Path) -> None:
    assert "1 teachers" in stage(project, "teach")
    notes = json.loads((project / "checkpoints/teach.json").read_text())["tasks"]
    assert set(notes) == {"pendulum-spin"}  # mw-reach has a script and no recipe
    assert notes["pendulum-spin"]["score"] > 0.7
    assert "there already, by the same recipe and seed" in stage(project, "teach")
    stage(project, "demos")
    report = json.loads((project / "datasets/demos.json").read_text())["tasks"]
    assert {name: task["method"] for name, task in report.items()} == {
        "pendulum-spin": "teacher",
        "mw-reach": "scripted",
    }
    episodes = load_demos(project / "datasets/demos", "pendulum-spin")
    assert [episode.method for episode in episodes] == ["teacher", "teacher"]
    # Without teachers it is planned, and the teacher goes.
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("enabled: true", "enabled: false"))
    stage(project, "teach")
    assert not list((project / "checkpoints/teach").iterdir())
    stage(project, "demos")
    assert json.loads((project / "datasets/demos.json").read_text())["tasks"]["pendulum-spin"]["method"] == "planner"
