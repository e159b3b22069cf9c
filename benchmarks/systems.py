"""A fair comparison: Newt, Newt without language, ScaleZero, MoW and M3PO on the same tasks, data and budget.

    python -m benchmarks.systems --jobs 2       5 systems x 3 seeds, two runs at once: about 40 minutes of two cores
    python -m benchmarks.systems --quick        one seed and a small part of the steps: whether all of it works
    python -m benchmarks.systems --page         draws results/systems.json again, runs nothing

benchmarks/systems.yaml holds the set-up. All systems see the same demonstrations, make as many updates and environment
steps, and have as many active parameters, to within 10 %: widths are adjusted for that and printed. Every run is
`stages.pretrain` and `stages.finetune` in a folder of its own and one process after the other of one thread, then an
evaluation; it is kept in .resume/systems-*/ when it is done, and what is under way saves itself: the same command goes
on where it stopped. A run that was made with other parameters is made anew; one made by other code is not: delete the
folder for that.

Writes results/systems.json and draws it: systems.md is the page, systems.svg its figure. With --quick or other options
the result is printed and written only if --write is given.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.interference import count_parameters
from benchmarks.results import claim, write
from benchmarks.system_runs import (
    Run,
    RunFailed,
    execute,
    fit_width,
    model_sizes,
    parameters,
    prepare,
    read_setup,
    with_width,
)
from pipeline.files import atomic_file, read_json, write_json
from pipeline.progress import Progress
from pipeline.report.charts import SYSTEMS, Line, as_file, line_chart
from pipeline.run.run_dir import ROOT, fingerprint
from pipeline.statistics import bootstrap_runs
from pipeline.tasks import registry

SEEDS = (1, 2, 3)
_REACHED = 0.8  # of the best score, that environment steps are counted to
_WITHIN = 0.1  # of the reference's active parameters
_POLL_SECONDS = 5.0
_CONFIDENCE, _SAMPLES = 0.95, 2000


def main(arguments: Sequence[str] | None = None) -> None:
    """Make every run that is not done yet, and sum up."""
    setup = read_setup()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a small part of the steps")
    parser.add_argument("--systems", nargs="+", choices=list(setup["systems"]), help="fewer systems")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"other seeds (default: {SEEDS}, quick: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each")
    parser.add_argument("--write", action="store_true", help="write results/systems.json although not all was run")
    parser.add_argument("--page", action="store_true", help="draw results/systems.json again, run nothing")
    options = parser.parse_args(arguments)
    if options.page:
        draw()
        return
    systems = options.systems or list(setup["systems"])
    seeds = options.seeds or (SEEDS[:1] if options.quick else SEEDS)
    chosen = fit({system: parameters(setup, system, options.quick) for system in systems}, setup, options.quick)
    data = {
        name: next(iter(chosen.values()))[name] for name in ("tasks", "teach", "demos", "language")
    }  # what all runs share
    folder = ROOT / f"systems-{fingerprint([data], [], 0)}"
    runs = [
        Run(system, seed, {**chosen[system], "seed": seed}, setup["systems"][system].get("codes", False), folder)
        for seed, system in itertools.product(seeds, systems)
    ]
    found, failed = run_all(runs, folder, options.jobs)
    for message in failed:
        print(f"systems: {message}", file=sys.stderr)
    if not found:
        sys.exit("systems: no run came to its end")
    shown = summarise(found, setup["common"]["tasks"]["train"])
    print(markdown(shown))
    whole = not options.quick and set(systems) == set(setup["systems"]) and set(SEEDS) <= set(seeds)
    if whole or options.write:
        words = ["--quick"] * options.quick
        words += ["--systems", *options.systems] if options.systems else []
        words += ["--seeds", *map(str, options.seeds)] if options.seeds else []
        words += ["--jobs", str(options.jobs)] if options.jobs != 1 else []
        command = " ".join(["python -m benchmarks.systems", *words, *["--write"] * options.write])
        promised = claims(shown, found, len(runs), setup["reference"]["system"])
        write("systems", command, sum(run["wall_seconds"] for run in found), promised, whole_protocol=whole, **shown)
        draw()
    if failed:
        sys.exit(f"systems: {len(failed)} of {len(runs)} runs failed")


def fit(chosen: dict[str, dict[str, Any]], setup: Mapping[str, Any], quick: bool) -> dict[str, dict[str, Any]]:
    """Give every system the active parameters of the reference, and print what came of it."""
    reference = parameters(setup, setup["reference"]["system"], quick)
    wanted = count_parameters(model_sizes(with_width(reference, setup["reference"]["mlp_dim"])))[1]
    fitted = {}
    print(f"{'system':<24} {'parameters':>12} {'active':>12} {'of reference':>13} {'mlp_dim':>8}")
    for system, params in chosen.items():
        fitted[system] = fit_width(params, wanted)
        total, active = count_parameters(model_sizes(fitted[system]))
        width = fitted[system]["model"]["mlp_dim"]
        print(f"{system:<24} {total:>12,} {active:>12,} {active / wanted:>13.3f} {width:>8}", flush=True)
    return fitted


def run_all(runs: Sequence[Run], folder: Path, jobs: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Make the runs, `jobs` at once; return what came out of those that ended well, and what the others said."""
    shared = folder / "shared"
    share(runs[0], shared)
    found, failed = [], []
    total = sum(run.updates for run in runs)
    counted = sum(run.updates_done for run in runs)
    with Progress("systems", total, "updates", counted) as progress, ThreadPoolExecutor(jobs) as pool:
        pending: set[Future[dict[str, Any]]] = {pool.submit(timed, run, shared) for run in runs}
        try:
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    try:
                        found.append(future.result())
                        last = found[-1]
                        score = float(np.mean([np.mean(scores) for scores in last["scores"]["policy"].values()]))
                        progress.write(f"systems: {last['system']}, seed {last['seed']}: score {score:.3f}")
                    except (RunFailed, OSError, ValueError) as error:
                        failed.append(str(error))
                now = sum(run.updates_done for run in runs)
                progress.update(max(0, now - counted), runs_done=f"{len(found)} of {len(runs)}")
                counted = max(now, counted)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            sys.exit("systems: stopped. What was saved is kept: the same command goes on from there.")
    order = [(run.system, run.seed) for run in runs]
    return sorted(found, key=lambda one: order.index((one["system"], one["seed"]))), failed


