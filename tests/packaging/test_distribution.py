"""The wheel and the sdist: what they hold, and that what they install works without a checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from pipeline.tasks import registry
from tests.packaging.environments import Environment, closure
from tests.page.untrained import make_agent

ROOT = Path(__file__).parents[2]
STAGES = ["teach", "demos", "embed", "pretrain", "finetune", "evaluate", "adapt@mw-drawer-close", "publish", "report"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install eft` brings, and nothing else."""
    environment = Environment(tmp_path_factory.mktemp("light") / "venv", wheel)
    environment.link(closure(requirements(wheel)))
    return environment


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def test_they_hold_all_that_the_code_reads(source: Path, wheel: Path, distributions: list[Path]):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for folder in ("eft", "pipeline", "stages"):
        lacking = {str(path.relative_to(source)) for path in (source / folder).rglob("*") if path.is_file()} - held
        assert lacking == set()
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", "my_tasks/README.md", "presets/mt50.yaml"):
        assert f"pipeline/project/{name}" in held
    assert len([name for name in held if name.startswith("pipeline/project/presets/")]) == len(
        list((source / "presets").glob("*.yaml"))
    )
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_tag_and_without_git_none(source: Path, wheel: Path, tmp_path: Path):
    assert wheel.name == "eft-0.0.0-py3-none-any.whl"
    folder = tmp_path / "eft"
    shutil.copytree(source, folder)
    author = ("-c", "user.name=Eft", "-c", "user.email=eft@example.org")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "All"], ["tag", "v1.2.3"]):
        subprocess.run(["git", *author, *command], cwd=folder, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1.2.3"


def test_an_agent_acts_in_an_environment_that_has_nothing_else(light: Environment, tmp_path: Path):
    make_agent(registry.get(["pygame-cartpole-balance"])).save_pretrained(tmp_path / "agent")
    code = (
        "import importlib.util, json, sys, eft\n"
        "assert 'torch' not in sys.modules\n"
        "agent = eft.Agent.from_pretrained('agent')\n"
        "env = eft.make('pygame-cartpole-balance')\n"
        "obs, _ = env.reset(seed=0)\n"
        "action = agent.act(obs, task='pygame-cartpole-balance')\n"
        "assert env.action_space.contains(action)\n"
        "env.step(action)\n"
        "there = [name for name in ('dvc', 'datasets', 'pyarrow', 'matplotlib', 'av', 'mujoco', 'dm_control')\n"
        "         if importlib.util.find_spec(name)]\n"
        "print(json.dumps([eft.__file__, there]))"
    )
    file, there = json.loads(light.run("python", "-c", code, cwd=tmp_path).stdout)
    assert Path(file).is_relative_to(light.site)
    assert there == []
    played = light.run("eft", "act", "agent", "--task", "pygame-cartpole-balance", "--policy-only", cwd=tmp_path).stdout
    assert re.search(r"mean score \d\.\d{3} over 1 episodes of pygame-cartpole-balance", played)
    assert "mt50" in light.run("eft", "preset", cwd=tmp_path).stdout
    experts = light.run("eft", "tasks", "--experts", cwd=tmp_path).stdout
    assert re.search(r"mw-reach +scripted", experts)
    assert re.search(r"walker-walk +teacher", experts)
    assert "pull" in light.run("eft", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("act agent --task pygame-cartpole-balance --video out.mp4", "video"),
        ("act agent --task pendulum-swingup", "dmcontrol"),
        ("play agent", "play"),
        ("adapt agent --task pygame-cartpole-balance --env-steps 10", "pipeline"),
        ("teach cheetah-run", "pipeline"),
        ("teach pygame-cartpole-balance", "pipeline"),
        ("check-data demos", "pipeline"),
        ("check-task task.yaml --frame out.png", "pipeline"),
        ("import minari data --task pygame-cartpole-balance", "pipeline"),
        ("import plain data.npz --task pygame-cartpole-balance", "pipeline"),
        ("info demos --dataset", "pipeline"),
    ],
)
def test_what_is_missing_is_named_with_its_command(light: Environment, tmp_path: Path, command: str, extra: str):
    make_agent(registry.get(["pygame-cartpole-balance"])).save_pretrained(tmp_path / "agent")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "demos/pygame-cartpole-balance").mkdir(parents=True)
    (tmp_path / "demos/pygame-cartpole-balance/episodes.parquet").touch()
    for name in ("data", "data.npz"):
        (tmp_path / name).touch()
    (tmp_path / "task.yaml").write_text(TASK)
    done = light.run("eft", *command.split(), cwd=tmp_path, check=False)
    assert f"pip install 'eft[{extra}]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


def test_a_stage_that_lacks_a_package_says_so(light: Environment, tmp_path: Path):
    light.run("eft", "init", "project", cwd=tmp_path)
    done = light.run("python", "-m", "stages.report", cwd=tmp_path / "project", check=False)
    assert "pip install 'eft[pipeline]'" in done.stderr
    assert done.returncode != 0


def test_the_extra_of_the_page_has_all_that_it_needs(wheel: Path, tmp_path: Path):
    environment = Environment(tmp_path / "venv", wheel)
    environment.link(closure(requirements(wheel), "play"))
    environment.run("python", "-c", "import pipeline.page.page, pipeline.page.space", cwd=tmp_path)


def test_dvc_repro_runs_the_whole_pipeline_in_a_new_project(wheel: Path, tmp_path: Path):
    full = Environment(tmp_path / "venv", wheel)
    full.link(closure([*requirements(wheel)], "pipeline", "metaworld"))
    project = tmp_path / "project"
    full.run("eft", "init", "project", cwd=tmp_path)
    shutil.copy(ROOT / "tests/tiny.yaml", project / "params.yaml")
    where = full.run("python", "-c", "import pipeline, stages; print(pipeline.__file__, stages.__file__)", cwd=project)
    code, entries = where.stdout.split()
    assert Path(code).is_relative_to(full.site)
    assert Path(entries).is_relative_to(project)

    dvc = ("python", "-m", "dvc")
    assert ran(full.run(*dvc, "repro", cwd=project).stdout) == ["code", *STAGES]
    assert "mw-pick-place" in (project / "checkpoints/report/report.html").read_text()
    assert ran(full.run(*dvc, "repro", cwd=project).stdout) == ["code"]
    style = full.site / "pipeline/report/style.css"  # as another version of Eft has it
    style.write_text(f"{style.read_text()}\n/* changed */\n")
    assert ran(full.run(*dvc, "repro", cwd=project).stdout) == ["code", "report"]


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


TASK = """\
name: upright
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pole hangs on a hinge with a motor.
instructions: [Swing the pole up and keep it there., Hold the pole upright.]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 200
score: 1+clip(return,-1600,0)/1600
"""
