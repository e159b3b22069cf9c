"""One run of the comparison of systems: its parameters, its stages as processes of their own, what came out.

    python -m benchmarks.system_runs         measures the run of this folder: what `Run.start` starts at the end

A run is what a user would do: a folder with params.yaml, `stages.pretrain` and `stages.finetune` in it. So a system is
its parameters and nothing else, its seconds and memory are its own, and a run that was stopped goes on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

import pipeline
from benchmarks.interference import count_parameters, dormant_units, gradient_conflict, probe
from pipeline import config
from pipeline.agent import Agent
from pipeline.files import atomic_file, read_json, write_json
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.learn.evaluator import Evaluator
from pipeline.learn.replay import from_demos
from pipeline.learn.task_setup import EMBEDDINGS, load_demonstrations
from pipeline.results import read_curves
from pipeline.run.launch import die_with_parent, seed_everything
from pipeline.run.metrics import FILE, read_rows
from pipeline.systems.build import make_replay
from pipeline.tasks import registry

CODE = Path(pipeline.__path__[0]).parent
SETUP = Path(__file__).with_name("systems.yaml")
PRESETS = CODE / "presets"
_BASE = "quickstart"
_STAGES = ("pretrain", "finetune")
_MEASURED = "measured.json"
_SLICES = 256  # per task, that gradients and activations are taken over
# Widths that grow and shrink with model.mlp_dim until a system has its active parameters.
_WIDTHS = (("mlp_dim",), ("experts", "hidden"), ("history", "dim"), ("history", "mlp_dim"))
_WIDTH_STEP = 8


# --- parameters -------------------------------------------------------------------------------------------------------


def read_setup(path: Path = SETUP) -> dict[str, Any]:
    """Read systems.yaml."""
    return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as plain values, with ruamel as params.yaml is."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def merge(base: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the values of the others put over it, section by section; a null is no section."""
    merged: dict[str, Any] = dict(copy.deepcopy(base))
    for other in others:
        for key, value in other.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def parameters(setup: Mapping[str, Any], system: str, quick: bool, presets: Path = PRESETS) -> dict[str, Any]:
    """Return every parameter of a system, before its width is made to fit and without a seed.

    Raises:
        FileNotFoundError: its preset does not exist.
        ValueError: it names an unknown parameter or an impossible value.
    """
    own = setup["systems"][system]
    layers = [read_yaml(presets / f"{own['preset']}.yaml")] if "preset" in own else []
    layers += [setup["common"], {key: value for key, value in own.items() if key in config.SECTIONS}]
    if quick:
        layers += [setup["quick"], own.get("quick", {})]
    found = merge(read_yaml(presets / f"{_BASE}.yaml"), *layers)
    for name, section in config.SECTIONS.items():
        config.parse(section, found[name], f"the comparison's system {system}: {name}")
    return found


def model_sizes(params: Mapping[str, Any]) -> config.Model:
    """Return the sizes of the model, with a number of clusters where that is yet to be found in training."""
    model = copy.deepcopy(params["model"])
    clusters = model.get("clusters")
    if clusters and clusters["num"] == "auto":
        clusters["num"] = clusters["max_num"]
    return config.parse(config.Model, model, "the comparison: model")