def timed(run: Run, shared: Path) -> dict[str, Any]:
    """Make a run and note how long all of it took, evaluation and measurements included."""
    started = time.monotonic()
    known = run.result.exists()
    found = run.start(shared)
    if not known:
        found["wall_seconds"] = round(time.monotonic() - started, 1)
        write_json(run.result, found)
    return found


def share(run: Run, folder: Path) -> None:
    """Make demonstrations and text embeddings for all runs, unless they are there."""
    if (folder / "datasets/task_embeddings").exists():
        return
    prepare(folder, run.params | {"seed": 0, "demos": {**run.params["demos"], "workers": 0}})
    for stage in ("teach", "demos", "embed"):
        print(f"systems: {stage} (what it says is in {folder}/log.txt)", flush=True)
        execute(f"stages.{stage}", folder)


# --- what came out ----------------------------------------------------------------------------------------------------


def summarise(found: Sequence[dict[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """Return table, curves and scores per task, from what came out of every run.

    Intervals are over seeds and episodes. The score is that of the policy alone, which is what evaluations on the way
    play as well; the best is the highest point of any system's mean curve.
    """

    def estimate(runs: list[list[list[float]]]) -> dict[str, float]:
        drawn = bootstrap_runs(runs, _CONFIDENCE, _SAMPLES, np.random.default_rng(0))
        return {name: round(value, 4) for name, value in drawn._asdict().items()}

    systems = list(dict.fromkeys(run["system"] for run in found))
    of = {system: [run for run in found if run["system"] == system] for system in systems}
    curves = {}
    for system, runs in of.items():
        steps = sorted({step for run in runs for step in run["curve"]["env_steps"]})
        values = [np.interp(steps, run["curve"]["env_steps"], run["curve"]["score"]) for run in runs]
        points = [estimate([[[float(line[i])]] for line in values]) for i in range(len(steps))]
        curves[system] = {"env_steps": steps, **{key: [point[key] for point in points] for key in points[0]}}
    best = max(max(curve["score"]) for curve in curves.values())
    table = []
    for system, runs in of.items():
        reached = [steps_to(run["curve"], _REACHED * best) for run in runs]
        known = [steps for steps in reached if steps is not None]
        row = {
            "system": system,
            "seeds": [run["seed"] for run in runs],
            **estimate([list(run["scores"]["policy"].values()) for run in runs]),
            "plan": estimate([list(run["scores"]["plan"].values()) for run in runs]),
            "steps_to_80": None if len(known) < len(runs) else round(float(np.mean(known))),
            "seeds_reached": len(known),
            "env_steps": round(float(np.mean([run["env_steps"] for run in runs]))),
        }
        for key in ("seconds", "peak_memory_mb", "parameters", "active_parameters"):
            row[key] = round(float(np.mean([run[key] for run in runs])))
        for key in ("gradient_cosine", "negative_pairs", "dormant_units"):
            row[key] = estimate([[[run[key]]] for run in runs])
        table.append(row)
    per_task = {
        system: {task: estimate([[run["scores"]["policy"][task]] for run in runs]) for task in tasks}
        for system, runs in of.items()
    }
    return {
        "table": table,
        "curves": curves,
        "tasks": per_task,
        "best": round(best, 4),
        "commits": sorted({run["commit"] for run in found}),
    }


def steps_to(curve: Mapping[str, Sequence[float]], score: float) -> float | None:
    """Return the environment steps at which a curve first reaches a score, linear between evaluations, if it does."""
    before: tuple[float, float] | None = None
    for step, value in zip(curve["env_steps"], curve["score"], strict=True):
        if value >= score:
            if before is None:
                return step
            return before[0] + (score - before[1]) / (value - before[1]) * (step - before[0])
        before = step, value
    return None


def claims(shown: Mapping[str, Any], found: Sequence[Mapping[str, Any]], wanted: int, reference: str) -> dict[str, Any]:
    """Return the promised figures of the comparison; what was not run does not hold."""
    rows = {row["system"]: row for row in shown["table"]}
    own = rows.get(reference)
    spread = gain = None
    if own:
        active = [row["active_parameters"] / own["active_parameters"] for row in rows.values()]
        spread = round(max(abs(ratio - 1) for ratio in active), 4)
        plain = rows.get("newt-without-language")
        gain = round(rows["newt"]["score"] - plain["score"], 4) if plain and "newt" in rows else None
    names = list(next(iter(shown["tasks"].values())))
    whole = [run for run in found if set(run["scores"]["policy"]) == set(names) == set(run["scores"]["plan"])]
    domains = {spec.suite for spec in registry.get(names)}
    return {
        "systems_compared": claim(len(rows), 5, "above"),
        "seeds_of_each_system": claim(min(len(row["seeds"]) for row in rows.values()), 3, "above"),
        "runs_with_every_task": claim(round(len(whole) / wanted, 4), 1.0, "above"),
        "tasks_compared": claim(len(names), 10, "above"),
        "domains_compared": claim(len(domains), 3, "above"),
        "active_parameters_apart": claim(spread, _WITHIN, "below"),
        "language_minus_no_language": claim(gain, 0.0, "above"),
    }


def markdown(shown: Mapping[str, Any]) -> str:
    """Return the table as Markdown, and below it who scores what on each task."""

    def interval(one: Mapping[str, float], digits: int = 2) -> str:
        return f"{one['score']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"

    lines = [
        "| system | policy alone | with planning | env steps to 80 % of the best | seconds | parameters, active (k) | "
        "memory (MiB) | gradient cosine | negative pairs | dormant units |",
        "|" + "---|" * 10,
    ]
    for row in shown["table"]:
        steps, seeds = row["steps_to_80"], len(row["seeds"])
        reached = f"{steps:,}" if steps is not None else f"not by {seeds - row['seeds_reached']} of {seeds}"
        lines.append(
            f"| {row['system']} | {interval(row)} | {interval(row['plan'])} | {reached} | {row['seconds']} | "
            f"{row['parameters'] / 1e3:.0f}, {row['active_parameters'] / 1e3:.0f} | {row['peak_memory_mb']} | "
            f"{interval(row['gradient_cosine'], 3)} | {row['negative_pairs']['score']:.2f} | "
            f"{row['dormant_units']['score']:.4f} |"
        )
    systems = list(shown["tasks"])
    lines += ["", "| task | " + " | ".join(systems) + " |", "|" + "---|" * (len(systems) + 1)]
    for task in next(iter(shown["tasks"].values())):
        lines.append(f"| {task} | " + " | ".join(f"{shown['tasks'][one][task]['score']:.2f}" for one in systems) + " |")
    return "\n".join(lines)


def draw() -> None:
    """Draw results/systems.json: the page systems.md, and systems.svg, its figure."""
    found = read_json(results.RESULTS / "systems.json", "python -m benchmarks.systems")
    for name, text in (("systems.svg", figure(found["curves"])), ("systems.md", page(found))):
        with atomic_file(results.RESULTS / name) as partial:
            partial.write_text(text, encoding="utf-8")


def figure(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Return every system's learning curve, with its interval, as an SVG file."""
    lines = [
        Line(curve["env_steps"], curve["score"], colour, system, low=curve["low"], high=curve["high"])
        for (system, curve), colour in zip(curves.items(), SYSTEMS, strict=False)
    ]
    return as_file(line_chart("Score of each system against environment steps", "environment steps, all tasks", lines))


def page(found: Mapping[str, Any]) -> str:
    """Return the comparison as a Markdown page: figure, tables, promised figures."""
    words = {"above": "at least", "below": "at most"}
    promised = [
        f"| {name.replace('_', ' ')} | {'-' if one['value'] is None else format(one['value'], 'g')} | "
        f"{words[one['better']]} {one['target']:g} | {'yes' if one['holds'] else 'no'} |"
        for name, one in found["claims"].items()
    ]
    part = "" if found["whole_protocol"] else ", a part of the whole comparison"
    commits = ", ".join(commit[:7] for commit in found["commits"])
    return f"""# Systems compared

`{found["command"]}`{part}, in {found["seconds"] / 60:.0f} minutes of one core on {found["machine"]["cpu"]},
runs of commits {commits}. All systems see the same demonstrations, make as many updates and environment steps, and have
as many active parameters. Curves, and the table of tasks, are of the policy alone; ranges are 95 % bootstrap intervals
over seeds and episodes.

![Score of each system against environment steps](systems.svg)

{markdown(found)}

| figure | measured | promised | holds |
|---|---|---|---|
{chr(10).join(promised)}
"""


if __name__ == "__main__":
    main()
