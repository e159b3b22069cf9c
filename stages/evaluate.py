"""Scores of both checkpoints, policy alone and with planning, and videos -> checkpoints/evaluate/."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import config, words
from pipeline.agent import Agent
from pipeline.files import atomic_folder, write_json
from pipeline.learn.evaluator import Evaluator, Result, summarise
from pipeline.learn.setup import product_modes
from pipeline.learn.task_setup import CHECKPOINTS
from pipeline.model.actor import Actor
from pipeline.model.open_loop import OpenLoopActor
from pipeline.model.task_table import POLICY, TIED
from pipeline.observing import Observing
from pipeline.progress import Progress
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.ranks import Ranks
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.video import write_video

OUT = CHECKPOINTS / "evaluate"
MODES = {"policy": False, "plan": True}


def main() -> None:
    tasks, runtime, settings = config.load(config.Tasks), config.load(config.Runtime), config.load(config.Evaluate)
    seed = config.load_seed()
    ranks, summary = start(runtime, seed), Summary("evaluate")
    _, mode = product_modes(runtime, ranks.device)
    specs = registry.get(tasks.train, tasks.folder)
    agents = {
        name: Agent.from_pretrained(CHECKPOINTS / name / "model", device=ranks.device, mode=mode)
        for name in ("pretrain", "finetune")
    }
    actors = {name: agent.conditioned(settings.phrasing) for name, agent in agents.items()}
    model = agents["finetune"].model.config
    widths, observing = (model.obs_dim, model.action_dim), Observing(agents["finetune"].pixel_encoder)
    arena = Arena(specs, widths, settings, runtime, seed, ranks, observing)
    results = arena.play(actors)
    instructed_other = arena.play_pairs(actors["finetune"], tasks.pairs)
    open_loop = arena.play_open_loop(actors["finetune"])
    in_other_words = arena.play_words(agents["finetune"])
    films = arena.film(actors["finetune"])
    chosen = {spec.name: chosen_mode(actors["finetune"], spec.name) for spec in specs}
    if not ranks.is_main:
        return

    models: dict[str, Any] = {}
    means: dict[str, Any] = {}
    for (name, mode), found in results.items():
        models.setdefault(name, {})[mode], means.setdefault(name, {})[mode] = summarise(found, settings, seed)
    pairs = [
        pair_table(pair, mode, results["finetune", mode], instructed_other[mode], settings, seed)
        for pair in tasks.pairs
        for mode in MODES
    ]
    with atomic_folder(OUT / "videos") as folder:
        write_films(films, folder, settings.video_fps)
    with atomic_folder(OUT / "metrics") as folder:
        weights = {name: agent.base for name, agent in agents.items()}  # only what was evaluated is released
        scores = {"models": models, "mean": means, "chosen": chosen, "pairs": pairs, "open_loop": open_loop}
        scores["words"] = in_other_words
        scores["weights"] = weights
        write_json(folder / "scores.json", scores)
        summary.write(folder, episodes=settings.episodes, matmul=product_modes(runtime, ranks.device)[0])
    for name, modes in means.items():
        print(
            f"evaluate: {name}: " + ", ".join(f"{mode} {mean['score']:.3f}" for mode, mean in modes.items()),
            file=sys.stderr,
        )


class Film(NamedTuple):
    """One episode to be looked at."""

    task: str
    instruction: str
    score: float
    frames: list[np.ndarray]  # each (H, W, 3) uint8


@dataclass(frozen=True)
class Arena:
    """Where checkpoints are played: the tasks and how they are played, the same for all of them."""

    specs: Sequence[TaskSpec]
    widths: tuple[int, int]  # O and A
    settings: config.Evaluate
    runtime: config.Runtime
    seed: int
    ranks: Ranks
    observing: Observing

    def play(self, actors: dict[str, Actor]) -> dict[tuple[str, str], dict[str, Result]]:
        """Play every task with every checkpoint in every mode, from the same starts; plans are made on every task."""
        with self._evaluator(self.specs, self.settings.episodes, 100) as evaluator:
            return {
                (name, mode): self._run(evaluator, always_planning(actor), None, plan, f"{name}, {mode}")
                for name, actor in actors.items()
                for mode, plan in MODES.items()
            }

    def play_pairs(self, actor: Actor, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, Result]]:
        """Play each task of a pair with the instruction of the other; results by mode and the task that scores."""
        other = {name: pair[1 - place] for pair in pairs for place, name in enumerate(pair)}
        paired = [spec for spec in self.specs if spec.name in other]
        if not paired:
            return {mode: {} for mode in MODES}
        instructed = [other[spec.name] for spec in paired]
        with self._evaluator(paired, self.settings.episodes, 200) as evaluator:
            return {
                mode: self._run(evaluator, always_planning(actor), instructed, plan, f"other instruction, {mode}")
                for mode, plan in MODES.items()
            }

    def play_open_loop(self, actor: Actor) -> list[dict[str, Any]]:
        """Play every task with plans that are executed for so many steps without looking; one entry per number."""
        settings, entries = self.settings, []
        if not settings.open_loop_steps:
            return []
        with self._evaluator(self.specs, settings.open_loop_episodes, 400) as evaluator:
            for steps in settings.open_loop_steps:
                blind = OpenLoopActor(actor, steps, settings.open_loop_horizon)
                results = self._run(evaluator, blind, None, True, f"{steps} steps without feedback")
                tasks, mean = summarise(results, settings, self.seed)
                entries.append({"steps": steps, "tasks": tasks, "mean": mean})
        return entries

    def play_words(self, agent: Agent) -> dict[str, Any] | None:
        """Tell every task in words that nobody trained on, the policy alone, from the starts of its own words."""
        settings = self.settings
        if not settings.words_episodes:
            return None
        told, policy = words.prepare(agent, self.specs), MODES["policy"]
        with self._evaluator(self.specs, settings.words_episodes, 500) as evaluator:
            own = self._run(evaluator, agent.actor, None, policy, "own words")
            results = [
                self._run(evaluator, told.actor, told.rows(number, self.specs), policy, f"in other words {number + 1}")
                for number in range(len(told.rounds))
            ]
        return words.table(told, own, results, settings, self.seed)

    def film(self, actor: Actor) -> list[Film]:
        """Record one planned episode of every task that can be drawn here, each on one of the ranks."""
        films, undrawn = [], dict[str, list[str]]()
        own = self.ranks.shard(self.specs) if self.settings.video_size else []
        with Progress("evaluate: filming", len(own), "episodes", quiet=not self.ranks.is_main) as progress:
            for spec in own:
                try:
                    frames, score = self.observing.record(actor, spec, self.seed + 300, self.settings)
                    films.append(Film(spec.name, spec.instructions[0], score, frames))
                except RenderingUnavailable as error:
                    undrawn.setdefault(str(error), []).append(spec.name)
                progress.update(1)
        for why, names in undrawn.items():
            print(f"evaluate: no videos of {', '.join(names)}: {why}", file=sys.stderr)
        order = [spec.name for spec in self.specs]
        return sorted(itertools.chain(*self.ranks.collect(films)), key=lambda one: order.index(one.task))

    def _evaluator(self, specs: Sequence[TaskSpec], episodes: int, seed: int) -> Evaluator:
        return Evaluator(
            specs, episodes, *self.widths, self.seed + seed, self.runtime.env_workers, self.ranks,
            partial(self.observing.make_envs, timeout=self.runtime.env_timeout),
        )  # fmt: skip

    def _run(
        self, evaluator: Evaluator, actor: Actor, instructed: Sequence[str] | None, plan: bool, label: str
    ) -> dict[str, Result]:
        names = [spec.name for spec in evaluator.specs]
        results = evaluator.run(actor, instructed or names, plan, f"evaluate: {label}", self.seed)
        return dict(zip(names, results, strict=True))


def chosen_mode(actor: Actor, task: str) -> str:
    """Return how the agent acts on a task where it may choose: by the `policy` alone, or by a `plan`."""
    return "policy" if actor.table.constraint[actor.table.names.index(task)] == POLICY else "plan"


def always_planning(actor: Actor) -> Actor:
    """Return the actor planning on every task: where its table says the policy alone, by plans tied to the policy."""
    always, constraint = copy.copy(actor), actor.table.constraint
    always.table = dataclasses.replace(actor.table, constraint=constraint.masked_fill(constraint == POLICY, TIED))
    return always


def pair_table(
    pair: tuple[str, str],
    mode: str,
    own: dict[str, Result],
    instructed_other: dict[str, Result],
    settings: config.Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Return the two-by-two table of a pair: rows by the instruction given, columns by the task that scores."""
    a, b = pair
    cells = [[own[a], instructed_other[b]], [instructed_other[a], own[b]]]
    estimates = [[summarise({"": cell}, settings, seed)[1] for cell in row] for row in cells]
    table: dict[str, Any] = {"tasks": [a, b], "mode": mode}
    for output, key in (("scores", "score"), ("low", "low"), ("high", "high")):
        table[output] = [[estimate[key] for estimate in row] for row in estimates]
    return table


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
