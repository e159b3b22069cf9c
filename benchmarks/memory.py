"""Host memory of a run's simulators: what one of each domain takes, and the sum for many tasks with their evaluation.

    python -m benchmarks.memory    200 tasks, 16 workers -> results/memory.json, the table in explanation/scaling.md

One process as a worker is, without torch, builds simulators of each domain and steps them; what it takes more with each
is that simulator's. Code and data of shared libraries count once, whatever the number of processes. Domains that cannot
be played here are named, and counted as the mean of the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tasks import availability, registry
from pipeline.tasks.env_group import EnvGroup, Widths, num_bytes, view
from pipeline.tasks.spec import TaskSpec

PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "scaling.md"
BEGIN, END = "<!-- memory -->\n", "<!-- end of memory -->"
_PER_DOMAIN = 2  # tasks that stand for a domain, evenly over its list, beside the first, which brings what is imported
_STEPS = 10
_WIDTHS = 128, 16  # of observations and actions, as of the preset newt


def by_domain() -> tuple[dict[str, list[TaskSpec]], int]:
    """Return the training tasks of each domain that can be played here, and how many cannot."""
    specs = [spec for spec in registry.load_catalogue().values() if spec.split == "train"]
    missing = availability.unavailable(specs)
    found: dict[str, list[TaskSpec]] = {}
    for spec in specs:
        if spec.name not in missing:
            found.setdefault(spec.suite, []).append(spec)
    return found, len(missing)


def as_worker() -> dict[str, Any]:
    """Build and step simulators of every domain in this process; return MB of each, of what they share, of the rest."""
    simulators: dict[str, float] = {}
    kept, total = [], 0.0
    for suite, specs in by_domain()[0].items():
        kept.append(_played(specs[0]))
        chosen = [specs[(i + 1) * len(specs) // (_PER_DOMAIN + 1)] for i in range(_PER_DOMAIN)]
        before = _resident()[0]
        kept += [_played(spec) for spec in chosen]
        simulators[suite] = (_resident()[0] - before) / len(chosen)
        total += simulators[suite] * (1 + len(chosen))
    own, shared = _resident()
    return {"simulators": simulators, "worker": own - total, "libraries": shared}


def _played(spec: TaskSpec) -> EnvGroup:
    widths = Widths(1, *_WIDTHS, 0)
    arrays = view(bytearray(num_bytes(widths)), widths)
    group = EnvGroup([(0, spec)], arrays, 0, [0])
    arrays.playing[:] = True
    group.reset()
    draw = np.random.default_rng(0)
    for _ in range(_STEPS):
        arrays.action[0, : spec.action_dim] = draw.uniform(-1, 1, spec.action_dim)
        group.step()
    return group


def _resident() -> tuple[float, float]:
    """Return MB of this process's own pages, and of files that are mapped, which processes share."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    rows = dict(line.split(":") for line in lines)
    found = {name: float(value.split()[0]) / 1024 for name, value in rows.items()}
    return found["Anonymous"], found["Rss"] - found["Anonymous"]


def summed(
    found: Mapping[str, Any], tasks: Mapping[str, int], missing: int, workers: int, each: int
) -> dict[str, float]:
    """Return GB of all simulators of training and evaluation, of their workers, and of both together.

    Args:
        found: what `as_worker` returned.
        tasks: how many of each domain.
        missing: tasks of other domains, which count as the mean of these.
        workers: processes that step training's environments; as many step those of the evaluation.
        each: environments of each task in an evaluation.
    """
    known = sum(number * found["simulators"][suite] for suite, number in tasks.items())
    simulators = known * (1 + missing / sum(tasks.values()))
    processes = 2 * workers * found["worker"] + found["libraries"]
    parts = {"training": simulators, "evaluation": each * simulators, "workers": processes}
    return {**{name: part / 1024 for name, part in parts.items()}, "sum": (sum(parts.values())) / 1024}


def show(found: Mapping[str, Any], tasks: Mapping[str, int], sums: Mapping[str, float], about: str) -> str:
    """Return what was measured as tables in Markdown."""
    lines = [about, "", "| domain | tasks | MB of each simulator |", "|---|---|---|"]
    lines += [f"| {suite} | {tasks[suite]} | {size:.1f} |" for suite, size in found["simulators"].items()]
    lines += ["", "| | GB |", "|---|---|"]
    names = {
        "training": "simulators of training",
        "evaluation": "simulators of evaluation",
        "workers": f"workers, {found['worker']:.0f} MB each, and {found['libraries']:.0f} MB of libraries",
        "sum": "**sum**",
    }
    return "\n".join(lines + [f"| {words} | {sums[name]:.1f} |" for name, words in names.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16, help="runtime.env_workers (default: 16)")
    parser.add_argument("--as-worker", action="store_true", help="only print what this process takes, as JSON")
    options = parser.parse_args(arguments)
    if options.as_worker:
        print(json.dumps(as_worker()))
        return
    # Not above: these bring torch, which a worker does not have.
    from benchmarks.results import claim, write
    from pipeline.files import atomic_file
    from pipeline.learn.evaluator import envs_per_task
    from pipeline.run.provenance import commit, machine

    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.memory", "--as-worker"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    specs, missing = by_domain()
    tasks = {suite: len(own) for suite, own in specs.items()}
    number = sum(tasks.values()) + missing
    each = envs_per_task(number, episodes=10)
    sums = summed(found, tasks, missing, options.workers, each)
    about = (
        f"{number} tasks, {each} environments of each in an evaluation, {options.workers} workers for training and as "
        f"many for evaluation; measured on {machine()['cpu']}, commit {commit()[:7]}. {missing} tasks of domains that "
        "are not installed here count as the mean of the others."
    )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}{show(found, tasks, sums, about)}\n{END}{rest.partition(END)[2]}"
    with atomic_file(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")
    claims = {"host_gb_of_simulators_at_200_tasks": claim(round(sums["sum"], 1), 10, "below")}
    words = f"python -m benchmarks.memory --workers {options.workers}"
    write("memory", words, time.monotonic() - started, claims, found=found, tasks=tasks, missing=missing, gb=sums)


if __name__ == "__main__":
    main()
