"""Asking an expert what it would do in the states that an environment visits, whoever acts there."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import SimulationError, TaskEnv

Expert = Callable[[np.ndarray, bool], np.ndarray]  # observation (o,), whether it is successful -> action (a,)


class Labels(NamedTuple):
    """Which tasks are labelled, by whom, and how their experts are opened."""

    kinds: Mapping[str, str]  # by task, e.g. `scripted`; tasks not named are not labelled
    open_expert: Callable[[TaskSpec, TaskEnv], Expert]  # a module's function, or a `partial` of one: workers call it

    def to_orders(self) -> dict[str, Any]:
        """Return this in JSON's own types, for a worker process: the function by its name, nothing pickled.

        Raises:
            ValueError: the function cannot be found by its name in another process.
        """
        opener = self.open_expert
        bound = opener if isinstance(opener, partial) else partial(opener)
        module, name = bound.func.__module__, bound.func.__qualname__
        if getattr(importlib.import_module(module), name, None) is not bound.func:
            raise ValueError(
                f"{module}.{name} opens experts, and another process cannot find it: it must be a function of a module."
            )
        given = {key: str(value) if isinstance(value, Path) else value for key, value in bound.keywords.items()}
        return {"kinds": dict(self.kinds), "module": module, "name": name, "args": list(bound.args), "keywords": given}

    @classmethod
    def from_orders(cls, orders: Mapping[str, Any]) -> Labels:
        """Return what `to_orders` was made of."""
        function = getattr(importlib.import_module(orders["module"]), orders["name"])
        return cls(orders["kinds"], partial(function, *orders["args"], **orders["keywords"]))


def ask(expert: Expert, spec: TaskSpec, obs: np.ndarray, success: bool) -> np.ndarray:
    """Return what an expert would do, (a,) float32 in [-1, 1].

    Args:
        expert: of the task's environment.
        spec: the task.
        obs: (O,) float32, the observation of the present state, padded.
        success: whether the present state is a successful one.

    Raises:
        SimulationError: the expert failed, or its action is not finite or has a wrong shape.
    """
    try:
        action = np.asarray(expert(obs[: spec.obs_dim], success), np.float32)
    except Exception as error:
        raise SimulationError(f"task {spec.name}: its expert failed: {type(error).__name__}: {error}.") from error
    if action.shape != (spec.action_dim,) or not np.isfinite(action).all():
        raise SimulationError(
            f"task {spec.name}: its expert gave the action {action.tolist()}, expected {spec.action_dim} finite "
            "values. `finetune.teacher: off` learns without experts."
        )
    return action.clip(-1.0, 1.0)
