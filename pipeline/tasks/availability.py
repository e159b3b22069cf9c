"""Whether the tasks can run on this machine; where that is not known without trying, one of them is started."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pipeline.tasks import domains
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv

_NUM_STEPS = 20


class Status(NamedTuple):
    """What became of starting one task of a suite."""

    suite: str
    num_tasks: int  # in the catalogue
    state: Literal["works", "missing", "broken"]
    detail: str  # its speed; or what to install; or the simulator's own error


def check(specs: Iterable[TaskSpec]) -> Iterator[Status]:
    """Start the first task of every suite in a process of its own and step it; yield what came of it.

    A process of its own, so that a simulator that crashes or hangs harms nothing else.
    """
    by_suite: dict[str, list[TaskSpec]] = {}
    for spec in specs:
        by_suite.setdefault(spec.suite, []).append(spec)
    for suite in (suite for suite in domains.DOMAINS if suite in by_suite):
        num_tasks = len(by_suite[suite])
        if absent := domains.missing(suite):
            yield Status(
                suite, num_tasks, "missing", f"{domains.listed(absent)} not installed: {domains.install(suite)}"
            )
            continue
        try:
            yield Status(suite, num_tasks, "works", _start(by_suite[suite][0]))
        except Exception as error:
            yield Status(suite, num_tasks, "broken", str(error).partition("\n\nIn the worker:")[0])


def unavailable(specs: Iterable[TaskSpec]) -> dict[str, str]:
    """Return the tasks that cannot run on this machine, and why and what to do, without starting what surely can.

    Packages are looked for. Where a domain needs more than packages, each task's files are looked for and one task is
    started. A package that is there and broken shows when the first of its tasks is built.
    """
    by_suite: dict[str, list[TaskSpec]] = {}
    for spec in specs:
        by_suite.setdefault(spec.suite, []).append(spec)
    found: dict[str, str] = {}
    for suite, tasks in by_suite.items():
        if absent := domains.missing(suite):
            found |= {spec.name: _not_installed(suite, absent) for spec in tasks}
        elif domains.DOMAINS[suite].more:
            found |= _unavailable_of_domain(tasks)
    return found


def _unavailable_of_domain(specs: list[TaskSpec]) -> dict[str, str]:
    """Return the same for tasks of one domain that needs more than packages."""
    found: dict[str, str] = {}
    for spec in specs:
        try:
            domains.adapter(spec.suite).require_files(spec.env_id, spec.env_kwargs)
        except (domains.AssetsUnavailable, domains.DomainUnavailable) as error:
            found[spec.name] = str(error)
    left = [spec for spec in specs if spec.name not in found]
    for status in check(left[:1]):
        if status.state != "works":
            found |= {spec.name: status.detail for spec in left}
    return found


def require(specs: Sequence[TaskSpec]) -> None:
    """Refuse tasks that cannot run on this machine.

    Raises:
        ValueError: names all of them, with the reasons and what to do.
    """
    if reasons := unavailable(specs):
        raise ValueError(
            f"{len(reasons)} of {len(specs)} tasks cannot run on this machine:\n{describe(reasons)}\nDo what is said "
            "there, or leave these tasks out: `eft preset --installed` takes them out of params.yaml."
        )


def describe(reasons: Mapping[str, str]) -> str:
    """Return what `unavailable` found, a line for each reason with its tasks."""
    names: dict[str, list[str]] = {}
    for task, reason in reasons.items():
        names.setdefault(reason, []).append(task)
    return "\n".join(
        f"  {len(tasks)} task{'s' if len(tasks) > 1 else ''} ({', '.join(tasks)}): {reason}"
        for reason, tasks in names.items()
    )


def _not_installed(suite: str, packages: Iterable[str]) -> str:
    return f"{domains.listed(packages)} not installed: {domains.install(suite)}"


def _start(spec: TaskSpec) -> str:
    before = time.perf_counter()
    with VectorEnv([spec], spec.obs_dim, spec.action_dim, seed=0, num_workers=1) as envs:
        envs.reset()
        started = time.perf_counter()
        for _ in range(_NUM_STEPS):
            envs.step(np.zeros((1, spec.action_dim), np.float32))
        speed = _NUM_STEPS / (time.perf_counter() - started)
    return f"{spec.name} started in {started - before:.1f} s, {speed:.0f} steps/s"
