"""Scores of both checkpoints, policy alone and with planning, and videos -> checkpoints/evaluate/."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.files import atomic_folder, write_json
from pipeline.model.actor import Actor
from pipeline.model.open_loop import OpenLoopActor
from pipeline.progress import Progress
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.ranks import Ranks
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.train.evaluate import Evaluator, Result, record, summarise
from pipeline.train.runtime import compute
from pipeline.train.workspace import CHECKPOINTS
from pipeline.video import write_video
from pipeline.vision.sight import Sight

OUT = CHECKPOINTS / "evaluate"
MODES = {"policy": False, "plan": True}


def main() -> None:
    tasks, runtime, settings = config.load(config.Tasks), config.load(config.Runtime), config.load(config.Evaluate)
    seed = config.load_seed()
    ranks, summary = start(runtime, seed), Summary("evaluate")
    _, how = compute(runtime, ranks.device)
    specs = registry.get(tasks.train, tasks.folder)
    agents = {
        name: Agent.from_pretrained(CHECKPOINTS / name / "model", device=ranks.device, compute=how)
        for name in ("pretrain", "finetune")
    }
    actors, sight = {name: agent.told(settings.phrasing) for name, agent in agents.items()}, agents["finetune"].sight
    results = play(actors, specs, settings, runtime, seed, ranks, sight)
    told_other = play_pairs(actors["finetune"], tasks, specs, settings, runtime, seed, ranks, sight)
    open_loop = play_open_loop(actors["finetune"], specs, settings, runtime, seed, ranks, sight)
    films = film(actors["finetune"], specs, settings, seed, ranks, sight)
    if not ranks.is_main:
        return

    models: dict[str, Any] = {}
    means: dict[str, Any] = {}
    for (name, mode), found in results.items():
        models.setdefault(name, {})[mode], means.setdefault(name, {})[mode] = summarise(found, settings, seed)
    pairs = [
        pair_table(pair, mode, results["finetune", mode], told_other[mode], settings, seed)
        for pair in tasks.pairs
        for mode in MODES
    ]
    with atomic_folder(OUT / "videos") as folder:
        write_films(films, folder, settings.video_fps)
    with atomic_folder(OUT / "metrics") as folder:
        weights = {name: agent.base for name, agent in agents.items()}  # only what was evaluated is released
        scores = {"models": models, "mean": means, "pairs": pairs, "open_loop": open_loop, "weights": weights}
        write_json(folder / "scores.json", scores)
        summary.write(folder, episodes=settings.episodes, matmul=how.matmul)
    for name, modes in means.items():
        print(
            f"evaluate: {name}: " + ", ".join(f"{mode} {mean['score']:.3f}" for mode, mean in modes.items()),
            file=sys.stderr,
        )


def play(
    actors: dict[str, Actor],
    specs: Sequence[TaskSpec],
    settings: config.Evaluate,
    runtime: config.Runtime,
    seed: int,
    ranks: Ranks,
    sight: Sight | None,
) -> dict[tuple[str, str], dict[str, Result]]:
    """Play every task with every checkpoint in every mode, from the same starts."""
    model = actors["finetune"].model.config
    names = [spec.name for spec in specs]
    with Evaluator(
        specs, settings.episodes, model.obs_dim, model.action_dim, seed + 100, runtime.env_workers, ranks, sight
    ) as evaluator:
        return {
            (name, mode): dict(
                zip(names, evaluator.run(actor, names, plan, f"evaluate: {name}, {mode}", seed), strict=True)
            )
            for name, actor in actors.items()
            for mode, plan in MODES.items()
        }


def play_pairs(
    actor: Actor,
    tasks: config.Tasks,
    specs: Sequence[TaskSpec],
    settings: config.Evaluate,
    runtime: config.Runtime,
    seed: int,
    ranks: Ranks,
    sight: Sight | None,
) -> dict[str, dict[str, Result]]:
    """Play each task of a pair with the other's instruction; the results are keyed by the task that scores."""
    if not tasks.pairs:
        return {mode: {} for mode in MODES}
    other = {name: pair[1 - place] for pair in tasks.pairs for place, name in enumerate(pair)}
    paired = [spec for spec in specs if spec.name in other]
    told = [other[spec.name] for spec in paired]
    model = actor.model.config
    with Evaluator(
        paired, settings.episodes, model.obs_dim, model.action_dim, seed + 200, runtime.env_workers, ranks, sight
    ) as evaluator:
        return {
            mode: dict(
                zip(
                    (spec.name for spec in paired),
                    evaluator.run(actor, told, plan, f"evaluate: told the other task, {mode}", seed),
                    strict=True,
                )
            )
            for mode, plan in MODES.items()
        }


