"""Teachers on batched physics: how fast, how good, at what cost, and what their demonstrations and labels are worth.

    python -m benchmarks.teachers physics                  agent steps per core-second of every task: 2 minutes
    python -m benchmarks.teachers games                    the same of MiniArcade's: seconds
    python -m benchmarks.teachers teach --suite dmcontrol  train what is not there: hours; resumable
    python -m benchmarks.teachers planners --suite dmcontrol   what planning, or following the way, scores: seconds to a
                                                           minute per episode
    python -m benchmarks.teachers scores                   the claims, and the table of docs/reference/experts.md

Teachers lie in pipeline/teachers/, with the package. A figure stands in results/teachers.json with the
command, commit and machine it came from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import results
from pipeline.batched.forms import has_array_form
from pipeline.batched.stepped import open_copies
from pipeline.demonstrate.paths import has_path
from pipeline.demonstrate.planner import load_recipes as load_planner_recipes
from pipeline.demonstrate.play import expert_method, play
from pipeline.demonstrate.teach import load_recipes
from pipeline.demonstrate.teach_tasks import Lesson, teach_tasks
from pipeline.demonstrate.teacher import SHIPPED, load_teacher, teacher_file
from pipeline.files import write_json
from pipeline.run.provenance import commit
from pipeline.tasks.registry import get, load_catalogue
from pipeline.tasks.spec import TaskSpec

DMCONTROL, OTHERS, CORE_HOURS = 0.78, 0.65, 6  # promised mean scores of the best experts, and what they may cost
SUITES = ("dmcontrol", "dmcontrol-ext", "mujoco", "ogbench", "miniarcade")
WITH_AN_EXPERT = 165  # promised, of the catalogue's tasks
STEPS_PER_SECOND = 40_000  # promised of cheetah-run, physics alone, one core
GAME_STEPS_PER_SECOND = 200_000  # of every game but the mazes, whose ways are measured anew for each goal
COPIES, ROUNDS, STEPS = 128, 5, 20
SEED = 1


def on_mujoco() -> list[TaskSpec]:
    """Return the catalogue's tasks that have an array form."""
    return [spec for spec in load_catalogue().values() if spec.suite in SUITES and has_array_form(spec)]


def miniarcade() -> list[TaskSpec]:
    """Return MiniArcade's games, which are arrays themselves."""
    return [spec for spec in load_catalogue().values() if spec.suite == "miniarcade"]


def measure_physics(tasks: Sequence[TaskSpec]) -> dict[str, int]:
    """Return agent steps per core-second of each task, the median of some rounds, with the catalogue's own physics."""
    rates = {}
    for spec in tasks:
        env, rng = open_copies(spec, COPIES, seed=0), np.random.default_rng(0)
        actions = rng.uniform(-1, 1, (STEPS, COPIES, spec.action_dim))
        found = []
        for _ in range(ROUNDS):
            started = time.process_time()
            for action in actions:
                env.step(action)
            found.append(STEPS * COPIES / (time.process_time() - started))
        env.close()
        rates[spec.name] = round(statistics.median(found))
        print(f"{spec.name}: {rates[spec.name]:,} agent steps per core-second", file=sys.stderr)
    return rates


def physics() -> None:
    """Measure the physics of every task."""
    started = time.monotonic()
    rates = measure_physics(on_mujoco())
    claims = {"cheetah_run_steps_per_core_second": results.claim(rates["cheetah-run"], STEPS_PER_SECOND, "above")}
    command = "python -m benchmarks.teachers physics"
    seconds = time.monotonic() - started
    results.add("teachers", "physics", command, seconds, claims, copies=COPIES, steps_per_core_second=rates)


def games() -> None:
    """Measure every game."""
    started = time.monotonic()
    rates = measure_physics(miniarcade())
    slowest = min(rate for name, rate in rates.items() if "maze" not in name)
    claims = {"steps_per_core_second": results.claim(slowest, GAME_STEPS_PER_SECOND, "above")}
    command = "python -m benchmarks.teachers games"
    seconds = time.monotonic() - started
    results.add("teachers", "games", command, seconds, claims, copies=COPIES, steps_per_core_second=rates)


def teach(suites: Sequence[str], names: Sequence[str], workers: int) -> None:
    """Train the teachers that are wanted and not there."""
    recipes = load_recipes()
    wanted = get(names) if names else [spec for spec in on_mujoco() + miniarcade() if spec.suite in suites]
    without = [spec.name for spec in wanted if spec.name not in recipes]
    if without:
        print(f"no recipe in teachers.yaml: {', '.join(without)}", file=sys.stderr)
    lessons = [Lesson(spec, recipes[spec.name], SEED) for spec in wanted if spec.name in recipes]
    for name, notes in teach_tasks(lessons, SHIPPED, workers).items():
        print(f"{name}: {notes['score']:.3f} +- {notes['standard_error']:.3f}, {notes['seconds']:.0f} core-seconds")


