"""How fast a held-out task is learned, from how much, in which way, and what is forgotten by it.

    python -m benchmarks.few_shot            6 tasks of 3 domains, 3 seeds, 4 ways, 0 to 20 demonstrations: many hours
    python -m benchmarks.few_shot --quick    one task, one seed, two ways, 5 demonstrations: minutes

Needs the base of a finished `dvc repro finetune` (or --base). Every cell, one task learned once, is kept in
.resume/few_shot/ when it is done: the same command goes on where it stopped. With --jobs several cells are learned at
once, each in a process of its own with what it says in a log beside its result. Writes the cells to
results/few_shot.json, a figure of them to results/few_shot.svg and what they come to into results/adapt.json, with how
long the longest adaptation takes by itself, for which it is learned once more; with --quick or other options only if
--write is given. Cells that are in that file count as done, and those that were not asked for now count too, if they
were learned from the same base by the same parameters: so the whole can be learned in parts.

Ways: `adapter` on the base; `all` weights of the base; `scratch`, the same learning from random weights; `cloning`,
nothing but behaviour cloning from random weights. All stop early by the same rule, and see the same demonstrations.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.few_shot_figure import draw, level
from benchmarks.results import RESULTS, claim, write
from pipeline import config
from pipeline.adapt import Settings, adapt, curve, introduce, learn
from pipeline.agent import Agent
from pipeline.data.demos import load_demos
from pipeline.demonstrate.collect import collect
from pipeline.files import atomic_file, read_json, write_json
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.learn.evaluator import Evaluator
from pipeline.model.task_table import POLICY
from pipeline.model.world_model import WorldModel
from pipeline.run.launch import die_with_parent, start
from pipeline.run.provenance import commit, machine
from pipeline.run.run_dir import ROOT, fingerprint
from pipeline.statistics import bootstrap_mean
from pipeline.systems.build import build_model
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

TASKS = (
    # Trained tasks with a wall in the way, and a lock on the door they open ...
    "mw-reach-wall", "mw-pick-place-wall", "mw-button-press-wall", "mw-door-lock",
    # ... and two bodies that the base has not met.
    "og-point-var1", "pygame-point-maze-var4",
)  # fmt: skip
WAYS = ("adapter", "all", "scratch", "cloning")
DEMOS = (0, 1, 5, 20)
SEEDS = (1, 2, 3)
ENV_STEPS = 10_000
BASE = Path("checkpoints/finetune/model")
CELLS = RESULTS / "few_shot.json"
FIGURE = RESULTS / "few_shot.svg"


class Cell(NamedTuple):
    """One task learned once."""

    task: str
    way: str
    demos: int
    seed: int

    @property
    def name(self) -> str:
        """As a file is called."""
        return f"{self.task}-{self.way}-{self.demos}-{self.seed}"


def main() -> None:
    """Learn every cell that is not done yet and write results/adapt.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one task, one seed, adapter and scratch, 5 demonstrations"
    )
    parser.add_argument("--base", type=Path, default=BASE, help=f"the pretrained checkpoint (default: {BASE})")
    parser.add_argument("--tasks", nargs="+", help="other tasks")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="fewer ways")
    parser.add_argument("--demos", nargs="+", type=int, help="other numbers of demonstrations")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds")
    parser.add_argument("--env-steps", type=int, help=f"steps of interaction (default: {ENV_STEPS}, quick: 2000)")
    parser.add_argument("--jobs", type=int, default=1, help="cells learned at once, on a core each (default: 1)")
    parser.add_argument("--write", action="store_true", help="write results/adapt.json although not all was run")
    options = parser.parse_args()
    chosen = [options.tasks, options.ways, options.demos, options.seeds]
    everything = [TASKS, WAYS, DEMOS, SEEDS]
    little = [TASKS[:1], ("adapter", "scratch"), (5,), SEEDS[:1]]
    axes = [own or default for own, default in zip(chosen, little if options.quick else everything, strict=True)]
    env_steps = options.env_steps or (2000 if options.quick else ENV_STEPS)
    cells = [Cell(task, way, demos, seed) for task, way, demos, seed in itertools.product(*axes)]
    cells = [cell for cell in cells if cell.way != "cloning" or cell.demos]

    settings, tasks = read_settings(env_steps), config.load(config.Tasks)
    ranks = start(settings.runtime, settings.seed)
    shapes = {way: shape(way, settings, options.base) for way in WAYS}
    kept = recall(shapes)
    missing = [cell for cell in cells if cell not in kept]
    print(f"few-shot: {len(cells)} cells on {ranks.device}, {len(cells) - len(missing)} of them in {CELLS}", flush=True)
    demos = [config.load(config.Demos), [str(settings.evaluate.episodes)]]
    shared = ROOT / "few_shot" / fingerprint(demos, [options.base], settings.seed)
    folders = Folders(shared, shapes)
    specs = {spec.name: spec for spec in registry.get(sorted({cell.task for cell in cells}), tasks.folder)}
    if missing:
        collect_demos(list(specs.values()), max(cell.demos for cell in missing), shared, tasks)
        embed_texts(list(specs.values()), options.base, shared)
        learn_all(missing, specs, options.base, settings, folders, options.jobs)
    found = kept | {cell: read_json(folders.result(cell), "python -m benchmarks.few_shot") for cell in missing}
    asked = [own for own in (*chosen, options.env_steps, options.base != BASE) if own]
    written = options.write or not (asked or options.quick)
    if written:
        time_longest(found, tasks, options.base, settings, folders)
    before = {
        seed: before_scores(options.base, seed, settings, shared, ranks.device)
        for seed in sorted({cell.seed for cell in found})
    }
    tables = summarise(found, before, env_steps, settings.evaluate)
    print_tables(tables)
    if written:
        remember(found, shapes)
        every = {Cell(*axes) for axes in itertools.product(*everything)}
        every = {cell for cell in every if cell.way != "cloning" or cell.demos}
        with atomic_file(FIGURE) as partial:
            partial.write_text(draw(tables["scores"], TASKS, env_steps), encoding="utf-8")
        whole = every <= found.keys() and env_steps == ENV_STEPS
        seconds = sum(result["wall_seconds"] for result in found.values())
        command = " ".join(["python -m benchmarks.few_shot", *sys.argv[1:]])
        write("adapt", command, seconds, claims(found, before), whole_protocol=whole, cells=len(found), **tables)


