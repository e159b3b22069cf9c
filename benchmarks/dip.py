"""Whether scores fall when online learning starts: measured constraints against schedules, from one checkpoint.

    python -m benchmarks.dip            3 seeds of 4 ways, the environment steps of params.yaml: 12 runs
    python -m benchmarks.dip --quick    one seed, a quarter of the steps: whether all of it works
    python -m benchmarks.dip --dmc      the 21 tasks of presets/dmc.yaml, reduced: the default run's
                                        model and settings, 8 demonstrations and 2,000 steps per task, 2 seeds

Ways: `evidence`, measured scores decide per task how far plans may leave the policy; `published`, the schedule of Newt
(all tasks tied to the policy for 2 % of the steps, then less and less for 10 %); `tied`, throughout; `pretrained`, the
checkpoint's policy plays alone, exploring as it always does when it collects, and nothing learns.

The running score is the mean over tasks of the episodes collected during the last quarter of the steps, from the first
quarter on. All ways meet the same starts under one seed, so it is held against that of `pretrained` at the same step:
what chance and exploration do to a policy that never changes is no fault of learning.

Run where `dvc repro pretrain` is done (--dmc makes a base of its own). A run is kept in .resume/ when it is done; one
that stopped goes on. Adds its claims to results/adapt.json; with --quick or other options only if --write is given.
Runs that are in that file, of the same base by the same parameters, stay in it and count; claims are made over the
seeds that all ways but `tied` have.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune_runs import BASE, pretrained, run
from benchmarks.results import RESULTS, add, claim
from pipeline import config
from pipeline.files import read_json
from pipeline.presets import PRESETS
from pipeline.results import Curve
from pipeline.run.run_dir import ROOT, fingerprint

SEEDS = (1, 2, 3)
_WINDOW = 4  # parts of the run; the running score looks back over one of them
_STEPS, _DECAY = 0.02, 0.1  # of the environment steps; Newt (arXiv 2511.19584): 2M and 10M of 100M
_LOWEST, _LOST = 0.95, -0.02
_DMC_SEEDS, _DMC_DEMOS, _DMC_STEPS = (1, 2), 8, 2000  # the latter two of each task


def reduced_dmc() -> dict[str, dict[str, Any]]:
    """Return the parameters by which the base of --dmc differs from that of the default run."""
    tasks = config.read_params(PRESETS / "dmc.yaml")["tasks"]["train"]
    return {
        "tasks": {"train": tasks, "held_out": [], "pairs": []},
        "demos": {"episodes": _DMC_DEMOS, "held_out_episodes": 0, "missing": "go_on"},
    }


def ways(env_steps: int) -> dict[str, dict[str, Any]]:
    """Return the parameters of `finetune` that each way changes."""
    tied = {"constraint": "schedule", "constraint_steps": env_steps, "constraint_decay": 0}
    decaying = {"constraint_steps": round(_STEPS * env_steps), "constraint_decay": round(_DECAY * env_steps)}
    alone = {"constraint": "evidence", "seeding_episodes": 10**6}  # while it seeds, the policy plays and nothing learns
    return {"pretrained": alone, "evidence": {"constraint": "evidence"}, "published": tied | decaying, "tied": tied}


def base_shape(changed: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash what the base of --dmc follows from."""
    params = {name: values for name, values in config.read_params().items() if name not in ("finetune", "adapt")}
    return fingerprint([[str(params), str(changed)]], [], 0)


def main() -> None:
    """Make every run that is not done yet and add the claims to results/adapt.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    one = parser.add_mutually_exclusive_group()  # a quarter of --dmc would be one episode of each task
    one.add_argument("--quick", action="store_true", help="one seed, a quarter of the environment steps")
    one.add_argument("--dmc", action="store_true", help="the DeepMind Control tasks, from a base made for this")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds")
    parser.add_argument("--ways", nargs="+", choices=list(ways(1)), help="fewer ways")
    parser.add_argument("--write", action="store_true", help="write the claims although not all was run")
    options = parser.parse_args()
    settings = config.load(config.Finetune)
    changed_base = reduced_dmc() if options.dmc else {}
    part, all_seeds = ("dip_dmc", _DMC_SEEDS) if options.dmc else ("dip", SEEDS)
    env_steps = _DMC_STEPS * len(changed_base["tasks"]["train"]) if options.dmc else settings.env_steps
    env_steps = env_steps // 4 if options.quick else env_steps
    compared = {way: changed for way, changed in ways(env_steps).items() if way in (options.ways or ways(1))}
    seeds = options.seeds or (all_seeds[:1] if options.quick else all_seeds)
    shared = dataclasses.replace(settings, **ways(env_steps)["tied"])  # whatever params.yaml says of the constraint
    root = pretrained(ROOT / part / f"base-{base_shape(changed_base)}", changed_base) if options.dmc else Path()
    folder = ROOT / part / fingerprint([shared, [str(env_steps)]], [root / BASE], 0)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in compared}
    for number, (seed, way) in enumerate(itertools.product(seeds, compared)):
        print(f"dip: run {number + 1} of {len(seeds) * len(compared)}: {way}, seed {seed}", flush=True)
        changed = {**compared[way], "env_steps": env_steps, "eval_every": max(env_steps // 8, 1)}
        changed |= {"log_every": max(env_steps // 40, 1)}
        where = folder / f"{way}-{seed}"
        one = run(where, seed, changed, ("eval", "online"), "python -m benchmarks.dip", root, changed_base)
        found[way].append(
            {
                "seed": seed,
                "shape": folder.name,
                "commit": one["commit"],
                "env_steps": one["env_steps"],
                "seconds": one["seconds"],
                **measure(one),
            }
        )
        print(f"dip: {way}, seed {seed}: " + ", ".join(f"{k} {v}" for k, v in found[way][-1].items() if k != "running"))
    before = read_json(RESULTS / "adapt.json", "python -m benchmarks.dip").get("parts", {}).get(part, {})
    runs = merge(before.get("runs", {}), found, folder.name)
    whole = tuple(seeds) == all_seeds and not options.quick and not options.ways
    figures = claims(runs)
    if whole or options.write:
        seconds = sum(one["seconds"] for ones in runs.values() for one in ones)
        add("adapt", part, " ".join(["python -m benchmarks.dip", *sys.argv[1:]]), seconds, figures, runs=runs)
    else:
        for name, figure in figures.items():
            print(f"{name}: {figure['value']}")


def merge(
    before: Mapping[str, Sequence[Mapping[str, Any]]], found: Mapping[str, Sequence[Mapping[str, Any]]], shape: str
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the runs of this shape (base, parameters, length) of both; of the same way and seed the one found now."""
    merged = {}
    for way in ways(1):
        runs = {one["seed"]: one for one in [*before.get(way, ()), *found.get(way, ())] if one.get("shape") == shape}
        merged[way] = [runs[seed] for seed in sorted(runs)]
    return {way: runs for way, runs in merged.items() if runs}


