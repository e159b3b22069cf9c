"""`python -m stages.adapt` on a prepared checkpoint: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import config
from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.tasks import registry
from tests.test_adapt import prepare, record_demos

ROOT = Path(__file__).parents[2]
BASE, EMBEDDINGS = Path("checkpoints/finetune/model"), Path("datasets/task_embeddings")
OUT = Path("checkpoints/adapt/swing")

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with all that the stage reads: parameters, base, and demonstrations and texts of a new task."""
    prepare(tmp_path, BASE)
    monkeypatch.chdir(tmp_path)
    params = Path("params.yaml").read_text()
    assert "  video_size: 64" in params
    Path("params.yaml").write_text(params.replace("  video_size: 64", "  video_size: 0"))
    Path("swing.yaml").rename("my_tasks/swing.yaml")
    (spec,) = registry.get(["swing"], "my_tasks")
    encoder = HashedNgrams(config.load(config.Model).task_dim)
    embed(encoder, ["swing"], [spec.training_texts()], 2, [spec.unseen_text()]).save(EMBEDDINGS)
    record_demos(Path("datasets/demos/swing"), 2, Path("my_tasks/swing.yaml"))
    return tmp_path


def run(task: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.adapt", task]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_held_out_task_becomes_an_adapter_with_its_curves_and_scores(project: Path) -> None:
    read = digests(BASE) | digests(Path("datasets"))
    done = run("swing")
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(BASE) | digests(Path("datasets")) == read
    assert not list(Path(".resume").iterdir())
    assert {path.name for path in OUT.iterdir()} == {"adapter", "metrics", "videos"}
    assert not list((OUT / "videos").iterdir())  # a size of 0 asks for none

    summary = json.loads((OUT / "metrics/summary.json").read_text())
    assert (summary["stage"], summary["task"], summary["demos"]) == ("adapt", "swing", 2)
    assert 0 < summary["adapter_parameters"] < summary["base_parameters"]
    for phase in ("zero_shot", "adapted"):
        assert len(summary[phase]["scores"]) == 2
        assert summary[phase]["low"] <= summary[phase]["score"] <= summary[phase]["high"]
    scores = f"adapt: swing: {summary['zero_shot']['score']:.3f} zero-shot, {summary['adapted']['score']:.3f} adapted"
    assert scores in done.stderr
    # Demonstrations first, then interaction.
    steps = [(point["env_steps"], point["updates"]) for point in summary["curve"]]
    assert steps == sorted(steps)
    assert {0, 4, 8} <= {updates for env_steps, updates in steps if env_steps == 0}
    assert steps[-1][0] == 120
    for phase, unit in (("pretrain", 8), ("finetune", 120)):
        rows = (OUT / "metrics" / phase / "metrics.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["step"] == unit

    agent = Agent.from_pretrained(BASE)
    hang = agent.act(np.ones(3), task="hang", plan=False)
    assert agent.add_adapter(OUT / "adapter") == "swing"
    assert np.array_equal(agent.act(np.ones(3), task="hang", plan=False), hang)
    assert agent.act(np.ones(3), task="swing").shape == (1,)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (EMBEDDINGS / "texts.json", "dvc repro embed"),
        (Path("datasets/demos/swing/episodes.parquet"), "dvc repro demos"),
        (BASE / "tasks.json", "tasks.json does not exist"),
    ],
)
def test_what_is_missing_is_said_in_one_line_and_nothing_is_written(project: Path, missing: Path, message: str) -> None:
    missing.unlink()
    done = run("swing")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("adapt: ")
    assert "Traceback" not in done.stderr
    assert not OUT.exists()


def test_an_unknown_task_names_the_known_one(project: Path) -> None:
    done = run("swng")
    assert done.returncode == 2
    assert "task `swng` is not known. Did you mean `swing`" in done.stderr