class Folders(NamedTuple):
    """Where cells are learned."""

    shared: Path  # demonstrations, embedded texts, scores of the base
    shapes: dict[str, str]  # of each way: see `shape`

    def run_dir(self, cell: Cell) -> Path:
        """Where a cell is saved as it is learned."""
        return ROOT / "few_shot" / self.shapes[cell.way] / cell.name

    def result(self, cell: Cell) -> Path:
        """The file of a cell that is done."""
        return self.run_dir(cell).with_name(f"{cell.name}.json")


def shape(way: str, settings: Settings, base: Path) -> str:
    """Hash all that a way's results depend on: base, parameters (without the adapter's, if it has none), lengths."""
    adapting = dataclasses.asdict(settings.adapt)
    if way != "adapter":
        adapting = {key: value for key, value in adapting.items() if key not in ("parts", "rank", "alpha", "lr")}
    episodes = settings.evaluate.episodes
    return fingerprint([settings.learning, [json.dumps(adapting, sort_keys=True), str(episodes)]], [base], 0)


def recall(shapes: dict[str, str]) -> dict[Cell, dict[str, Any]]:
    """Return the cells of results/few_shot.json that are of these shapes."""
    stored = read_json(CELLS, "python -m benchmarks.few_shot")["cells"] if CELLS.exists() else []
    keyed = {Cell(*(one[field] for field in Cell._fields)): one for one in stored}
    return {cell: one for cell, one in keyed.items() if one["shape"] == shapes[cell.way]}


