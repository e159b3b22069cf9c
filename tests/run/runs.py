"""Starts short runs as real processes, and says what became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

from pipeline.run.metrics import FILE, read_rows

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("short_run.py")

# Options of a run whose model grows in stages: task 1 is solved from the start, task 2 for a while, task 0 half-way.
GROWING = {
    "scaling": {"pendulum-0": 0.7, "pendulum-1": 0.45, "pendulum-2": 0.41},
    "lr": 1e-2,
    "eval_every": 30,
    "env_steps": 120,
}


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


class Server:
    """A process that forks runs; `with Server() as server`."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._in, self._out = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        return self

    def __exit__(self, *exc: object) -> None:
        self._in.close()
        self._process.wait(timeout=60)
        self._out.close()

    def start(self, folder: Path, ranks: int = 1, **options: object) -> list[int]:
        """Start a run and return the process ids of its ranks."""
        folder.mkdir(parents=True, exist_ok=True)
        self._in.write(json.dumps({"folder": str(folder), "ranks": ranks, **options}) + "\n")
        self._in.flush()
        return [int(word) for word in self._out.readline().split()]

    def wait(self) -> list[int]:
        """Return the exit codes of the ranks, negative for signals, when all have ended."""
        return [int(word) for word in self._out.readline().split()]

    def run(self, folder: Path, ranks: int = 1, **options: object) -> list[int]:
        """Start a run and wait for its end."""
        self.start(folder, ranks, **options)
        return self.wait()


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal to a run that may just have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def result(folder: Path, rank: int = 0) -> dict:
    """Return what a rank wrote at the end of its run."""
    return json.loads((folder / f"result-{rank}.json").read_text())


def curves(folder: Path) -> str:
    """Return the metrics that a run published, as they are written, but for times and memory."""
    rows = read_rows(folder / f"metrics/{FILE}")
    measured = ("time/", "clock/", "speed/", "memory/")
    kept = ({name: value for name, value in row.items() if not name.startswith(measured)} for row in rows)
    return "\n".join(json.dumps(row) for row in kept)


def said(folder: Path, rank: int = 0) -> str:
    """Return what a rank wrote to stderr in its last run."""
    return (folder / f"rank-{rank}.err").read_text()


def positions(folder: Path) -> list[int]:
    """Return the env_steps of the saves there are."""
    return sorted(int(path.name[5:]) for path in folder.glob(".resume/short-*/save-*"))
