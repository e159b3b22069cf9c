"""Sound inputs of every kind, and what reads them: everything is imported here, before a reader is forked."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.reliability.fuzz import DATA, ROOT, Kind, tests_file
from pipeline import config, known_tasks  # noqa: F401
from pipeline.agent import Agent
from pipeline.data.demos import read_episodes
from pipeline.demonstrate.teacher import load_teacher
from pipeline.hub.release import write_release
from pipeline.importers import lerobot, minari, newt, plain, robomimic
from pipeline.importers.episodes import Reading, import_episodes
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.results import read_curves, read_results
from pipeline.run.metrics import read_rows
from pipeline.run.ranks import Ranks
from pipeline.run.run_dir import open_run_dir
from pipeline.run.saves import Saves
from pipeline.tasks import registry
from pipeline.tasks.spec import SUCCESS, TaskSpec

_TINY, _HUB, _EXPERTS = tests_file("tiny_agent.py"), tests_file("hub/conftest.py"), tests_file("experts.py")


def spec_of(obs_dim: int, action_dim: int, length: int) -> TaskSpec:
    """Return a made-up task of these sizes."""
    return TaskSpec(
        name="own", suite="gymnasium", env_id="Pendulum-v1", embodiment="A body.", instructions=("Do it.",),
        obs_dim=obs_dim, action_dim=action_dim, action_repeat=1, episode_length=length, score=SUCCESS,
    )  # fmt: skip


def _import(source: Any, spec: TaskSpec) -> None:
    import_episodes(source, spec, "x", None, Reading(successful=True), "out")
    read_episodes("out/own/episodes.parquet", "x")


def _project(folder: Path) -> None:
    _HUB["write_run"](folder)


def _params(folder: Path) -> None:
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")


def _read_params() -> None:
    for section in config.SECTIONS.values():
        config.load(section, "params.yaml")
    config.load_seed("params.yaml")


def _copy(source: str) -> Any:
    def make(folder: Path) -> None:
        (shutil.copytree if (DATA / source).is_dir() else shutil.copy)(DATA / source, folder / Path(source).name)

    return make


_NEWT_TASKS = {
    name: dataclasses.replace(spec_of(24, width, 50), name=name) for name, width in (("a", 6), ("b", 2), ("c", 1))
}


def _newt_checkpoint(folder: Path) -> None:
    _copy("newt_tiny_checkpoint.pt")(folder)
    (folder / "tasks.json").write_text('["a", "b", "c"]', encoding="utf-8")


def _tasks(folder: Path) -> None:
    (folder / "tasks").mkdir()
    text = (
        "{name: own, suite: gymnasium, env_id: Pendulum-v1, embodiment: A pole., instructions: [Swing.], obs_dim: 3,\n"
        " action_dim: 1, action_repeat: 1, episode_length: 6, score: return/15, env_kwargs: {g: 9.8}, discount: 0.9}\n"
    )
    (folder / "tasks/own.yaml").write_text(text, encoding="utf-8")


def _agent(folder: Path) -> None:
    _TINY["make_agent"]().save_pretrained(folder / "agent")
    _TINY["adapted"](folder / "agent", folder / "adapter")


def _act() -> None:
    agent = Agent.from_pretrained("agent")
    agent.add_adapter("adapter")
    agent.reset(seed=0)
    for name in ("walk", "pull"):
        action = agent.act(np.zeros(agent.tasks[name].obs_dim, np.float32), task=name)
        assert np.isfinite(action).all(), "actions are not finite"


def _robomimic(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(folder / "low_dim.hdf5", "w") as file:
        for number, length in enumerate((5, 6, 7)):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["rewards"] = rng.uniform(-1, 1, (length, 2)), rng.uniform(size=length)
            demo["dones"] = np.arange(length) == length - 1
            demo["obs/object"], demo["next_obs/object"] = rng.normal(size=(2, length, 4))


def _plain(folder: Path) -> None:
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(6, 3)), rng.uniform(-1, 1, (5, 2))
    np.savez(folder / "a.npz", obs=obs, action=action, reward=rng.uniform(size=5))
    np.savez_compressed(folder / "b.npz", obs=obs, action=action)
    pq.write_table(pa.table({"obs": [obs.tolist()], "action": [action.tolist()]}), folder / "c.parquet")


def _metrics(folder: Path) -> None:
    rows = [f'{{"step": {step}, "train/total_loss": {1 / (step + 1)}, "eval/score": 0.5}}\n' for step in range(50)]
    (folder / "metrics.jsonl").write_text("".join(rows), encoding="utf-8")


def _read_metrics() -> None:
    list(read_rows(Path("metrics.jsonl")))
    read_curves(Path())


def _teacher(folder: Path) -> None:
    spec = spec_of(3, 1, 6)
    _EXPERTS["untrained_teacher"](spec).save(folder / "teacher.safetensors")


def _embeddings(folder: Path) -> None:
    _TINY["embeddings_of"](_TINY["SPECS"]).save(folder / "embeddings")


def _run_dir(folder: Path) -> None:
    """Begin a run and leave it unfinished, as an error does."""
    with (
        contextlib.chdir(folder),
        contextlib.suppress(InterruptedError),
        open_run_dir("fuzz", [{"lr": 0.1}], [], 1) as run,
    ):
        (run / "save-000000000001").mkdir()
        raise InterruptedError("stopped")


def _go_on() -> None:
    with open_run_dir("fuzz", [{"lr": 0.2}], [], 1):
        pass


def _save(folder: Path) -> None:
    draws = torch.Generator().manual_seed(0).get_state()
    own = {"generator": draws}, {"num_summed": 1, "batch_size": 2, "recent": {}}
    saves = Saves(folder / "run", 2, Ranks())
    for position in (1, 2):
        saves.save(position, {"learner": torch.ones(3)}, own, {"seconds": 1.0, "updates_owed": 0.0}, None)
    saves.finish()


def _resume() -> None:
    saved = Saves(Path("run"), 2, Ranks()).load()
    assert saved is not None
    saved.learner()
    saved.of_rank(0)


def _release(folder: Path) -> None:
    _HUB["write_run"](folder)
    with contextlib.chdir(folder):
        write_release(".", read_results("."), "release", "me/eft-test")


KINDS: dict[str, Kind] = {
    "params": Kind(_params, "*.yaml", _read_params),
    "task": Kind(_tasks, "tasks/*.yaml", lambda: registry.load_catalogue("tasks")),
    "checkpoint": Kind(_agent, "agent/*.json", _act),
    "weights": Kind(_agent, "agent/*.safetensors", _act),
    "adapter": Kind(_agent, "adapter/*", _act),
    "demonstrations": Kind(
        _project, "datasets/demos/walk/*.parquet", lambda: read_episodes("datasets/demos/walk/episodes.parquet", "x")
    ),
    "results": Kind(_project, "checkpoints/*/metrics/*.json", lambda: read_results(".")),
    "release": Kind(_release, "release/*.json", lambda: Agent.from_pretrained("release")),
    "lerobot": Kind(
        _copy("lerobot"),
        "lerobot/**/*.*",
        lambda: _import(lerobot.read_demos("lerobot", spec_of(6, 2, 9), "push the block"), spec_of(6, 2, 9)),
    ),
    "minari hdf5": Kind(
        _copy("minari/hdf5"),
        "hdf5/data/*",
        lambda: _import(minari.read_demos("hdf5", spec_of(3, 1, 6)), spec_of(3, 1, 6)),
    ),
    "minari parquet": Kind(
        _copy("minari/parquet"),
        "parquet/data/**/*.*",
        lambda: _import(minari.read_demos("parquet", spec_of(3, 1, 6)), spec_of(3, 1, 6)),
    ),
    "robomimic": Kind(
        _robomimic, "*.hdf5", lambda: _import(robomimic.read_demos("low_dim.hdf5", spec_of(4, 2, 9)), spec_of(4, 2, 9))
    ),
    "plain": Kind(_plain, "*", lambda: _import(plain.read_demos(".", spec_of(3, 2, 9)), spec_of(3, 2, 9))),
    "newt demonstrations": Kind(
        _copy("newt_demos.pt"),
        "*.pt",
        lambda: _import(newt.read_demos("newt_demos.pt", spec_of(4, 2, 5)), spec_of(4, 2, 5)),
    ),
    "newt checkpoint": Kind(
        _newt_checkpoint, "*", lambda: newt.import_checkpoint("newt_tiny_checkpoint.pt", _NEWT_TASKS, "tasks.json")
    ),
    "metrics": Kind(_metrics, "*.jsonl", _read_metrics),
    "teacher": Kind(_teacher, "*.safetensors", lambda: load_teacher("teacher.safetensors", spec_of(3, 1, 6))),
    "embeddings": Kind(_embeddings, "embeddings/*", lambda: TaskEmbeddings.load("embeddings")),
    "save": Kind(_save, "run/**/*", _resume),
    "unfinished run": Kind(_run_dir, ".resume/**/*.json", _go_on),
}
