"""The domains: which adapter runs each, which extra installs it, and whether it works on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.tasks.spec import TaskSpec

_NUM_STEPS = 20


class Domain(NamedTuple):
    """How the tasks of one suite come to run."""

    adapter: str  # module:class of the adapter, imported only when a task of the suite is built
    extra: str | None  # `pip install 'eft[extra]'` installs it; None: part of the base
    packages: tuple[str, ...]  # modules that the adapter cannot do without
    cost: float = 0.1  # rough milliseconds of a simulator step: how workers share environments, never what comes out
    more: bool = False  # needs what no package brings: a device, files; the adapter then has `require_files`


DOMAINS: dict[str, Domain] = {
    "dmcontrol": Domain("pipeline.tasks.dmcontrol:DMControl", "dmcontrol", ("dm_control", "mujoco")),
    "dmcontrol-ext": Domain("pipeline.tasks.dmcontrol:DMControl", "dmcontrol", ("dm_control", "mujoco")),
    "metaworld": Domain("pipeline.tasks.metaworld:MetaWorld", "metaworld", ("metaworld", "mujoco"), 0.2),
    "maniskill": Domain("pipeline.tasks.maniskill:ManiSkill", "maniskill", ("mani_skill",), 0.7, more=True),
    "mujoco": Domain("pipeline.tasks.gymnasium_mujoco:GymnasiumMuJoCo", "mujoco", ("mujoco",)),
    "box2d": Domain("pipeline.tasks.box2d:Box2D", "box2d", ("Box2D",)),
    "robodesk": Domain("pipeline.tasks.robodesk:RoboDesk", "robodesk", ("robodesk", "gym"), 0.7),
    "ogbench": Domain("pipeline.tasks.ogbench:OGBench", "ogbench", ("ogbench",), 0.12),
    "miniarcade": Domain("pipeline.tasks.miniarcade.adapter:MiniArcade", "miniarcade", (), 0.06),
    "atari": Domain("pipeline.tasks.atari:Atari", "atari", ("ale_py",), 0.2),
    "gymnasium": Domain("pipeline.tasks.any_gymnasium:GymnasiumTask", None, ()),
}


class DomainUnavailable(ImportError):
    """The simulator of a domain is not installed, or does not start; the message says which, and what to do."""


class AssetsUnavailable(RuntimeError):
    """A task needs files that are not on this machine and could not be fetched; the message says which, and how."""


def adapter(suite: str) -> Any:
    """Import and return the adapter class of a suite.

    Raises:
        DomainUnavailable: a package is missing, and the message names the extra; or one is there and broken, and the
            message holds its own error.
    """
    module, _, name = DOMAINS[suite].adapter.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        if absent := missing(suite):
            raise DomainUnavailable(
                f"the domain {suite} needs {_listed(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
                f"installed. Install the extra: {install(suite)}"
            ) from error
        raise DomainUnavailable(
            f"the domain {suite} is installed but does not start: {type(error).__name__}: {error}"
        ) from error


def missing(suite: str) -> tuple[str, ...]:
    """Return the packages that a suite needs and this Python does not have; nothing is imported."""
    return tuple(package for package in DOMAINS[suite].packages if importlib.util.find_spec(package) is None)


def cost(spec: TaskSpec) -> float:
    """Return the rough milliseconds that an agent's step in this task takes one core."""
    return DOMAINS[spec.suite].cost * spec.action_repeat


def install(suite: str) -> str:
    """Return the command that installs what a suite needs."""
    return f"pip install 'eft[{DOMAINS[suite].extra}]'"


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
    for suite in (suite for suite in DOMAINS if suite in by_suite):
        num_tasks = len(by_suite[suite])
        if absent := missing(suite):
            yield Status(suite, num_tasks, "missing", f"{_listed(absent)} not installed: {install(suite)}")
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
        if absent := missing(suite):
            found |= {spec.name: f"{_listed(absent)} not installed: {install(suite)}" for spec in tasks}
        elif DOMAINS[suite].more:
            found |= _unavailable_of_domain(tasks)
    return found


def _unavailable_of_domain(specs: list[TaskSpec]) -> dict[str, str]:
    """Return the same for tasks of one domain that needs more than packages."""
    found: dict[str, str] = {}
    for spec in specs:
        try:
            adapter(spec.suite).require_files(spec.env_id, spec.env_kwargs)
        except (AssetsUnavailable, DomainUnavailable) as error:
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


def _start(spec: TaskSpec) -> str:
    from pipeline.tasks.vector import VectorEnv

    before = time.perf_counter()
    with VectorEnv([spec], spec.obs_dim, spec.action_dim, seed=0, num_workers=1) as envs:
        envs.reset()
        started = time.perf_counter()
        for _ in range(_NUM_STEPS):
            envs.step(np.zeros((1, spec.action_dim), np.float32))
        speed = _NUM_STEPS / (time.perf_counter() - started)
    return f"{spec.name} started in {started - before:.1f} s, {speed:.0f} steps/s"


def _listed(packages: Iterable[str]) -> str:
    return " and ".join(f"`{package}`" for package in packages)
