"""Each system's preset on the tiny parameters: it pretrains, finetunes, and the checkpoint acts. Real simulators."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.agent import Agent
from pipeline.results import read_curves
from tests.stages.test_tiny_pipeline import environment

ROOT = Path(__file__).parents[2]
# What a preset asks for is sized for thousands of updates: shrunk so that all of it happens within a few dozen.
SHRUNK: dict[str, dict[str, Any]] = {
    "scalezero": {"finetune.scaling.first_stage_updates": 10, "finetune.scaling.stage_updates": 10},
    "mow": {"model.clusters.warmup_updates": 8, "model.clusters.points": 2, "model.clusters.batches": 1},
    "m3po": {"learning.clipped.every": 300, "learning.clipped.passes": 2, "learning.clipped.batch_size": 50},
}
# A curve that is only there if the system has been at work, by stage.
LOGGED = {
    "scalezero": {"pretrain": "train/balance_loss", "finetune": "scaling/stage"},
    "mow": {"pretrain": "train/task_id_loss", "finetune": "train/balance_loss"},
    "m3po": {"pretrain": "train/bc_loss", "finetune": "train/clip_fraction"},
}

pytestmark = pytest.mark.slow


def stage(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", f"stages.{name}"]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def merge(params: dict[str, Any], preset: dict[str, Any]) -> None:
    """Put a preset into parameters, as `eft preset` does where params.yaml has a line for every key."""
    for key, value in preset.items():
        if isinstance(value, dict) and isinstance(params.get(key), dict):
            merge(params[key], value)
        else:
            params[key] = value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny parameters, demonstrations and the tasks' vectors."""
    folder = tmp_path_factory.mktemp("systems")
    shutil.copy(ROOT / "tests/tiny.yaml", folder / "params.yaml")
    shutil.copytree(ROOT / "my_tasks", folder / "my_tasks")
    for name in ("demos", "embed"):
        stage(folder, name)
    return folder


@pytest.mark.parametrize("name", SHRUNK)
def test_a_preset_pretrains_finetunes_and_acts(name: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(data, folder)
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())
    merge(params, yaml.load((ROOT / f"presets/{name}.yaml").read_text()))
    for key, value in SHRUNK[name].items():
        *sections, last = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        assert last in section, key
        section[last] = value
    yaml.dump(params, folder / "params.yaml")
    for one in ("pretrain", "finetune"):
        stage(folder, one)
        curve = read_curves(folder / f"checkpoints/{one}/metrics")[LOGGED[name][one]]
        assert np.isfinite(curve.values).all()
    agent = Agent.from_pretrained(folder / "checkpoints/finetune/model")
    assert np.isfinite(agent.act(np.zeros(39), task="mw-reach")).all()
    if name == "scalezero":  # the stages of scaling went on, and the checkpoint has plain matrices again
        stages = read_curves(folder / "checkpoints/finetune/metrics")["scaling/stage"].values
        assert max(stages) > 0
    if name == "mow":
        assert set(agent.table.columns["cluster"].tolist()) == {0, 1}