def measure(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one run came to: score before, lowest and last running score, evaluations at the end."""
    evaluations = Curve(*one["eval/score"])
    tasks = {name: Curve(*curve) for name, curve in one.items() if name.startswith("online/")}
    tasks = {name: curve for name, curve in tasks.items() if name not in ("online/score", "online/episodes_sum")}
    running = running_score(list(tasks.values()), one["env_steps"])
    if not running:
        raise ValueError(
            f"no quarter of {one['env_steps']} environment steps holds an episode of each of {len(tasks)} tasks, so "
            "there is no running score: raise finetune.env_steps."
        )
    return {
        "before": round(evaluations.values[0], 4),
        "lowest": round(min(score for _, score in running), 4),
        "last": round(running[-1][1], 4),
        "evaluated": round(float(np.mean(evaluations.values[-3:])), 4),
        "running": [(step, round(score, 4)) for step, score in running],
    }


def running_score(tasks: Sequence[Curve], env_steps: int) -> list[tuple[float, float]]:
    """Return (step, mean over tasks of what was collected in the window before it), where every task was played."""
    window, points = env_steps / _WINDOW, sorted({step for curve in tasks for step in curve.steps})
    running = []
    for end in (step for step in points if step >= window):
        recent = [
            [value for step, value in zip(curve.steps, curve.values, strict=True) if end - window < step <= end]
            for curve in tasks
        ]
        if all(recent):
            running.append((end, float(np.mean([np.mean(values) for values in recent]))))
    return running


def claims(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the promised figures: means over the seeds that all ways but `tied` have; of `tied` if it has them too."""
    compared = [{one["seed"] for one in runs} for way, runs in found.items() if way != "tied"]
    shared = set.intersection(*compared) if compared else set()
    found = {way: [one for one in runs if one["seed"] in shared] for way, runs in found.items()}
    found = {way: runs for way, runs in found.items() if len(runs) == len(shared)}

    def mean(way: str, name: str) -> float | None:
        return float(np.mean([one[name] for one in found[way]])) if found.get(way) else None

    def curve(way: str) -> dict[float, float]:
        """Return the mean over seeds of the running score, at the steps that all of them have."""
        curves = [dict(one["running"]) for one in found.get(way, ())]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        return {step: float(np.mean([one[step] for one in curves])) for step in steps}

    still = curve("pretrained")

    def lowest(way: str) -> float | None:
        """Return the lowest of a way's running score over that of the pretrained policy, where that is above 0."""
        parts = [score / still[step] for step, score in curve(way).items() if still.get(step)]
        return round(min(parts), 4) if parts else None

    def against_evaluation(way: str) -> float | None:
        """Return the lowest running score over the evaluated score before."""
        before = mean(way, "before")
        return round(min(curve(way).values()) / before, 4) if before else None

    own, other = mean("evidence", "evaluated"), mean("published", "evaluated")
    return {
        "lowest_running_score_of_pretrained": {
            **claim(lowest("evidence"), _LOWEST, "above"),
            **{f"of_{way}": lowest(way) for way in ("published", "tied")},
            "of_evaluated_before": {way: against_evaluation(way) for way in ways(1)},
        },
        "end_minus_published_schedule": {
            **claim(None if own is None or other is None else round(own - other, 4), _LOST, "above"),
            "evidence": own,
            "published": other,
            "tied": mean("tied", "evaluated"),
        },
    }


if __name__ == "__main__":
    main()
