"""Worker processes that play attempts, seen from the process that gives the orders."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Processes that play, one attempt at a time each, on one core each.

    Args:
        count: how many.
    """

    def __init__(self, count: int):
        # One core each: numerical libraries that spread over all cores would only fight each other.
        environment = os.environ | dict.fromkeys(_THREADS, "1")
        command = [sys.executable, "-m", "pipeline.demonstrate.worker"]
        # A group of their own keeps the terminal's Ctrl-C from them, even while they are only starting.
        self._all = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0, bufsize=0
            )
            for _ in range(count)
        ]
        self.idle: list[subprocess.Popen] = list(self._all)
        self.busy: dict[subprocess.Popen, dict[str, Any]] = {}
        self._selector = selectors.DefaultSelector()
        for process in self._all:
            assert process.stdout  # piped above
            self._selector.register(process.stdout, selectors.EVENT_READ, process)

    def give(self, order: dict[str, Any]) -> None:
        """Give an attempt to an idle worker."""
        process = self.idle.pop()
        self.busy[process] = order
        assert process.stdin
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
        except BrokenPipeError:
            raise self._died(process) from None

    def wait(self) -> list[dict[str, Any]]:
        """Wait until attempts are finished and return their notes.

        Raises:
            RuntimeError: a worker died, or an attempt failed; the task and attempt are named.
        """
        notes = []
        for key, _ in self._selector.select():
            line = key.data.stdout.readline()
            if not line:
                raise self._died(key.data)
            answer, order = json.loads(line), self.busy.pop(key.data)
            if "error" in answer:
                where = f"{order['spec']['name']}, attempt {order['attempt']}"
                if os.environ.get("EFT_DEBUG"):
                    print(answer["traceback"], file=sys.stderr)
                raise RuntimeError(f"{where}: {answer['error']}")
            self.idle.append(key.data)
            notes.append(answer)
        return notes

    def _died(self, process: subprocess.Popen) -> RuntimeError:
        order = self.busy.get(process)
        what = f"playing {order['spec']['name']}, attempt {order['attempt']}" if order else "starting"
        return RuntimeError(
            f"a worker process died (exit code {process.wait()}) while {what}; -9 most often means too little "
            "memory: lower demos.workers. What was collected is kept: the same command goes on from there."
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self._selector.close()
        for process in self._all:
            process.kill()
        for process in self._all:
            process.__exit__(None, None, None)  # waits, and closes the pipes