def remember(found: dict[Cell, dict[str, Any]], shapes: dict[str, str]) -> None:
    """Write results/few_shot.json, a line per cell."""
    lines = [json.dumps(found[cell] | {"shape": shapes[cell.way]}) for cell in sorted(found)]
    with atomic_file(CELLS) as partial:
        partial.write_text('{"cells": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def read_settings(env_steps: int) -> Settings:
    """Read params.yaml, with this many environment steps."""
    adapting = config.load(config.Adapt)
    adapting = dataclasses.replace(adapting, finetune=dataclasses.replace(adapting.finetune, env_steps=env_steps))
    learning, measured, runtime = (
        config.load(config.Learning),
        config.load(config.Evaluate),
        dataclasses.replace(config.load(config.Runtime), trackers=()),  # a thousand curves would tell nobody anything
    )
    return Settings(adapting, learning, measured, runtime, config.load_seed())


def collect_demos(specs: list[TaskSpec], count: int, folder: Path, tasks: config.Tasks) -> None:
    """Make as many demonstrations of each task as any cell needs, unless they are there."""
    demos, noted = folder / "demos", folder / "demos.json"
    wanted = {spec.name: count for spec in specs}
    if count and not (noted.exists() and all(read_json(noted, "").get(name, 0) >= count for name in wanted)):
        collecting = dataclasses.replace(config.load(config.Demos), held_out_episodes=count)
        own = Path(tasks.folder) / "demos"
        collect([(spec, count) for spec in specs], collecting, config.load_seed(), demos, folder / "attempts", own)
        write_json(noted, wanted)


def embed_texts(specs: list[TaskSpec], base: Path, folder: Path) -> None:
    """Embed each task's texts by the base's encoder, unless they are there: no cell then needs the encoder."""
    agent = Agent.from_pretrained(base)
    for spec in specs:
        if not (folder / "texts" / spec.name).exists():
            agent.embed(spec).save(folder / "texts" / spec.name)


def learn_all(
    cells: Sequence[Cell], specs: dict[str, TaskSpec], base: Path, settings: Settings, folders: Folders, jobs: int
) -> None:
    """Learn every cell that is not done yet, `jobs` at a time."""
    missing = [cell for cell in cells if not folders.result(cell).exists()]
    if jobs == 1:
        for number, cell in enumerate(missing):
            print(f"few-shot: cell {number + 1} of {len(missing)}: {cell.name}", flush=True)
            run(cell, specs[cell.task], base, settings, folders)
        return
    # A core each: neither processes for a cell's environments nor threads would find one of their own.
    settings = dataclasses.replace(settings, runtime=dataclasses.replace(settings.runtime, env_workers=0, threads=1))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), die_with_parent) as pool:
        learned = {pool.submit(run_aside, cell, specs[cell.task], base, settings, folders): cell for cell in missing}
        try:
            for number, one in enumerate(as_completed(learned)):
                one.result()
                print(f"few-shot: cell {number + 1} of {len(missing)} is done: {learned[one].name}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all others would be learned before the error is shown
            raise


def run_aside(cell: Cell, spec: TaskSpec, base: Path, settings: Settings, folders: Folders) -> None:
    """Learn one cell in a process of its own, which tells its log what it does."""
    path = folders.run_dir(cell).with_name(f"{cell.name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        run(cell, spec, base, settings, folders)


def time_longest(
    found: dict[Cell, dict[str, Any]], tasks: config.Tasks, base: Path, settings: Settings, folders: Folders
) -> None:
    """Add `alone_seconds` to the longest adaptation from 5 demonstrations, unless it has it: learned again by itself.

    It then has all cores, as `eft adapt` would; nothing it learns depends on their number.

    Raises:
        RuntimeError: it did not learn the same again.
    """
    own = [cell for cell in found if (cell.way, cell.demos) == ("adapter", 5)]
    if not own:
        return
    longest = max(own, key=lambda cell: found[cell]["seconds"])
    if "alone_seconds" in found[longest]:
        return
    print(f"few-shot: {longest.name} took longest: once more, by itself", flush=True)
    specs = registry.get([longest.task], tasks.folder)
    alone = folders._replace(shapes={way: f"{name}-alone" for way, name in folders.shapes.items()})
    collect_demos(specs, longest.demos, folders.shared, tasks)
    embed_texts(specs, base, folders.shared)
    learn_all([longest], {longest.task: specs[0]}, base, settings, alone, jobs=1)
    again = read_json(alone.result(longest), "python -m benchmarks.few_shot")
    if again["scores"] != found[longest]["scores"]:
        raise RuntimeError(
            f"{longest.name} scored {again['scores']} by itself and {found[longest]['scores']} beside others; {CELLS} "
            "holds cells of another machine or other code. Delete its line and learn it anew."
        )
    found[longest]["alone_seconds"] = again["adapt_seconds"]


def run(cell: Cell, spec: TaskSpec, base: Path, settings: Settings, folders: Folders) -> None:
    """Learn one cell and write its result."""
    started, run_dir = time.monotonic(), folders.run_dir(cell)
    settings = dataclasses.replace(settings, seed=cell.seed)
    demonstrations = load_demos(folders.shared / "demos", cell.task)[: cell.demos] if cell.demos else []
    agent = Agent.from_pretrained(base, device=start(settings.runtime, cell.seed).device)
    trained = list(agent.tasks.values())
    weights = digest(agent.model)
    texts = TaskEmbeddings.load(folders.shared / "texts" / cell.task)
    introduce(agent, spec, texts, demonstrations, settings.learning, cell.seed)
    result: dict[str, Any] = {}
    if cell.way == "adapter":
        done = adapt(agent, spec, demonstrations, settings, run_dir)
        result["adapt_seconds"] = round(time.monotonic() - started, 1)  # as long as one waits for `eft adapt`
        points, seconds = done.curve, done.seconds
        result |= {"parameters": done.adapter_parameters, "base_parameters": done.base_parameters}
        result["zero_shot"], result["scores"] = done.zero_shot["plan"]["scores"], done.adapted["plan"]["scores"]
    else:
        if cell.way != "all":
            torch.manual_seed(cell.seed)
            agent.model.load_state_dict(build_model(agent.model.config).state_dict())
            agent.actor.refresh()
        if cell.way == "cloning":
            alone = dataclasses.replace(settings.learning, consistency_coef=0.0, reward_coef=0.0, value_coef=0.0)
            offline = dataclasses.replace(settings.adapt.finetune, env_steps=0)
            settings = dataclasses.replace(
                settings, learning=alone, adapt=dataclasses.replace(settings.adapt, finetune=offline)
            )
            agent.table.constraint[:] = POLICY  # nothing else has learned anything
        runs = learn(agent, spec, demonstrations, settings, run_dir, plan=cell.way != "cloning")
        points = curve(runs)
        seconds = points[-1]["seconds"]
        agent.actor.refresh()
        result["scores"] = play([spec], agent, settings, "plan", cell.name)[spec.name]
    if cell.way in ("adapter", "all") and cell.demos == 5:
        if cell.way == "adapter":
            result["unchanged"] = digest(agent.model) == weights
        result["trained_tasks"] = play(trained, agent, settings, "policy", f"{cell.name}: what is forgotten")
    result |= {"curve": points, "seconds": round(seconds, 1), "wall_seconds": round(time.monotonic() - started, 1)}
    write_json(folders.result(cell), {**cell._asdict(), **result, "commit": commit(), "machine": machine()})
    shutil.rmtree(run_dir, ignore_errors=True)


def before_scores(
    base: Path, seed: int, settings: Settings, folder: Path, device: torch.device
) -> dict[str, list[float]]:
    """Return the base's scores on its own tasks, per episode, by the policy alone."""
    path = folder / f"before-{seed}.json"
    if not path.exists():
        agent = Agent.from_pretrained(base, device=device)
        specs = list(agent.tasks.values())
        write_json(path, play(specs, agent, dataclasses.replace(settings, seed=seed), "policy", "before adapting"))
    return read_json(path, "python -m benchmarks.few_shot")


def play(specs: list[TaskSpec], agent: Agent, settings: Settings, mode: str, label: str) -> dict[str, list[float]]:
    """Return the scores of each task's episodes."""
    widths, names = (agent.model.config.obs_dim, agent.model.config.action_dim), [spec.name for spec in specs]
    workers = settings.runtime.env_workers
    with Evaluator(specs, settings.evaluate.episodes, *widths, settings.seed + 100, workers) as evaluator:
        results = evaluator.run(agent.actor, names, mode == "plan", label, settings.seed)
    return {name: result.scores for name, result in zip(names, results, strict=True)}


def digest(model: WorldModel) -> str:
    """Return a hash of a model's own weights, whatever adapters are in."""
    found = hashlib.sha256()
    weights = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    for name in sorted(weights):
        if ".lora_" not in name and not name.startswith("target_q_heads."):
            found.update(name.encode() + weights[name].cpu().numpy().tobytes())
    return found.hexdigest()


def way_there(result: dict[str, Any]) -> list[tuple[float, float]]:
    """Return environment steps and score of each evaluation; the last is of what was kept, by all episodes."""
    evaluated = [(point["env_steps"], point["score"]) for point in result["curve"]]
    return [*evaluated, (evaluated[-1][0], float(np.mean(result["scores"])))]


def area(curve: list[tuple[float, float]], env_steps: int) -> float:
    """Return the mean score over environment steps 0 to env_steps."""
    return float(level(curve, np.linspace(0, env_steps, 1001)).mean())


def summarise(
    found: dict[Cell, dict[str, Any]],
    before: dict[int, dict[str, list[float]]],
    env_steps: int,
    measured: config.Evaluate,
) -> dict[str, Any]:
    """Return the tables: scores with intervals over seeds and episodes, areas, and what was forgotten."""

    def estimate(strata: Iterable[list[float]]) -> dict[str, float]:
        rng = np.random.default_rng(0)
        return bootstrap_mean(list(strata), measured.confidence, measured.bootstrap_samples, rng)._asdict()

    scores, forgetting = [], []
    key = lambda cell: (cell.task, cell.way, cell.demos)  # noqa: E731
    for (task, way, demos), group in itertools.groupby(sorted(found, key=key), key=key):
        cells = list(group)
        results = [found[cell] for cell in cells]
        curves = [way_there(result) for result in results]
        scores.append(
            {
                "task": task,
                "way": way,
                "demos": demos,
                "seeds": [cell.seed for cell in cells],
                **estimate(result["scores"] for result in results),
                "area": round(float(np.mean([area(curve, env_steps) for curve in curves])), 4),
                "env_steps": max(point["env_steps"] for result in results for point in result["curve"]),
                "seconds": float(np.mean([result["seconds"] for result in results])),
                "curves": curves,
            }
        )
        after = [
            (cell, result["trained_tasks"])
            for cell, result in zip(cells, results, strict=True)
            if "trained_tasks" in result
        ]
        if after:
            strata = lambda tables: [episodes for table in tables for episodes in table.values()]  # noqa: E731
            forgetting.append(
                {
                    "task": task,
                    "way": way,
                    "before": estimate(strata(before[cell.seed] for cell, _ in after)),
                    "after": estimate(strata(table for _, table in after)),
                }
            )
    return {"scores": scores, "forgetting": forgetting}


def claims(found: dict[Cell, dict[str, Any]], before: dict[int, dict[str, list[float]]]) -> dict[str, Any]:
    """Return the promised figures; what was not run does not hold."""

    def mean(way: str) -> float | None:
        cells = [c for c in found if c.way == way and c.demos == 5 and c.task.startswith("mw-")]
        return round(float(np.mean([np.mean(found[c]["scores"]) for c in cells])), 4) if cells else None

    adapter, scratch = mean("adapter"), mean("scratch")
    own = [result for cell, result in found.items() if cell.way == "adapter"]
    with_demos = [result for result in own if result["demos"] == 5]
    checked = [float(r["unchanged"] and r["trained_tasks"] == before[r["seed"]]) for r in with_demos]
    gain = None if adapter is None or scratch is None else round(adapter - scratch, 4)
    longest = max(with_demos, key=lambda result: result["seconds"], default={})
    shares = [result["parameters"] / result["base_parameters"] for result in own]
    return {
        "metaworld_5_demos_success": claim(adapter, 0.8, "above"),
        "metaworld_5_demos_above_scratch": claim(gain, 0.3, "above"),
        "training_tasks_unchanged": claim(min(checked) if checked else None, 1.0, "above"),
        "longest_adaptation_seconds": claim(longest.get("alone_seconds"), 300, "below"),
        "adapter_share_of_base": claim(round(max(shares), 4) if shares else None, 0.02, "below"),
    }


def print_tables(tables: dict[str, Any]) -> None:
    """Print what the report of the run is written from."""
    print(f"{'task':<20} {'way':<8} {'demos':>5}  score (interval)       area  env_steps  seconds")
    for row in tables["scores"]:
        print(
            f"{row['task']:<20} {row['way']:<8} {row['demos']:>5}  {row['score']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f})  {row['area']:.3f}  {row['env_steps']:>9}  {row['seconds']:>7.0f}"
        )
    for row in tables["forgetting"]:
        print(f"after {row['task']} by {row['way']}: {row['before']['score']:.3f} -> {row['after']['score']:.3f}")


if __name__ == "__main__":
    main()