def fit_width(params: dict[str, Any], active: int) -> dict[str, Any]:
    """Return the parameters with the model's widths such that it has as nearly as can be `active` active parameters.

    `model.mlp_dim` goes through the multiples of 8; the widths of experts and of a Transformer, where there are any,
    keep their proportion to it.
    """
    low, high = 1, 4 * max(1, params["model"]["mlp_dim"] // _WIDTH_STEP)
    while low < high:  # the smallest width with at least as many
        middle = (low + high) // 2
        found = count_parameters(model_sizes(with_width(params, middle * _WIDTH_STEP)))[1]
        low, high = (low, middle) if found >= active else (middle + 1, high)
    nearby = [with_width(params, width * _WIDTH_STEP) for width in (low - 1, low) if width]
    return min(nearby, key=lambda one: abs(count_parameters(model_sizes(one))[1] - active))


def with_width(params: dict[str, Any], mlp_dim: int) -> dict[str, Any]:
    """Return the parameters with another `model.mlp_dim`, and what grows with it."""
    scaled, first = copy.deepcopy(params), params["model"]["mlp_dim"]
    for *sections, name in _WIDTHS:
        place: Any = scaled["model"]
        for section in sections:
            place = (place or {}).get(section)
        if place:
            place[name] = max(_WIDTH_STEP, _WIDTH_STEP * round(place[name] * mlp_dim / first / _WIDTH_STEP))
    return scaled


# --- one run ----------------------------------------------------------------------------------------------------------


class RunFailed(RuntimeError):
    """A stage of a run ended with an error."""


@dataclass
class Run:
    """One system trained with one seed.

    Attributes:
        system: its name in systems.yaml.
        seed: of everything drawn.
        params: every parameter, its seed included.
        codes: tasks are told apart by random vectors and not by their texts.
        folder: that it works in, and that is removed when it is done.
        result: file that keeps what came out.
    """

    system: str
    seed: int
    params: dict[str, Any]
    codes: bool
    folder: Path
    result: Path = field(init=False)

    def __post_init__(self) -> None:
        settings = json.dumps([self.params, self.codes], sort_keys=True)
        self.name = f"{self.system}-{self.seed}"
        self.result = self.folder / f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"
        self.folder = self.result.with_suffix("")

    @property
    def updates(self) -> int:
        """How many updates it makes: the length of its way."""
        return self.params["pretrain"]["updates"] + round(self.params["finetune"]["env_steps"] * self._utd)

    @property
    def updates_done(self) -> int:
        """How many of them are done, to within a log line."""
        if self.result.exists() or self._summary("finetune").exists():
            return self.updates
        if not self._summary("pretrain").exists():
            return _position(self.folder, "pretrain")
        return self.params["pretrain"]["updates"] + round(_position(self.folder, "finetune") * self._utd)

    def _summary(self, stage: str) -> Path:
        return self.folder / f"checkpoints/{stage}/metrics/summary.json"

    @property
    def _utd(self) -> float:
        return self.params["finetune"]["utd"]

    def start(self, shared: Path) -> dict[str, Any]:
        """Run it, or go on with it, unless it is done; return what came out.

        Args:
            shared: folder whose `datasets` holds demonstrations and embeddings.

        Raises:
            RunFailed: a stage failed; the end of what it wrote is in the message.
        """
        if not self.result.exists():
            prepare(self.folder, self.params, shared, self.codes)
            for stage in _STAGES:
                if not self._summary(stage).exists():  # a stage writes it last
                    execute(f"stages.{stage}", self.folder)
            execute("benchmarks.system_runs", self.folder)
            content = read_json(self.folder / _MEASURED, "python -m benchmarks.systems")
            write_json(self.result, {"system": self.system, "seed": self.seed, **content})
            shutil.rmtree(self.folder)
        return read_json(self.result, "python -m benchmarks.systems")


def _position(folder: Path, stage: str) -> int:
    """Return how far a stage under way has come, by its last log line."""
    for path in folder.glob(f".resume/{stage}-*/metrics/{FILE}"):
        try:
            return max((row["step"] for row in read_rows(path)), default=0)
        except OSError:  # it has just gone
            return 0
    return 0


def prepare(folder: Path, params: Mapping[str, Any], shared: Path | None = None, codes: bool = False) -> None:
    """Make the folder a run works in: parameters, and the data sets that all runs share."""
    (folder / params["tasks"]["folder"]).mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "params.yaml") as partial, partial.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(dict(params), file)
    if shared is None:
        return
    (folder / EMBEDDINGS.parent).mkdir(exist_ok=True)
    for path in sorted((shared / EMBEDDINGS.parent).iterdir()):
        link = folder / EMBEDDINGS.parent / path.name
        if codes and path.name == EMBEDDINGS.name:
            random_codes(TaskEmbeddings.load(path)).save(link)
        elif not link.exists():
            link.symlink_to(path.resolve())


