"""Attempts at demonstrations, played in processes on one core each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.data.demos import write_episodes
from pipeline.demonstrate.play import least_score, play
from pipeline.files import write_json
from pipeline.tasks.spec import TaskSpec

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Attempts:
    """Attempts that play at the same time.

    Args:
        count: how many processes play; `with Attempts(count) as attempts` ends them.
    """

    def __init__(self, count: int) -> None:
        # Else the numerical libraries of every process would spread over all cores and wait for each other. Processes
        # inherit this; the libraries of this one have read it already.
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)
        self._count = count
        self._playing: dict[Future, str] = {}
        self._processes: list[BaseProcess] = []

    @property
    def playing(self) -> int:
        """How many are under way."""
        return len(self._playing)

    @property
    def full(self) -> bool:
        """Whether every process plays."""
        return len(self._playing) == self._count

    def start(self, spec: TaskSpec, attempt: int, seed: int, action_noise: float, folder: Path) -> None:
        """Start one attempt, in a process that is free."""
        with _apart():
            try:
                future = self._pool.submit(play_attempt, spec, attempt, seed, action_noise, folder)
            except BrokenProcessPool:
                raise self._died() from None
        self._playing[future] = f"{spec.name}, attempt {attempt}"
        self._processes = [*{*self._processes, *multiprocessing.active_children()}]

    def wait(self) -> list[dict[str, Any]]:
        """Wait until attempts are finished and return their notes.

        Raises:
            RuntimeError: a process died, or an attempt failed; the tasks and attempts are named.
        """
        notes = []
        for future in wait(self._playing, return_when=FIRST_COMPLETED).done:
            try:
                notes.append(future.result())
            except BrokenProcessPool:
                raise self._died() from None
            except Exception as error:
                if os.environ.get("EFT_DEBUG"):
                    traceback.print_exc()
                raise RuntimeError(f"{self._playing[future]}: {type(error).__name__}: {error}") from None
            del self._playing[future]
        return notes

    def _died(self) -> RuntimeError:
        # The pool terminates the other processes too, and does not say which attempt was played by the first.
        self._pool.shutdown()
        codes = {process.exitcode for process in self._processes} - {-signal.SIGTERM}
        return RuntimeError(
            f"a worker process died (exit code {', '.join(map(str, codes))}) while these were played: "
            f"{'; '.join(self._playing.values())}. -9 most often means too little memory: lower demos.workers. What "
            "was collected is kept: the same command goes on from there."
        )

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in multiprocessing.active_children():
            process.kill()
        self._pool.shutdown(cancel_futures=True)


def play_attempt(spec: TaskSpec, attempt: int, seed: int, action_noise: float, folder: Path) -> dict[str, Any]:
    """Play one attempt, store it if it is good enough, then note its outcome: the note is what makes it count.

    Returns:
        The note: `task`, `attempt`, `seed`, `score`, `kept`, and the core-`seconds` it took.
    """
    started = time.process_time()
    episode = play(spec, seed, attempt, action_noise)
    kept = episode.score >= least_score(spec)
    if kept:
        write_episodes(folder / f"{attempt:06d}.parquet", [episode])
    note = {
        "task": spec.name,
        "attempt": attempt,
        "seed": episode.seed,
        "score": episode.score,
        "kept": kept,
        "seconds": round(time.process_time() - started, 3),
    }
    write_json(folder / f"{attempt:06d}.json", note)
    return note


def _begin() -> None:
    """Prepare a process: it ends with its parent, also where that is killed."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # dm_control warns of every planned sequence that diverges
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


@contextmanager
def _apart() -> Iterator[None]:
    """Keep a process that is started within from Ctrl-C, and from importing the module that this one runs."""
    main = sys.modules["__main__"]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = types.ModuleType("__main__")  # a stage would bring torch: 200 MB for each process
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
