"""`eft adapt` and `eft grow` from the command line, on a real simulator and a task file of one's own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import config
from pipeline.adapters import CONFIG, WEIGHTS
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.data.demos import write_episodes
from pipeline.data.episode import Episode
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.learn.evaluator import Evaluator, Result
from pipeline.model.task_table import TIED, TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.run.run_dir import hold_output
from pipeline.run.saves import Saves
from pipeline.tasks import registry
from pipeline.tasks.registry import make
from tests.experts import untrained_teacher

ROOT = Path(__file__).parent.parent
TASK = """\
name: {name}
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pole hangs from a motor{body}.
instructions: ["{text}", "{text} Quickly."]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 20
score: clip((return+200)/200,0,1)
"""


def prepare(folder: Path, checkpoint: Path) -> None:
    """Make a working folder, with params.yaml and two tasks, and a small untrained checkpoint that knows one."""
    params = (ROOT / "tests/tiny.yaml").read_text()
    params = params.replace("  updates: 10\n", "  updates: 8\n").replace("    env_steps: 300", "    env_steps: 120")
    params = params.replace("  eval_every: 10\n", "  eval_every: 4\n").replace(
        "    eval_every: 200", "    eval_every: 60"
    )
    (folder / "params.yaml").write_text(params)
    (folder / "my_tasks").mkdir()
    (folder / "my_tasks/hang.yaml").write_text(TASK.format(name="hang", text="Hang.", body=""))
    (folder / "swing.yaml").write_text(TASK.format(name="swing", text="Swing up.", body=" of its own"))
    torch.manual_seed(0)
    (spec,) = registry.get(["hang"], folder / "my_tasks")
    sizes = config.load(config.Model, folder / "params.yaml")
    embeddings = embed(HashedNgrams(sizes.task_dim), ["hang"], [[spec.text(0), spec.text(1)]], 2)
    mask = torch.zeros(1, sizes.action_dim)
    mask[0, 0] = 1
    statistics = torch.zeros(1, sizes.obs_dim), torch.ones(1, sizes.obs_dim)
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.95]), *statistics)
    planner = config.load(config.Planner, folder / "params.yaml")
    Agent(WorldModel(sizes), [spec], embeddings, table, planner).save_pretrained(folder / checkpoint)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare(tmp_path, Path("base"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "base"


def record_demos(folder: Path, count: int, task: Path = Path("swing.yaml")) -> None:
    spec = registry.load_file(task)
    env, episodes = make(spec, 3, 1), []
    for seed in range(count):
        obs, _ = env.reset(seed=seed)
        rows, done = [obs], False
        actions: list[np.ndarray] = []
        rewards: list[float] = []
        while not done:
            action = np.array([np.clip(-rows[-1][2], -1, 1)], np.float32)
            obs, reward, terminated, truncated, _ = env.step(action)
            rows.append(obs)
            actions.append(action)
            rewards.append(reward)
            done = terminated or truncated
        acted = np.stack(actions)
        total = float(np.sum(rewards))
        episodes.append(
            Episode(
                "swing", np.stack(rows).astype(np.float32), acted, acted, np.array(rewards, np.float32), False, False,
                spec.evaluate(total, False), float(np.float32(rewards).sum()), seed, "by hand",
            )
        )  # fmt: skip
    env.close()
    write_episodes(folder / "episodes.parquet", episodes)


@pytest.mark.slow
def test_both_kinds_of_experience_make_an_adapter_that_loads(base: Path, capsys: pytest.CaptureFixture[str]):
    record_demos(Path("demos"), 3)
    work = [Path("out", name) for name in ("notes.md", "task_embeddings/notes.md", "metrics/finetune/notes.md")]
    for path in work:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the user's")
    weights = (base / "model.safetensors").read_bytes()
    arguments = ["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--num-demos", "2", "--nearest", "1"]
    arguments += ["--no-video", "--output", "out"]
    assert main([*arguments, "--debug"]) == 0
    said = capsys.readouterr().out
    assert "reads like hang (cosine" in said
    assert "use it: Agent.from_pretrained('base').add_adapter('out')" in said
    assert (base / "model.safetensors").read_bytes() == weights
    assert ET.parse("out/curve.svg").getroot().tag.endswith("svg")
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["demos"] == 2
    assert [path.read_text() for path in work] == ["of the user's"] * 3
    assert {path.name for path in Path("out/metrics").iterdir()} == {"pretrain", "finetune"}
    points = [(point["env_steps"], point["updates"]) for point in summary["curve"]]
    assert points[:2] == [(0, 0), (0, 0)]  # zero-shot, and once more on the episodes that all others are judged by
    assert points[2][1] > 0
    assert points[-1][0] > 0
    assert points[-1][1] > 8
    agent = Agent.from_pretrained("base")
    before = agent.model.state_dict()["encoder.0.linear.weight"].clone()
    assert agent.add_adapter("out") == "swing"
    assert agent.table.constraint[agent.actor.rows(["swing"])].item() in range(3)
    agent.reset(seed=0)
    with_adapter = agent.act(np.ones(3), task="swing", plan=False)
    plain = Agent.from_pretrained("base")
    plain.add_task(agent.tasks["swing"], plain.embed(agent.tasks["swing"]), 0.95)
    assert not np.array_equal(with_adapter, plain.act(np.ones(3), task="swing", plan=False))
    hang = [one.act(np.ones(3), task="hang", plan=False) for one in (agent, plain)]
    assert np.array_equal(*hang)
    assert torch.equal(agent.model.state_dict()["encoder.0.linear.base_layer.weight"], before)
    assert not list(Path(".resume").glob("adapt-*"))
    assert main(arguments) == 2
    assert "already holds an adapter" in capsys.readouterr().err
    # Trained on, it is wrapped once as before, and moves from where it was.
    more = ["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--env-steps", "0", "--no-video"]
    assert main([*more, "--adapter", "out", "--output", "more", "--debug"]) == 0
    first, second = (load_file(Path(folder, WEIGHTS)) for folder in ("out", "more"))
    assert {name: tensor.shape for name, tensor in first.items()} == {name: t.shape for name, t in second.items()}
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_sigterm_in_the_last_save_of_the_first_phase_does_not_begin_the_second(
    base: Path, monkeypatch: pytest.MonkeyPatch
):
    record_demos(Path("demos"), 1)
    save = Saves.save

    def signalled(self: Saves, position: int, *arguments: Any) -> None:
        save(self, position, *arguments)
        if self.folder.name == "pretrain" and position == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = ["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--no-video", "--output", "out"]
    with monkeypatch.context() as patched:
        patched.setattr(Saves, "save", signalled)
        assert main(arguments) == 130
    (run_dir,) = Path(".resume").glob("adapt-*/")
    assert max(path.name for path in run_dir.glob("*/save-*")) == "save-000000000008"
    assert not (run_dir / "finetune").exists()
    assert main(arguments) == 0
    assert json.loads(Path("out/summary.json").read_text())["curve"][-1]["env_steps"] > 0


@pytest.mark.slow
def test_demonstrations_that_only_did_harm_leave_nothing(base: Path, monkeypatch: pytest.MonkeyPatch):
    record_demos(Path("demos"), 1)
    played = Evaluator.run
    judged: list[str] = []

    def harmed(self: Evaluator, *arguments: Any, **options: Any) -> list[Result]:
        if not arguments[3].endswith("evaluating"):
            return played(self, *arguments, **options)
        judged.append(arguments[3])
        return [Result([float(len(judged) <= 2)], [0.0])]  # the start scores 1 by policy and by plans, all else 0

    monkeypatch.setattr(Evaluator, "run", harmed)
    arguments = ["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--env-steps", "0", "--no-video"]
    assert main([*arguments, "--output", "out", "--debug"]) == 0
    curve = json.loads(Path("out/summary.json").read_text())["curve"]
    assert [(point["updates"], point["score"]) for point in curve[1:]] == [(0, 1.0), (4, 0.0), (8, 0.0)]
    changes = {name: tensor for name, tensor in load_file(Path("out", WEIGHTS)).items() if "lora_B" in name}
    assert changes
    assert not any(tensor.any() for tensor in changes.values())


@pytest.mark.slow
def test_interaction_alone_or_demonstrations_alone(base: Path, capsys: pytest.CaptureFixture[str]):
    record_demos(Path("demos/swing"), 1)
    common = ["adapt", "base", "--task", "swing.yaml", "--no-video", "--output"]
    assert main([*common, "alone", "--env-steps", "60"]) == 0
    assert {point["env_steps"] for point in json.loads(Path("alone/summary.json").read_text())["curve"]} > {0}
    assert main([*common, "cloned", "--env-steps", "0", "--demos", "demos"]) == 0
    assert {point["env_steps"] for point in json.loads(Path("cloned/summary.json").read_text())["curve"]} == {0}
    found = [json.loads(Path(name, "summary.json").read_text())["labels"] for name in ("alone", "cloned")]
    assert found == [{}, None]  # nobody can, nobody was asked
    # What the body observes is centred and scaled, though no demonstration and no known task says how.
    statistics = json.loads(Path("alone/task.json").read_text())["obs_std"]
    assert statistics[0] != 1
    assert statistics[3:] == [1.0] * (len(statistics) - 3)
    capsys.readouterr()
    assert main([*common, "none", "--env-steps", "0"]) == 2
    assert "nothing to learn swing from" in capsys.readouterr().err
    assert not Path("none", CONFIG).exists()
    assert main([*common, "none", "--demos", "my_tasks"]) == 2
    assert "no demonstrations of swing" in capsys.readouterr().err


BRIEF = """
import gymnasium
import numpy as np

