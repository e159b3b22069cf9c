"""Demonstrations without rewards go through the stages beside others, and a new task is adapted to from them alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets
import gymnasium
import numpy as np
import pytest

from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.data.demos import write_episodes
from pipeline.data.episode import Episode
from pipeline.hub.demos import write_demos_release
from pipeline.model.task_table import POLICY, TIED
from pipeline.results import read_curves
from pipeline.tasks import registry
from stages import demos, embed, finetune, pretrain, report
from tests.stages.test_without_demos import change, project

__all__ = ["project"]  # the fixture: a folder with small parameters, and tasks of the user's own

pytestmark = pytest.mark.slow


def play(task: str, count: int, rewarded: bool) -> list[Episode]:
    """Episodes of random actions."""
    env, rng, episodes = gymnasium.make("Pendulum-v1"), np.random.default_rng(0), []
    for seed in range(count):
        obs, rewards = [env.reset(seed=seed)[0]], []
        action = rng.uniform(-1, 1, (100, 1)).astype(np.float32)
        for one in action:
            following, reward, *_ = env.step(2 * one)
            obs.append(following)
            rewards.append(reward)
        reward = np.array(rewards, np.float32) if rewarded else np.full(100, np.nan, np.float32)
        total = float(reward.sum(dtype=np.float64))
        score = min(max((total + 1000) / 1000, 0.0), 1.0) if rewarded else np.nan
        values = np.array(obs, np.float32), action, action, reward, False, False, score, total, seed, "hand"
        episodes.append(Episode(task, *values))
    env.close()
    return episodes


def test_a_mixture_of_tasks_with_and_without_rewards(project: Path, capsys) -> None:
    change(
        tasks={"train": ["gym-swing", "gym-spin"], "held_out": []},
        finetune={"env_steps": 400, "log_every": 400, "eval_every": 400},
    )
    for task in ("gym-swing", "gym-spin"):
        write_episodes(f"my_tasks/demos/{task}/episodes.parquet", play(task, 3, rewarded=task == "gym-swing"))
    for stage in (demos, embed, pretrain):
        stage.main()
    found = json.loads(Path("datasets/demos.json").read_text())["tasks"]
    assert found["gym-spin"]["score"] is None
    assert 0 < found["gym-swing"]["score"] < 1
    assert "pretrain: gym-spin: reward unknown in all episodes" in capsys.readouterr().err
    table = Agent.from_pretrained("checkpoints/pretrain/model").table
    constraint = dict(zip(table.names, table.constraint.tolist(), strict=True))
    assert constraint == {"gym-swing": TIED, "gym-spin": POLICY}, "no plan is made where nothing says what it is worth"
    curves = read_curves(Path("checkpoints/pretrain/metrics"))
    assert all(np.isfinite(values).all() for _, values in curves.values())
    finetune.main()
    curves = read_curves(Path("checkpoints/finetune/metrics"))
    assert {"online/gym-spin", "train/reward_loss"} <= set(curves)
    assert all(np.isfinite(values).all() for _, values in curves.values())
    report.main()
    assert "reward unknown" in Path("checkpoints/report/report.html").read_text()

    specs = registry.get(["gym-swing", "gym-spin"], Path("my_tasks"))
    write_demos_release("datasets/demos", specs, "release", None)
    assert "| gym-spin | 3 | 300 | 3 | 1 | reward unknown |" in Path("release/README.md").read_text()
    rows = list(datasets.load_dataset("release", "gym-spin", split="train", streaming=True))
    assert [row["reward"] for row in rows] == [None] * 3
    assert len(rows[0]["obs"]) == 101


def test_a_task_is_adapted_to_from_demonstrations_without_rewards(tmp_path: Path, monkeypatch, capsys) -> None:
    from tests.test_adapt import prepare

    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, Path("base"))
    episodes = []
    for one in play("swing", 3, rewarded=False):
        cut = {name: getattr(one, name)[:20] for name in ("action", "expert_action", "reward")}
        episodes.append(dataclasses.replace(one, obs=one.obs[:21], **cut))
    write_episodes("demos/swing/episodes.parquet", episodes)
    command = ["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--env-steps", "0", "--no-video"]
    assert main(command) == 0
    assert "adapt swing: reward unknown in all episodes" in capsys.readouterr().err
    (adapter,) = Path().glob("**/adapter_config.json")
    weights = next(adapter.parent.glob("*.safetensors"))
    assert weights.stat().st_size > 0
    summary = json.loads((adapter.parent / "summary.json").read_text())
    assert summary["demos"] == 3
    agent = Agent.from_pretrained("base")
    agent.add_adapter(adapter.parent)
    assert np.isfinite(agent.act(np.zeros(3, np.float32), task="swing")).all()
    assert main(["check-data", "demos", "--page", "page.html"]) == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "note  swing: reward unknown in all episodes" in shown
    assert "reward unknown" in Path("page.html").read_text()
