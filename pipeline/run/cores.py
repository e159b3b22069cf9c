"""How many CPU cores this process may use, and how many threads torch uses unless asked otherwise."""

from __future__ import annotations

import functools
import os


def available_cores() -> int:
    """Return the CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def one_thread_by_default() -> None:
    """Let torch compute with one thread in this process, or with what OMP_NUM_THREADS or MKL_NUM_THREADS says.

    Models of this size are faster so, and many times as fast where other programs run: threads wait for each other at
    every product. Only the first call in a process does anything, so what `torch.set_num_threads` sets later stays.
    """
    import torch  # not above: those who only count cores do without

    asked = os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS") or "1"
    number = asked.split(",")[0].strip()
    torch.set_num_threads(max(1, int(number)) if number.isdecimal() else 1)
