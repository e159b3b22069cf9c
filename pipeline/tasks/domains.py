"""The domains: which adapter runs each, and which extra installs it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.tasks.opengl import settle_backend, settle_dm_control
from pipeline.tasks.spec import TaskSpec


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


_ON_DM_CONTROL = ("dmcontrol", "dmcontrol-ext", "robodesk")


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
    settle_backend()
    if suite in _ON_DM_CONTROL:
        settle_dm_control()
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        if absent := missing(suite):
            raise DomainUnavailable(
                f"the domain {suite} needs {listed(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
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


def listed(packages: Iterable[str]) -> str:
    """Return names of packages as they stand in a sentence."""
    return " and ".join(f"`{package}`" for package in packages)
