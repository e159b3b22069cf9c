"""Where the replay's rows lie, in memory or in files, and how slices of them are copied out."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Slices(NamedTuple):
    """A batch as its parts come: rows on the buffer's device, what the table of episodes knows beside them."""

    rows: Tensor  # (T + 1, B, O + A + 1) observation, action, reward
    expert_action: Tensor | None  # (T, B, A); None = the action
    past: Tensor | None  # (W, B, O + A + 1) the rows before, for a model that sees them
    terminated: np.ndarray  # (T, B) float32
    task: np.ndarray  # (B,) int64
    imitation: np.ndarray  # (B,) float32
    past_length: np.ndarray  # (B,) int64, how many rows of the past are of the same episode


def gather(column: Tensor, rows: np.ndarray, out: Tensor, at: slice) -> None:
    """Copy column[rows] into out[:, at]; rows (T', n), out (T', B, width)."""
    if column.device.type == "cpu":
        # numpy starts a row's copy in a quarter of the time that torch's index_select takes for it.
        source, target = column.numpy(), out.numpy()[:, at]
        together = target.flags.c_contiguous
        for step, part in [(rows, target)] if together else zip(rows, target, strict=True):
            source.take(step, 0, part, "clip")  # which writes into `part` itself; "raise" would into a buffer
    else:
        index, target = torch.from_numpy(rows).to(column.device), out[:, at]
        if target.is_contiguous():
            index, target = index.view(1, -1), target.view(1, -1, target.shape[-1])
        for step, part in zip(index, target, strict=True):
            torch.index_select(column, 0, step, out=part)


def zeros(capacity: int, width: int, device: torch.device) -> Tensor:
    """Return zeros (capacity, width), on the CPU in huge pages where the system has them: rows are read at random."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(capacity, width, device=device)
    memory = mmap.mmap(-1, 4 * capacity * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(capacity, width)


def mapped(path: Path, shape: tuple[int, ...], attach: bool) -> Tensor:
    """Return a float32 tensor in a file whose space is reserved: a full disk must not kill the process later."""
    size = math.prod(shape)
    if attach:
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 4 * size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(
            f"{path} needs {4 * size / 2**30:.2f} GiB, which could not be reserved: {error}. Free some space or lower "
            "replay_capacity."
        ) from None
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
