"""Dynamic parameter scaling against none: environment steps to a mean score, from one weak pretrained checkpoint.

    python -m benchmarks.growth            3 seeds with and without, the environment steps of params.yaml: 6 runs
    python -m benchmarks.growth --quick    one seed, a quarter of the steps: minutes
    python -m benchmarks.growth --cost     what an update costs in each stage, at the sizes of params.yaml: a minute

The checkpoint is pretrained here first, on so few demonstrations that online learning has something to do. Both ways
begin with it and have the same budget; with scaling, tasks that are solved take no steps of it, and a run ends where
all are. Every run is a `stages.finetune` in a folder of its own, in .resume/growth/, kept when it is done and taken up
where it stopped. Adds its claims to results/systems.json; with
--quick or other options the result is printed and written only if --write is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.finetune_runs import BASE, pretrained, run
from benchmarks.problem import make_batch, make_model, make_table
from benchmarks.results import add, claim
from pipeline import config
from pipeline.model.scaling import Stages
from pipeline.results import Curve
from pipeline.run.run_dir import ROOT, fingerprint
from pipeline.train.step import Learner

SEEDS = (1, 2, 3)
SCORE = 0.75  # mean over tasks that environment steps are counted to
WEAK: dict[str, dict[str, Any]] = {"demos": {"episodes": 12, "held_out_episodes": 0}, "pretrain": {"updates": 3000}}
SCALING: dict[str, Any] = {
    "parts": ["dynamics"], "adapters": 4, "rank": 64, "alpha": 64.0, "target": 0.9, "targets": {}, "slack": 0.1,
    "first_stage_updates": 2000, "stage_updates": 1250,
}  # fmt: skip
WAYS: dict[str, dict[str, Any] | None] = {"plain": None, "scaled": SCALING}
_COMMAND = "python -m benchmarks.growth"
_EVALUATIONS = 16  # over the budget: the grain of what is measured
_RATIO, _LOST = 0.8, -0.02


def main() -> None:
    """Make every run that is not done yet and add the claims to results/systems.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the environment steps")
    parser.add_argument("--cost", action="store_true", help="measure and print the cost of an update, run nothing")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds")
    parser.add_argument("--env-steps", type=int, help="another budget")
    parser.add_argument("--score", type=float, default=SCORE, help=f"mean score to be reached (default: {SCORE})")
    parser.add_argument("--write", action="store_true", help="write the claims although not all was run")
    options = parser.parse_args()
    settings = config.load(config.Finetune)
    if options.cost:
        for name, ms in update_costs(settings.batch_size).items():
            print(f"{name}: {ms:.1f} ms of one thread per online update")
        return
    env_steps = options.env_steps or (settings.env_steps // 4 if options.quick else settings.env_steps)
    settings = dataclasses.replace(settings, env_steps=env_steps, eval_every=max(env_steps // _EVALUATIONS, 1))
    seeds = options.seeds or (SEEDS[:1] if options.quick else SEEDS)
    base = pretrained(ROOT / "growth" / f"base-{fingerprint([[str(WEAK), str(config.read_params())]], [], 0)}", WEAK)
    folder = ROOT / "growth" / fingerprint([settings, SCALING, [str(env_steps)]], [base / BASE], 0)
    cells = list(itertools.product(seeds, WAYS))
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number, (seed, way) in enumerate(cells):
        print(f"growth: run {number + 1} of {len(cells)}: {way}, seed {seed}", flush=True)
        changed = {
            "env_steps": env_steps,
            "constraint": "schedule",  # whatever params.yaml says: runs of another day are compared with these
            "eval_every": settings.eval_every,
            "scaling": WAYS[way],
        }
        groups = ("eval", "scaling", "solved")
        found[way].append(run(folder / f"{way}-{seed}", seed, changed, groups, _COMMAND, base))
    table = [row(way, seed, one, options.score) for way in WAYS for seed, one in zip(seeds, found[way], strict=True)]
    for line in table:
        print(", ".join(f"{name} {value}" for name, value in line.items()))
    whole = tuple(seeds) == SEEDS and not options.quick and not options.env_steps and options.score == SCORE
    if whole or options.write:
        seconds = sum(one["seconds"] for runs in found.values() for one in runs)
        command = " ".join([_COMMAND, *sys.argv[1:]])
        figures = summarise(table)
        add("systems", "growth", command, seconds, figures, runs=table, scaling=SCALING, env_steps=env_steps)


def update_costs(batch_size: int, repeats: int = 9) -> dict[str, float]:
    """Return milliseconds of processor time per online update: without stages, and in each; medians, interleaved."""
    torch.set_num_threads(1)
    sizes, learning = config.load(config.Model), config.load(config.Learning)
    table = make_table(sizes)
    batch = make_batch(table, sizes, batch_size, config.load(config.Planner).horizon)
    scaling = config.parse(config.Scaling, SCALING, "benchmarks.growth")
    learners = {"plain": Learner(make_model(sizes), table, learning)}
    for stage in range(scaling.adapters + 1):
        model = make_model(sizes)
        learner = learners[f"stage {stage}"] = Learner(model, table, learning, stages=Stages(model, scaling, seed=1))
        learner.enter_stage(stage)
    spent: dict[str, list[float]] = {name: [] for name in learners}
    for number in range(repeats + 1):
        for name, learner in learners.items():
            started = time.process_time()
            learner.update(batch, "online", torch.Generator().manual_seed(number))
            spent[name].append(1e3 * (time.process_time() - started))
    return {name: float(np.median(times[1:])) for name, times in spent.items()}  # the first one warms up


def summarise(table: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the promised figures of a table of runs."""
    steps = {way: [line["env_steps"] for line in table if line["way"] == way] for way in WAYS}
    last = {way: [line["last"] for line in table if line["way"] == way] for way in WAYS}
    reached = all(all(one) and one for one in steps.values())
    ratio = round(float(np.mean(steps["scaled"]) / np.mean(steps["plain"])), 4) if reached else None
    gained = round(float(np.mean(last["scaled"]) - np.mean(last["plain"])), 4) if table else None
    return {
        "scaled_env_steps_ratio": claim(ratio, _RATIO, "below"),
        "scaled_last_score_minus_plain": claim(gained, _LOST, "above"),
    }


def row(way: str, seed: int, one: dict[str, Any], score: float) -> dict[str, Any]:
    """Return what one run came to."""
    evaluations = Curve(*one["eval/score"])
    return {
        "way": way,
        "seed": seed,
        "env_steps": steps_to(evaluations, score),  # None where it was not reached
        "last": round(float(np.mean(evaluations.values[-3:])), 4),  # mean of the last three evaluations
        "all_env_steps": one["env_steps"],
        "stage": one["stage"] if way == "scaled" else None,  # without stages it names the command that was run
        "seconds": one["seconds"],
    }


def steps_to(curve: Curve, score: float) -> float | None:
    """Return the first step, in straight lines between evaluations, at which a score is reached."""
    steps, values = curve
    for i, value in enumerate(values):
        if value >= score:
            if i == 0:
                return steps[0]
            share = (score - values[i - 1]) / (value - values[i - 1])
            return round(steps[i - 1] + share * (steps[i] - steps[i - 1]), 1)
    return None


if __name__ == "__main__":
    main()
