"""Does learning online pay? The default run with own episodes, with labels, and a control without either.

    python -m benchmarks.learning --seeds 1 2 3            resumable: what is done is kept
    python -m benchmarks.learning --ways control labels --set learning.value_target=returns --name returns

Each seed has a base of its own, made by the stages from `teach` to `pretrain`; each way finetunes it:

control    as many updates on demonstrations alone (`finetune.control`)
own        own episodes, no labels
labels     own episodes, labelled where an expert can be asked (`finetune.teacher: label`)

In the end policy and plans play the same episodes of every task. Adds scores, differences from the control, and the
claims to results/learning.json; with the parameters of params.yaml also writes checkpoints/ways.json, which the report
shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from benchmarks import finetune_runs, results
from benchmarks.probe import played
from pipeline import config
from pipeline.agent import Agent
from pipeline.files import read_json, write_json
from pipeline.run.provenance import machine
from pipeline.statistics import bootstrap_runs
from pipeline.tasks import registry

WAYS: dict[str, dict[str, Any]] = {
    "control": {"control": True, "teacher": "off"},
    "own": {"teacher": "off"},
    "labels": {"teacher": "label"},
}
GAINS = {"own": 0.04, "labels": 0.08}  # promised, of the policy's mean score over the control's
# Promised of the way with labels: the better of policy and plans; the lowest evaluation on the way as a part of the
# first; on how many tasks plans earn more than the policy.
BEST, NEVER_BELOW, PLANNED_BETTER = 0.93, 0.95, 6
FOLDER = Path(".resume/learning")
COMMAND = "python -m benchmarks.learning"
SHOWN = Path("checkpoints/ways.json")  # by the report


def measure(
    folder: Path, way: str, seed: int, changed: Mapping[str, Any], episodes: int, planned: int
) -> dict[str, Any]:
    """Train one way with one seed and play it in the end, unless that is done; return its scores and figures.

    Args:
        folder: of all runs.
        way: one of WAYS.
        seed: of base and run.
        changed: parameters of each section that are not those of params.yaml.
        episodes: of each task by the policy alone.
        planned: of each task by plans, the first of the same starts.
    """
    base, run = folder / f"base-{seed}", folder / f"{way}-{seed}"
    noted = run / f"played-{episodes}-{planned}.json"
    settings = {**changed.get("finetune", {}), **WAYS[way]}
    if (base / finetune_runs.BASE).exists():
        finetune_runs.check_same(base, seed, changed, COMMAND)
    if (run / "done.json").exists():
        finetune_runs.check_same(run, seed, {**changed, "finetune": settings}, COMMAND)
    finetune_runs.pretrained(base, changed, seed)
    done = finetune_runs.run(run, seed, settings, ["eval"], COMMAND, root=base, base=changed, keep_model=True)
    curve = list(done["eval/score"][1])
    if not noted.exists():
        torch.set_num_threads(1)
        agent = Agent.from_pretrained(run / "checkpoints/finetune/model")
        # Read again, which finds modules beside the user's own task files.
        specs = registry.get(list(agent.tasks), config.load(config.Tasks, run / "params.yaml").folder)
        found = {"policy": played(agent, specs, episodes, seed + 100, False)}
        found["plan"] = played(agent, specs, planned, seed + 100, True)
        write_json(noted, {"seconds": done["seconds"], "commit": done["commit"], "pretrained": curve[0], **found})
    return {**read_json(noted, COMMAND), "curve": curve}


def summed_up(runs: Mapping[str, Sequence[Mapping[str, Any]]], mode: str) -> dict[str, Any]:
    """Return each way's mean score over seeds and tasks, and its difference from the control, with intervals.

    Args:
        runs: by way, what `measure` returned with each seed.
        mode: `policy` or `plan`.
    """
    tables = {way: [[task[0] for task in one[mode].values()] for one in found] for way, found in runs.items()}
    for way in [name for name in tables if name != "control" and "control" in tables]:
        tables[f"{way}_minus_control"] = [
            [np.subtract(a, b).tolist() for a, b in zip(own, control, strict=True)]
            for own, control in zip(tables[way], tables["control"], strict=True)
        ]
    return {name: {key: round(value, 4) for key, value in _estimate(table).items()} for name, table in tables.items()}


def claimed(runs: Mapping[str, Sequence[Mapping[str, Any]]], policy: Mapping[str, Any], plan: Mapping[str, Any]) -> Any:
    """Return the promised figures: gains over the control, and of the way with labels what it reaches and how.

    Args:
        runs: by way, what `measure` returned with each seed.
        policy: `summed_up` of the policy alone.
        plan: `summed_up` of plans.
    """
    claims = {
        f"{way}_minus_control": results.claim(policy[f"{way}_minus_control"]["score"], gain, "above")
        for way, gain in GAINS.items()
        if f"{way}_minus_control" in policy
    }
    if "labels" in runs:
        best = max(policy["labels"]["score"], plan["labels"]["score"])
        lowest = min(min(one["curve"]) / one["curve"][0] for one in runs["labels"])
        claims["labels_best"] = results.claim(best, BEST, "above")
        claims["labels_lowest_on_the_way"] = results.claim(round(lowest, 4), NEVER_BELOW, "above")
        claims["labels_tasks_planned_better"] = results.claim(planned_better(runs["labels"]), PLANNED_BETTER, "above")
    return claims


def planned_better(runs: Sequence[Mapping[str, Any]]) -> int:
    """Return on how many tasks plans earn more than the policy from the same starts, in the mean over seeds."""
    count = 0
    for task in runs[0]["plan"]:
        gained = [
            np.mean(plan) - np.mean(alone[: len(plan)])
            for plan, alone in ((one["plan"][task][1], one["policy"][task][1]) for one in runs)
        ]
        count += float(np.mean(gained)) > 0
    return count


def _estimate(table: Any) -> dict[str, float]:
    return bootstrap_runs(table, 0.95, 2000, np.random.default_rng(0))._asdict()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, play and write results/learning.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--episodes", type=int, default=40, help="of each task in the end (default: 40)")
    parser.add_argument("--planned", type=int, default=10, help="likewise by plans, which take longer (default: 10)")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="parameters that differ")
    parser.add_argument("--name", default="default", help="of the figures in results/learning.json")
    options = parser.parse_args(arguments)
    for name in ("seeds", "ways"):
        given = getattr(options, name)
        if len(set(given)) < len(given):
            parser.error(f"--{name} {' '.join(map(str, given))} names one twice: it would count twice")
    started, changed = time.monotonic(), parse_changes(options.set)
    episodes = options.episodes, options.planned
    runs = {
        way: [measure(FOLDER / options.name, way, seed, changed, *episodes) for seed in options.seeds]
        for way in options.ways
    }
    policy, plan = summed_up(runs, "policy"), summed_up(runs, "plan")
    claims = claimed(runs, policy, plan)
    words = ["--name", options.name, "--seeds", *map(str, options.seeds), "--ways", *options.ways]
    words += ["--episodes", str(options.episodes), "--planned", str(options.planned)]
    words += ["--set", *options.set] if options.set else []
    command, seconds = " ".join([COMMAND, *words]), time.monotonic() - started
    found: dict[str, Any] = {
        "commits": sorted({one["commit"] for found in runs.values() for one in found}),
        "policy": policy,
        "plan": plan,
        "tasks": {
            way: {
                task: [round(float(np.mean(one["policy"][task][0])), 3) for one in done] for task in done[0]["policy"]
            }
            for way, done in runs.items()
        },
    }
    more = {
        "pretrained": [round(one["pretrained"], 4) for one in next(iter(runs.values()))],
        "curves": {way: [[round(value, 4) for value in one["curve"]] for one in done] for way, done in runs.items()},
        "seconds_per_run": {way: [one["seconds"] for one in done] for way, done in runs.items()},
    }
    results.add("learning", f"runs.{options.name}", command, seconds, claims, **found, **more)
    if not changed:
        write_json(SHOWN, {"command": command, "machine": machine(), **found})


def parse_changes(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn `section.key=value` into parameters by section.

    Raises:
        SystemExit: a word has another form, or names no section.
    """
    changed: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        section, dot, key = name.partition(".")
        if not equals or not dot or section not in config.SECTIONS:
            raise SystemExit(f"--set takes `section.key=value`, got {word!r}; sections: {', '.join(config.SECTIONS)}")
        changed.setdefault(section, {})[key] = YAML(typ="safe").load(value)
    return changed


if __name__ == "__main__":
    main()
