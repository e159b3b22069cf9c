"""Eft's front door: an agent, the tasks, and their environments.

import eft

agent = eft.Agent.from_pretrained("owner/name")
env = eft.make("mw-door-open")
obs, _ = env.reset(seed=0)
action = agent.act(obs, task="mw-door-open")

Torch and the simulators are imported when they are first needed, so that `import eft` takes no time. Everything else
is in `pipeline`, whose modules may be imported as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.agent import Agent as Agent
    from pipeline.tasks.spec import TaskSpec
    from pipeline.tasks.task_env import TaskEnv

__all__ = ["Agent", "make", "tasks"]


def tasks(suite: str | None = None, folder: str | Path | None = None) -> dict[str, TaskSpec]:
    """Return the tasks of the catalogue by name, those that installed packages ship and your own among them.

    Args:
        suite: of this suite alone, e.g. "metaworld"; None for all.
        folder: of your own task files, or one such file; None for none.

    Raises:
        ValueError: there is no such suite, or a task file is not valid.
    """
    from pipeline.config import near
    from pipeline.tasks.domains import DOMAINS
    from pipeline.tasks.registry import load_catalogue

    if suite is not None and suite not in DOMAINS:
        raise ValueError(f"there is no suite {suite!r}.{near(suite, list(DOMAINS))} There are: {', '.join(DOMAINS)}.")
    found = load_catalogue(folder)
    return {name: spec for name, spec in found.items() if suite in (None, spec.suite)}


def make(task: str | TaskSpec, render_size: int = 0, folder: str | Path | None = None) -> TaskEnv:
    """Build the Gymnasium environment of a task, as wide as the task itself.

    Observations are (spec.obs_dim,) float32, actions (spec.action_dim,) in [-1, 1]; `env.task` is the task.

    Args:
        task: its name, a task file of your own, or one of `tasks()`.
        render_size: pixels of a side of what `env.render()` draws, uint8 RGB; 0 if nothing will be drawn.
        folder: of your own task files, among which a name is looked for as well.

    Raises:
        ValueError: there is no such task, or its simulator refuses it.
        ImportError: its simulator is not installed; the message has the command.
    """
    from pipeline.cli.options import find_task
    from pipeline.tasks import registry

    spec = find_task(task, None if folder is None else str(folder)) if isinstance(task, str) else task
    return registry.make(spec, spec.obs_dim, spec.action_dim, render_size)


def __getattr__(name: str) -> Any:
    if name == "Agent":
        from pipeline.agent import Agent

        return Agent
    raise AttributeError(f"module 'eft' has no attribute {name!r}: it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
