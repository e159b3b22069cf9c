"""MuJoCo's part of an environment, where it has one."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.tasks.task_env import TaskEnv

if TYPE_CHECKING:
    import mujoco


def mujoco_of(env: TaskEnv) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
    """Return model and data of an environment that runs on MuJoCo, else None. They may change at a reset."""
    simulator: Any = env.simulator
    for holder in (getattr(simulator, "physics", None), getattr(simulator, "env", None)):
        body = getattr(holder, "unwrapped", holder)
        model, data = (getattr(part, "ptr", part) for part in (getattr(body, name, None) for name in ("model", "data")))
        if type(model).__name__ == "MjModel" and data is not None:
            return model, data
    return None
