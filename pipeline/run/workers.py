"""Work that is done in processes on one core each, apart from the process that gives it out."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Processes that work at the same time; they end with this one, also where that is killed.

    Args:
        count: how many; `with Workers(count, ...) as workers` ends them.
        advice: what to do if one dies, for the error.
    """

    def __init__(self, count: int, advice: str) -> None:
        # Else the numerical libraries of every process would spread over all cores and wait for each other. Processes
        # inherit this; the libraries of this one have read it already.
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin)
        self._count, self._advice = count, advice
        self._working: dict[Future, str] = {}
        self._processes: list[BaseProcess] = []

    @property
    def working(self) -> int:
        """How many are at work."""
        return len(self._working)

    @property
    def full(self) -> bool:
        """Whether all are at work."""
        return len(self._working) == self._count

    def start(self, name: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Give work to a process that is free.

        Args:
            name: what errors call it.
            work: a function of a module.
            arguments: its arguments.
        """
        with _apart():
            try:
                future = self._pool.submit(work, *arguments)
            except BrokenProcessPool:
                raise self._died() from None
        self._working[future] = name
        self._processes = [*{*self._processes, *multiprocessing.active_children()}]

    def wait(self, seconds: float | None = None) -> list[Any]:
        """Wait until work is done, or so many seconds, and return what it came to.

        Raises:
            RuntimeError: a process died, or its work failed; the work is named.
        """
        results = []
        for future in wait(self._working, seconds, return_when=FIRST_COMPLETED).done:
            try:
                results.append(future.result())
            except BrokenProcessPool:
                raise self._died() from None
            except Exception as error:
                if os.environ.get("EFT_DEBUG"):
                    traceback.print_exc()
                raise RuntimeError(f"{self._working[future]}: {type(error).__name__}: {error}") from None
            del self._working[future]
        return results

    def _died(self) -> RuntimeError:
        # The pool terminates the other processes too, and does not say which work was the first one's.
        self._pool.shutdown()
        codes = {process.exitcode for process in self._processes} - {-signal.SIGTERM}
        return RuntimeError(
            f"a worker process died (exit code {', '.join(map(str, codes))}) during: "
            f"{'; '.join(self._working.values())}. -9 most often means too little memory: {self._advice}"
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in multiprocessing.active_children():
            process.kill()
        self._pool.shutdown(cancel_futures=True)


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