def planners(suites: Sequence[str], names: Sequence[str], episodes: int) -> None:
    """Play undisturbed episodes by planning, or through a maze, and note their mean score."""
    path = results.RESULTS / "planners.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = get(names) if names else [spec for spec in on_mujoco() if spec.suite in suites]
    for spec in wanted:
        who = spec.name in load_planner_recipes() or has_path(spec)
        if not who or known.get(spec.name, {}).get("episodes", 0) >= episodes:
            continue
        started = time.process_time()
        scores = np.array([play(spec, SEED, 2 * number, 0.0).score for number in range(episodes)])
        known[spec.name] = {
            "score": round(float(scores.mean()), 4),
            "standard_error": round(float(scores.std(ddof=1) / episodes**0.5), 4),
            "episodes": episodes,
            "seconds_per_episode": round((time.process_time() - started) / episodes, 2),
            "commit": commit(),
        }
        write_json(path, dict(sorted(known.items())))
        print(f"{spec.name}: {known[spec.name]}", file=sys.stderr)


def scores() -> None:
    """Put together what teachers and planners reach, and write the claims."""
    planned = json.loads((results.RESULTS / "planners.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}
    for spec in on_mujoco():
        path = teacher_file(SHIPPED, spec)
        notes = load_teacher(path, spec).notes if path.exists() else {}
        teacher, planner = notes.get("score"), planned.get(spec.name, {}).get("score")
        rows[spec.name] = {
            "suite": spec.suite,
            "teacher": teacher,
            "steps": notes.get("steps"),
            "core_seconds": notes.get("seconds"),
            "planner": planner,
            "best": max((one for one in (teacher, planner) if one is not None), default=None),
        }
        print(f"| {spec.name} | {_cell(teacher)} | {_steps(notes)} | {_cell(planner)} |")
    claims, others = {}, ("dmcontrol-ext", "mujoco", "ogbench")
    for name, suites, target in (("dmcontrol", ("dmcontrol",), DMCONTROL), ("others", others, OTHERS)):
        best = [row["best"] for row in rows.values() if row["suite"] in suites]
        complete = all(one is not None for one in best)
        mean = round(float(np.mean([one or 0.0 for one in best])), 4) if best else None
        claims[f"{name}_best_expert"] = results.claim(mean, target, "above")
        hours = sum(row["core_seconds"] or 0 for row in rows.values() if row["suite"] in suites) / 3600
        claims[f"{name}_core_hours"] = results.claim(round(hours, 2), CORE_HOURS, "below")
        if not complete:
            print(f"{name}: {sum(one is None for one in best)} tasks have no figure, counted as 0", file=sys.stderr)
    without = [spec.name for spec in load_catalogue().values() if not has_expert(spec)]
    claims["tasks_with_an_expert"] = results.claim(len(load_catalogue()) - len(without), WITH_AN_EXPERT, "above")
    print(f"without an expert: {', '.join(without)}", file=sys.stderr)
    results.add("teachers", "experts", "python -m benchmarks.teachers scores", 0.0, claims, seed=SEED, tasks=rows)


def has_expert(spec: TaskSpec) -> bool:
    """Return whether anybody demonstrates a task, with the teachers that come with Eft."""
    try:
        return bool(expert_method(spec, SHIPPED))
    except ValueError:
        return False


def _cell(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _steps(notes: dict[str, Any]) -> str:
    return f"{notes['steps'] / 1e6:.1f} | {notes['seconds']:.0f}" if notes else " | "


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("physics")
    commands.add_parser("games")
    teaching: Any = commands.add_parser("teach")
    teaching.add_argument("--suite", nargs="+", default=list(SUITES), choices=SUITES)
    teaching.add_argument("--tasks", nargs="+", default=[])
    teaching.add_argument("--workers", type=int, default=0)
    planning: Any = commands.add_parser("planners")
    planning.add_argument("--suite", nargs="+", default=list(SUITES), choices=SUITES)
    planning.add_argument("--tasks", nargs="+", default=[])
    planning.add_argument("--episodes", type=int, default=10)
    commands.add_parser("scores")
    options = parser.parse_args(arguments)
    if options.command == "physics":
        physics()
    elif options.command == "planners":
        planners(options.suite, options.tasks, options.episodes)
    elif options.command == "scores":
        scores()
    elif options.command == "games":
        games()
    else:
        teach(options.suite, options.tasks, options.workers)


if __name__ == "__main__":
    main()
