"""Processes that load one checkpoint at once: all act alike, and none waits for another's lock or meets half a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.fuzz import ROOT, tests_file
from benchmarks.results import claim

COUNT, COUNTS = 8, "processes that load at once"
_LOAD = """
import sys, time
import numpy as np
from pipeline.agent import Agent
print("ready", flush=True)
sys.stdin.readline()
started = time.monotonic()
agent = Agent.from_pretrained("agent")
agent.add_adapter("adapter")
agent.reset(seed=0)
acted = [agent.act(np.ones(width, np.float32), task=task).tolist() for task, width in (("walk", 4), ("pull", 5))]
print(time.monotonic() - started, acted)
"""


def run_cases(count: int, seed: int, rows: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Load with `count` processes; nothing to do where a row is there.

    Yields:
        `number`, `seconds` of each, `failed`, `results` (how many different ones).
    """
    if rows:
        return
    tiny = tests_file("tiny_agent.py")
    tiny["make_agent"](seed).save_pretrained(work / "agent")
    tiny["adapted"](work / "agent", work / "adapter")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _LOAD], cwd=work, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # everything is imported
    started = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=600)[0].strip() for process in processes]
    failed = sum(process.returncode != 0 for process in processes)
    parts = [one.partition(" ") for one in said if one]
    yield {
        "number": 0,
        "processes": count,
        "failed": failed,
        "results": len({acted for _, _, acted in parts}),
        "seconds": sorted(round(float(seconds), 2) for seconds, _, _ in parts),
        "together": round(time.monotonic() - started, 2),
    }


def describe(row: dict[str, Any]) -> str:
    """Say in a line what came of it."""
    return (
        f"{row['failed']} failed, {row['results']} different results, the slowest in {max(row['seconds'], default=0)} s"
    )


def judge(rows: list[dict[str, Any]], count: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the claims, and what else is worth keeping."""
    row = rows[0] if rows else {}
    claims = {
        "processes": claim(row.get("processes"), count, "above"),
        "failed": claim(row.get("failed"), 0, "below"),
        "different_results": claim(row.get("results"), 1, "below"),
    }
    return claims, {"rows": rows}