def random_codes(embeddings: TaskEmbeddings) -> TaskEmbeddings:
    """Return, in place of the texts' vectors, one vector of random signs and length 1 for each task.

    In as many dims as a text's vector has they are nearly orthogonal, so that they tell the tasks apart as one-hot
    codes do, and say nothing of what the tasks have in common. Every phrasing of a task has the same.
    """
    num, phrasings, dim = embeddings.vectors.shape
    signs = np.random.default_rng(0).choice(np.array([-1, 1], dtype=np.float32), (num, 1, dim)) / math.sqrt(dim)
    signs = signs.astype(np.float32)
    return TaskEmbeddings(
        np.repeat(signs, phrasings, axis=1), embeddings.names, embeddings.texts, f"random-signs-{dim}",
        signs[:, 0].copy(), embeddings.unseen_texts,
    )  # fmt: skip


def execute(module: str, folder: Path) -> None:
    """Run a module as a process of one thread in a folder, what it writes going to `log.txt` there.

    Raises:
        RunFailed: it ended with an error.
    """
    environment = os.environ | {"PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        code = process.wait()
    if code:
        last_lines = "\n".join((folder / "log.txt").read_text(encoding="utf-8").splitlines()[-8:])
        raise RunFailed(f"{module} in {folder} ended with exit code {code}. It said at last:\n{last_lines}")


# --- what came out ----------------------------------------------------------------------------------------------------


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Evaluate the finetuned model of a run and read what its stages measured of themselves."""
    path = folder / "params.yaml"
    tasks, evaluate = config.load(config.Tasks, path), config.load(config.Evaluate, path)
    agent = Agent.from_pretrained(folder / "checkpoints/finetune/model")
    specs = registry.get(tasks.train)
    names, widths = [spec.name for spec in specs], (agent.model.config.obs_dim, agent.model.config.action_dim)
    scores = {}
    with Evaluator(specs, evaluate.episodes, *widths, seed + 100, 0) as evaluator:
        for mode in ("policy", "plan"):
            results = evaluator.run(agent.actor, names, mode == "plan", f"final evaluation, {mode}", seed)
            scores[mode] = {name: result.scores for name, result in zip(names, results, strict=True)}
    runs = {stage: read_json(folder / f"checkpoints/{stage}/metrics/summary.json", "") for stage in _STAGES}
    curve = read_curves(folder / "checkpoints/finetune/metrics")["eval/score"]
    total, active = count_parameters(agent.model.config)
    return {
        "scores": scores,
        "curve": {"env_steps": curve.steps, "score": curve.values},
        "env_steps": runs["finetune"]["env_steps"],
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs.values()),
        "parameters": total,
        "active_parameters": active,
        "commit": runs["finetune"]["commit"],
        **interference(agent, names, config.load(config.Learning, path), seed),
    }


def interference(agent: Agent, names: Sequence[str], learning: config.Learning, seed: int) -> dict[str, Any]:
    """Measure gradient conflict and dormant units on slices of every task's demonstrations."""
    demos = load_demonstrations([agent.tasks[name] for name in names])
    sizes, batches = agent.model.config, []
    for name in names:
        rows = [(agent.table.names.index(name), episode) for episode in demos[name]]
        replay = from_demos(rows, sizes.obs_dim, sizes.action_dim, agent.planner.horizon, make=make_replay(sizes))
        batches.append(replay.sample(_SLICES, torch.Generator().manual_seed(seed)))
    learner = probe(agent.model, agent.table, learning)
    conflict, dormant = gradient_conflict(learner, batches), dormant_units(learner, batches)
    return {
        "gradient_cosine": conflict.mean_cosine,
        "negative_pairs": conflict.negative_share,
        "gradient_cosine_by_part": conflict.parts,
        "dormant_units": dormant.share,
    }


def main() -> None:
    """Measure the run of this folder."""
    die_with_parent()
    torch.set_num_threads(1)
    seed = config.load_seed()
    seed_everything(seed)
    write_json(Path(_MEASURED), measure(Path(), seed))


if __name__ == "__main__":
    main()
