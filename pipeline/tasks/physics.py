"""MuJoCo's part of an environment, where it has one."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

import ctypes
import mmap
import sys
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


def drop_textures(env: TaskEnv) -> None:
    """Give the memory of textures back to the system, in an environment of which nothing will be drawn.

    They are two thirds of what a task of DMControl takes, a fifth of one of Meta-World. From then on they are black; no
    physics reads them. Linux alone can do this; elsewhere nothing happens.
    """
    if sys.platform != "linux" or (found := mujoco_of(env)) is None or not found[0].tex_data.size:
        return
    data, page = found[0].tex_data, mmap.PAGESIZE
    first = -(-data.ctypes.data // page) * page  # whole pages only: beside them lies the rest of the model
    length = (data.ctypes.data + data.nbytes) // page * page - first
    if length > 0:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))
