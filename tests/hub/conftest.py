"""A finished run in a small project, and a Hub of this machine that the real clients talk to."""

from __future__ import annotations

import dataclasses
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.demos import write_episodes
from pipeline.data.episode import Episode
from pipeline.files import write_json
from pipeline.hub.release import write_release
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.results import read_results
from pipeline.tasks.spec import TaskSpec
from tests.tiny_agent import SIZES

SERVER = runpy.run_path(str(Path(__file__).with_name("server.py")))
PROJECT = Path(__file__).parents[2]
PLANNER = config.Planner(
    horizon=2, iterations=1, num_samples=8, num_policy_samples=2, num_elites=4, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
PARAMS = """\
seed: 1
tasks: {train: [walk, reach], held_out: [push], pairs: [], weights: {}, folder: my_tasks}
evaluate:
  {episodes: 10, phrasing: canonical, confidence: 0.95, bootstrap_samples: 100, video_size: 0, video_every: 1,
    video_fps: 20, open_loop_steps: [], processes: 1, open_loop_horizon: 48, open_loop_episodes: 2}
publish: {repo_id: null, demos_repo_id: null, private: true, tag: v1}
"""


def make_spec(name: str, instruction: str) -> TaskSpec:
    return TaskSpec(
        name=name, suite="gymnasium", env_id="tests:tests/None-v0", embodiment="A body.", instructions=(instruction,),
        obs_dim=4, action_dim=2, action_repeat=1, episode_length=50, score="return/1000", split="train",
    )  # fmt: skip


SPECS = [make_spec("walk", "walk | <script>alert(1)</script>"), make_spec("reach", "reach the goal")]
PUSH = make_spec("push", "push")


def embeddings_of(specs: list[TaskSpec]):
    return embed(HashedNgrams(16), [spec.name for spec in specs], [[spec.text()] for spec in specs], 1)


def make_episode(spec: TaskSpec, seed: int, length: int = 5) -> Episode:
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, spec.action_dim)).astype(np.float32)
    reward = rng.random(length).astype(np.float32)
    total = float(reward.sum(dtype=np.float64))
    return Episode(
        task=spec.name, obs=rng.normal(size=(length + 1, spec.obs_dim)).astype(np.float32), action=action,
        expert_action=action, reward=reward, terminated=False, success=False, score=total / 1000, episode_return=total,
        seed=seed, method="scripted",
    )  # fmt: skip


def write_run(root: Path) -> None:
    """What the stages before `publish` would leave behind."""
    torch.manual_seed(0)
    embeddings = embeddings_of(SPECS)
    mask = torch.tensor([[1.0, 1.0, 0.0]] * 2)
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.9, 0.95]))
    checkpoints = root / "checkpoints"
    Agent(WorldModel(SIZES), SPECS, embeddings, table, PLANNER).save_pretrained(checkpoints / "finetune/model")
    agent = Agent.from_pretrained(checkpoints / "finetune/model")
    agent.add_task(PUSH, embeddings_of([PUSH]), 0.97)
    agent.create_adapter("push", ["policy"], rank=2, alpha=4.0)
    agent.save_adapter(checkpoints / "adapt/push/adapter", "push")
    (root / "params.yaml").write_text(PARAMS)
    for spec in (*SPECS, PUSH):
        write_json(root / f"my_tasks/{spec.name}.yaml", dataclasses.asdict(spec))  # JSON is YAML
        write_episodes(root / f"datasets/demos/{spec.name}/episodes.parquet", [make_episode(spec, n) for n in (0, 1)])
    assert agent.base is not None
    write_metrics(checkpoints, agent.base)


def write_metrics(checkpoints: Path, base: str) -> None:
    run = {"seconds": 9.0, "peak_memory_mb": 500.0, "commit": "0123456", "versions": {"torch": "2.13.0"}}
    run["machine"] = {"cpu": "Some CPU", "cores": 2, "gpu": None}
    for stage in ("pretrain", "finetune", "evaluate"):
        write_json(checkpoints / stage / "metrics/summary.json", run | {"stage": stage})
    score = {"score": 0.6123, "low": 0.5, "high": 0.7, "scores": [0.6] * 10}
    modes = {mode: {"walk": score, "reach": score | {"score": 0.9, "high": 0.95}} for mode in ("policy", "plan")}
    mean = {mode: {"score": 0.75, "low": 0.6, "high": 0.8} for mode in ("policy", "plan")}
    models = ("pretrain", "finetune")
    scores = {"models": dict.fromkeys(models, modes), "mean": dict.fromkeys(models, mean), "pairs": []}
    scores["weights"] = {"finetune": base}
    write_json(checkpoints / "evaluate/metrics/scores.json", scores)
    curve = [{"env_steps": 700, "updates": 10, "seconds": 3.0, "score": 0.8}]
    adapted = {"task": "push", "zero_shot": score, "adapted": score | {"score": 0.8}, "curve": curve, "demos": 5}
    adapted |= {"adapter_parameters": 50, "base_parameters": 1000, "stage": "adapt"}
    write_json(checkpoints / "adapt/push/metrics/summary.json", run | adapted)
    videos = []
    for task, own in (("walk", 0.3), ("reach", 0.9)):
        (checkpoints / "evaluate/videos").mkdir(exist_ok=True)
        (checkpoints / f"evaluate/videos/{task}.mp4").write_bytes(task.encode())
        videos.append({"task": task, "instruction": task, "score": own, "file": f"{task}.mp4"})
    write_json(checkpoints / "evaluate/videos/index.json", videos)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a finished run, which tests only copy, and the release made of it in `ready/`."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    write_release(folder, read_results(folder), folder / "ready", "me/eft-test")
    return folder


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, which is the working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def release(root: Path) -> Callable[..., Path]:
    """Makes the release folder of the run, to be found at `repo_id`."""

    def make(repo_id: str | None = None, folder: str = "release", demos_repo_id: str | None = None) -> Path:
        write_release(".", read_results("."), folder, repo_id, demos_repo_id)
        return Path(folder)

    return make


@pytest.fixture
def server() -> Iterator:
    with SERVER["serve"]() as running:
        yield running


@pytest.fixture
def api(server, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    # What HF_HUB_DISABLE_XET=1 sets at import: plain servers do not speak that protocol.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=server.url, token=SERVER["TOKEN"])


@pytest.fixture
def here(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The server, for clients within this process, logged in and with an empty cache."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
    monkeypatch.setenv("HF_TOKEN", server.token)
    return server


@pytest.fixture
def client(root: Path, server) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python in a process of its own, logged in to the server, with a cache of its own in `root`."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": server.token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(root / "hf"),
        "PYTHONPATH": str(PROJECT),
    }

    def run(*arguments: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment | more, cwd=root, capture_output=True, text=True, timeout=120)
        assert server.token not in done.stdout + done.stderr
        if check and done.returncode:
            pytest.fail(f"{arguments} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run
