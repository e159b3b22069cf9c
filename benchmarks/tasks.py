"""How fast many tasks step in few processes, what bounds that, and what memory they take.

    python -m benchmarks.tasks              48 tasks of nine suites, 40 light ones, each suite; memory of 200
    python -m benchmarks.tasks --seconds 2  shorter

The same environments, the same actions: ours in 1, 2 and 4 workers, Gymnasium's SyncVectorEnv in this process, its
AsyncVectorEnv with a process for each. Each steps for some seconds in turn, several rounds; the median round counts.
Beside them, `simulation` steps the bare environments one after the other and counts processor time: times the cores
it is the `bound`, what nobody can exceed on this machine, however vectors are made. Against AsyncVectorEnv no more can
be gained than bound / async. Memory is that of this process's workers with MMBench's 200 training tasks, shared pages
counted once (PSS); where a task's files are missing here, another one of its domain stands in, and where all of a
domain is missing nothing is claimed. Writes results/tasks.json.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import psutil
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from benchmarks.results import claim, write
from pipeline.progress import Progress
from pipeline.run.cores import available_cores
from pipeline.tasks import availability, domains, registry
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv

OBS, ACTION = 128, 16
PER_SUITE = 8
LIGHT_SUITES = ["miniarcade", "dmcontrol-ext", "mujoco", "dmcontrol"]  # a step takes a tenth of a millisecond or so
NUM_LIGHT = 40
SUITES = ["dmcontrol", "dmcontrol-ext", "metaworld", "mujoco", "box2d", "atari", "robodesk", "ogbench", "miniarcade"]
NUM_TASKS = 48
ROUNDS = 3
WORKERS = (1, 2, 4)


def mix() -> list[TaskSpec]:
    """Return some tasks of every light domain that is installed, the same number of each as far as there are."""
    catalogue = [spec for spec in registry.load_catalogue().values() if not domains.missing(spec.suite)]
    by_suite = [[spec for spec in catalogue if spec.suite == suite][:PER_SUITE] for suite in SUITES]
    rows = [specs[row] for row in range(PER_SUITE) for specs in by_suite if row < len(specs)]
    if len(rows) < 40:
        raise SystemExit(f"only {len(rows)} tasks are installed, 40 are needed: pip install 'eft[simulators]'")
    return rows[:NUM_TASKS]


def light() -> list[TaskSpec]:
    """Return tasks whose simulation takes little, so that what a vector adds to it shows."""
    catalogue = [spec for spec in registry.load_catalogue().values() if not domains.missing(spec.suite)]
    chosen = [spec for suite in LIGHT_SUITES for spec in catalogue if spec.suite == suite]
    return chosen[:NUM_LIGHT]


class Simulation:
    """The environments by themselves, one after the other in this process: what every way has to compute.

    Args:
        makers: one function per environment, which builds it.
    """

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env]]) -> None:
        self._envs = [make() for make in makers]

    def reset(self, seed: int) -> None:
        """Start an episode in each."""
        for number, env in enumerate(self._envs):
            env.reset(seed=seed + number)

    def step(self, actions: np.ndarray) -> None:
        """Take one step in each, and start the next episode where one ends."""
        for env, action in zip(self._envs, actions, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    def close(self) -> None:
        """Release the simulators."""
        for env in self._envs:
            env.close()


def measure(
    specs: Sequence[TaskSpec], seconds: float, workers: Sequence[int] = WORKERS
) -> tuple[dict[str, float], dict[str, float]]:
    """Return environment steps per second, and per second of processor time, of each way: medians over rounds."""
    makers: list[Callable[[], gymnasium.Env]] = [functools.partial(registry.make, spec, OBS, ACTION) for spec in specs]
    same: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    ways: dict[str, Any] = {}
    try:
        for number in workers:
            ways[f"workers_{number}"] = VectorEnv(specs, OBS, ACTION, seed=0, num_workers=number)
        ways["simulation"] = Simulation(makers)
        ways["sync"] = SyncVectorEnv(makers, **same)
        ways["async"] = AsyncVectorEnv(makers, **same)
        for name, envs in ways.items():
            envs.reset() if name.startswith("workers") else envs.reset(seed=0)
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        with Progress("tasks: speed", ROUNDS * len(ways), "rounds") as progress:
            for _ in range(ROUNDS):
                for name, envs in ways.items():
                    rates[name].append(rate(envs, len(specs), seconds))
                    progress.update(1)
    finally:
        for envs in ways.values():
            envs.close()
    wall, cpu = (
        {name: round(statistics.median(pair[part] for pair in found), 1) for name, found in rates.items()}
        for part in (0, 1)
    )
    return wall, cpu


def bounded(specs: Sequence[TaskSpec], seconds: float, workers: Sequence[int]) -> dict[str, Any]:
    """Measure some tasks, and return the rates beside what bounds them."""
    cores = available_cores()
    wall, cpu = measure(specs, seconds, workers)
    bound = round(cores * cpu["simulation"], 1)
    ours, lean = (max(found[f"workers_{number}"] for number in workers) for found in (wall, cpu))
    return {
        "num_tasks": len(specs),
        "env_steps_per_second": wall,
        "env_steps_per_cpu_second": cpu,  # what other work on the machine changes least
        "bound": bound,  # environment steps per second of simulation alone on all cores
        "share_of_bound": {name: round(value / bound, 2) for name, value in wall.items()},
        "ours_against_async": round(ours / wall["async"], 2),
        "ours_against_async_per_cpu_second": round(lean / cpu["async"], 2),
        "ours_against_sync_per_core": round(ours / wall["sync"] / cores, 2),
        "largest_possible_against_async": round(bound / wall["async"], 2),
    }


def rate(envs: Any, num_envs: int, seconds: float) -> tuple[float, float]:
    """Step for some seconds and return environment steps per second, and per second of processor time."""
    rng = np.random.default_rng(0)
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]  # those of other ways wait meanwhile
    before = sum(sum(process.cpu_times()[:2]) for process in everyone)
    steps, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        envs.step(rng.uniform(-1, 1, (num_envs, ACTION)).astype(np.float32))
        steps += num_envs
    used = sum(sum(process.cpu_times()[:2]) for process in everyone) - before
    return steps / elapsed, steps / used


def memory(specs: Sequence[TaskSpec], num_workers: int) -> float:
    """Return the GiB that the workers of these tasks take after a reset and ten steps."""
    with VectorEnv(specs, OBS, ACTION, seed=0, num_workers=num_workers) as envs:
        envs.reset()
        for _ in range(10):
            envs.step(np.zeros((len(specs), ACTION), np.float32))
        children = psutil.Process().children(recursive=True)
        return sum(child.memory_full_info().pss for child in children) / 2**30


def stand_ins(wanted: Sequence[TaskSpec]) -> tuple[dict[str, TaskSpec], list[str]]:
    """Return what is built for each wanted task, itself or another of its domain, and the domains that are missing."""
    missing = availability.unavailable(wanted)
    able: dict[str, list[TaskSpec]] = {}
    for spec in wanted:
        if spec.name not in missing:
            able.setdefault(spec.suite, []).append(spec)
    built = {
        spec.name: spec if spec.name not in missing else able[spec.suite][row % len(able[spec.suite])]
        for row, spec in enumerate(wanted)
        if spec.suite in able
    }
    return built, sorted({spec.suite for spec in wanted} - set(able))


def main() -> None:
    """Measure and write results/tasks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of stepping per way and round (default: 5)")
    options = parser.parse_args()
    started = time.monotonic()
    cores = available_cores()
    wanted = [spec for spec in registry.load_catalogue().values() if spec.split == "train"]
    built, absent = stand_ins(wanted)
    gigabytes = round(memory(list(built.values()), cores), 2)
    specs, light_specs = mix(), light()
    mixed, lightly = (bounded(chosen, options.seconds, WORKERS) for chosen in (specs, light_specs))
    alone = {
        suite: bounded([spec for spec in specs if spec.suite == suite], options.seconds / 4, (cores,))
        for suite in SUITES
        if any(spec.suite == suite for spec in specs)
    }
    claims = {
        "speed_against_async": claim(mixed["ours_against_async"], 3, "above"),
        "speed_against_sync_per_core": claim(mixed["ours_against_sync_per_core"], 0.9, "above"),
        "speed_against_async_light": claim(lightly["ours_against_async"], 3, "above"),
        "speed_against_sync_per_core_light": claim(lightly["ours_against_sync_per_core"], 0.9, "above"),
        # With a domain missing the figure is of fewer tasks: then nothing is claimed about 200.
        "memory_gb_200_tasks": claim(gigabytes if len(built) == 200 else None, 8, "below"),
    }
    write(
        "tasks",
        "python -m benchmarks.tasks" + (f" --seconds {options.seconds:g}" if options.seconds != 5 else ""),
        time.monotonic() - started,
        claims,
        mix=mixed,
        light=lightly,
        suites=alone,
        tasks=[spec.name for spec in specs],
        light_tasks=[spec.name for spec in light_specs],
        memory={
            "gb": gigabytes,
            "tasks": len(built),
            "missing": absent,
            "stood_in_for": [name for name, spec in built.items() if spec.name != name],
        },
        load=psutil.getloadavg()[0],
    )


if __name__ == "__main__":
    main()