class Brief(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends=1.0):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {}

    def step(self, action):
        obs = self.np_random.normal(size=3).astype(np.float32)
        return obs, -20.0, bool(self.np_random.random() < self.ends), False, {}

gymnasium.register("lab/Brief-v0", entry_point=Brief)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ends", [0.8, 1.0])
def test_learning_waits_for_an_episode_as_long_as_the_horizon(
    base: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, ends: float
):
    Path("brief_env.py").write_text(BRIEF)
    task = Path("swing.yaml").read_text().replace("Pendulum-v1", "brief_env:lab/Brief-v0")
    Path("brief.yaml").write_text(f"{task}env_kwargs: {{ends: {ends}}}\n")
    arguments = ["adapt", "base", "--task", "brief.yaml", "--no-video", "--env-steps", "120", "--output", "out"]
    if ends == 1:
        assert main(arguments) == 2
        assert "All of the first 50 episodes were shorter" in capsys.readouterr().err
        assert main([*arguments, "--env-steps", "16", "--output", "few"]) == 0
        assert "nothing was learned online" in caplog.text
    else:
        assert main(arguments) == 0
        assert json.loads(Path("out/summary.json").read_text())["curve"][-1]["updates"] > 0


@pytest.mark.slow
def test_two_runs_do_not_write_into_one_folder(base: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["adapt", "base", "--task", "swing.yaml", "--no-video", "--env-steps", "40"]
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--seed", "5"]
    first = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    while not Path("adapted/.swing.lock").exists():
        assert first.poll() is None
        time.sleep(0.01)
    Path("link").symlink_to("adapted")
    for output in ([], ["--output", "link/swing"]):
        assert main([*arguments, "--seed", "6", *output]) == 2
        assert "another `eft adapt` is going to write into" in capsys.readouterr().err
    assert first.wait() == 0
    assert json.loads(Path("adapted/swing/summary.json").read_text())["task"] == "swing"
    assert not Path("adapted/.swing.lock").exists()
    assert main([*arguments, "--seed", "6"]) == 2
    assert "already holds an adapter" in capsys.readouterr().err
    Path("other").symlink_to("elsewhere/other")  # where nothing is yet
    assert main([*arguments, "--seed", "6", "--output", "other"]) == 0
    assert Path("elsewhere/other/adapter_config.json").exists()
    assert Path("other").is_symlink()


def test_a_file_where_the_adapter_is_to_go_is_refused_before_anything_is_learned(base: Path, capsys):
    Path("notes").write_text("mine")
    assert main(["adapt", "no-checkpoint", "--task", "swing.yaml", "--env-steps", "40", "--output", "notes"]) == 2
    assert "notes is a file, where `eft adapt` is to write a folder. Choose another with --o" in capsys.readouterr().err
    assert Path("notes").read_text() == "mine"


def test_a_folder_is_free_again_when_its_run_failed(tmp_path: Path):
    out = tmp_path / "new" / "swing"
    with pytest.raises(KeyError), hold_output(out, "eft adapt"):
        raise KeyError
    with hold_output(out, "eft adapt"), pytest.raises(ValueError, match="--output"), hold_output(out, "eft adapt"):
        pass
    assert not out.parent.exists()


@pytest.mark.slow
def test_a_teacher_labels_what_is_done_in_a_new_task(base: Path, capsys: pytest.CaptureFixture[str]):
    spec, path = registry.load_file(Path("swing.yaml")), Path("checkpoints/teach/swing/teacher.safetensors")
    untrained_teacher(dataclasses.replace(spec, action_repeat=2)).save(path)
    arguments = ["adapt", "base", "--task", "swing.yaml", "--no-video", "--env-steps", "60", "--output", "out"]
    assert main(arguments) == 2
    assert f"{path}: this teacher is of 'swing-" in capsys.readouterr().err
    untrained_teacher(spec).save(path)
    assert main(arguments) == 0
    assert "adapt swing: what is done is labelled, in swing by teacher" in capsys.readouterr().err
    assert json.loads(Path("out/summary.json").read_text())["labels"] == {"swing": "teacher"}
    # Beside demonstrations of one's own it would be a second expert.
    record_demos(Path("demos/swing"), 1)
    assert main([*arguments[:-1], "own", "--demos", "demos"]) == 0
    assert "in swing by nobody (its demonstrations are by by hand, its expert is teacher:" in capsys.readouterr().err
    assert json.loads(Path("own/summary.json").read_text())["labels"] == {}


def test_a_checkpoint_grows_and_wider_tasks_say_so(base: Path, capsys: pytest.CaptureFixture[str]):
    wide = Path("swing.yaml").read_text().replace("obs_dim: 3", "obs_dim: 50")
    Path("wide.yaml").write_text(wide)
    assert main(["adapt", "base", "--task", "wide.yaml", "--env-steps", "20"]) == 2
    assert "`eft grow CHECKPOINT FOLDER --obs-dim 50`" in capsys.readouterr().err
    assert main(["grow", "base", "wider", "--obs-dim", "50", "--action-dim", "6"]) == 0
    old, new = Agent.from_pretrained("base"), Agent.from_pretrained("wider")
    assert (new.model.config.obs_dim, new.model.config.action_dim) == (50, 6)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for agent in (old, new):
        agent.reset(5, seed=0)
    acted = [agent.act(obs, task="hang", plan=False) for agent in (old, new)]
    np.testing.assert_allclose(*acted, rtol=1e-5, atol=1e-6)
    assert main(["grow", "base", "wider"]) == 2
    assert main(["grow", "base", "other"]) == 2
    assert "already: say with --obs-dim" in capsys.readouterr().err


def test_a_constraint_is_kept_with_the_checkpoint_and_older_ones_are_tied(base: Path):
    agent = Agent.from_pretrained(base)
    agent.table.constraint[0] = 0
    agent.save_pretrained("kept")
    assert Agent.from_pretrained("kept").table.constraint.tolist() == [0]
    path = Path("kept/tasks.json")
    content = json.loads(path.read_text())
    del content["tasks"][0]["constraint"]
    path.write_text(json.dumps(content))
    assert Agent.from_pretrained("kept").table.constraint.tolist() == [TIED]