def play_open_loop(
    actor: Actor,
    specs: Sequence[TaskSpec],
    settings: config.Evaluate,
    runtime: config.Runtime,
    seed: int,
    ranks: Ranks,
    sight: Sight | None,
) -> list[dict[str, Any]]:
    """Play every task with plans that are executed for so many steps without looking; one entry per number of steps."""
    if not settings.open_loop_steps:
        return []
    model, names = actor.model.config, [spec.name for spec in specs]
    widths, workers = (model.obs_dim, model.action_dim), runtime.env_workers
    entries = []
    with Evaluator(specs, settings.open_loop_episodes, *widths, seed + 400, workers, ranks, sight) as evaluator:
        for steps in settings.open_loop_steps:
            blind = OpenLoopActor(actor, steps, settings.open_loop_horizon)
            results = evaluator.run(blind, names, True, f"evaluate: {steps} steps without feedback", seed)
            tasks, mean = summarise(dict(zip(names, results, strict=True)), settings, seed)
            entries.append({"steps": steps, "tasks": tasks, "mean": mean})
    return entries


def pair_table(
    pair: tuple[str, str],
    mode: str,
    own: dict[str, Result],
    told_other: dict[str, Result],
    settings: config.Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Return the two-by-two table of a pair: rows by the instruction given, columns by the task that scores."""
    a, b = pair
    cells = [[own[a], told_other[b]], [told_other[a], own[b]]]
    estimates = [[summarise({"": cell}, settings, seed)[1] for cell in row] for row in cells]
    table: dict[str, Any] = {"tasks": [a, b], "mode": mode}
    for output, key in (("scores", "score"), ("low", "low"), ("high", "high")):
        table[output] = [[estimate[key] for estimate in row] for row in estimates]
    return table


class Film(NamedTuple):
    """One episode to be looked at."""

    task: str
    instruction: str
    score: float
    frames: list[np.ndarray]  # each (H, W, 3) uint8


def film(
    actor: Actor, specs: Sequence[TaskSpec], settings: config.Evaluate, seed: int, ranks: Ranks, sight: Sight | None
) -> list[Film]:
    """Record one planned episode of every task, each on one of the ranks; none where there are no pictures."""
    films = []
    own = ranks.deal(specs) if settings.video_size else []
    try:
        with Progress("evaluate: filming", len(own), "episodes", quiet=not ranks.is_main) as progress:
            for spec in own:
                frames, score = record(actor, spec, seed + 300, settings, sight)
                films.append(Film(spec.name, spec.instructions[0], score, frames))
                progress.update(1)
    except RenderingUnavailable as error:
        if ranks.is_main:
            print(f"evaluate: no videos: {error}", file=sys.stderr)
    order = [spec.name for spec in specs]
    return sorted(itertools.chain(*ranks.collect(films)), key=lambda one: order.index(one.task))


def write_films(films: Sequence[Film], folder: Path, fps: int) -> None:
    """Write one mp4 per film, and an index."""
    for one in films:
        write_video(folder / f"{one.task}.mp4", one.frames, fps)
    index = [
        {"task": one.task, "instruction": one.instruction, "score": one.score, "file": f"{one.task}.mp4"}
        for one in films
    ]
    write_json(folder / "index.json", index)


def _processes() -> int:
    """How many processes share the episodes: planning keeps one busy, and a CPU has more cores than that."""
    device, asked = config.load(config.Runtime).device, config.load(config.Evaluate).processes
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else asked


if __name__ == "__main__":
    run_stage(main, several=True, processes=_processes)
