"""`Agent.act` for minutes, with ever new sentences and tasks: memory stays flat."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reliability.fuzz import tests_file
from benchmarks.results import claim

COUNT, COUNTS = 30, "minutes of acting, in one go"
SECONDS_PER_COUNT = 60.0
_SAMPLES = 60
_FLAT = 1.0  # percent
_WORDS = ("push", "pull", "lift", "turn", "the", "red", "drawer", "cup", "slowly", "left", "up", "then", "until", "it")


def run_cases(count: int, seed: int, rows: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Act for `count` minutes; nothing to do where a row is there.

    Yields:
        `number`, `steps`, `sentences`, `mb` (resident memory at equal times).
    """
    if rows:
        return
    tiny = tests_file("tiny_agent.py")
    agent, specs = tiny["make_agent"](), tiny["SPECS"]
    draw, numbers = random.Random(seed), np.random.default_rng(seed)
    seconds = SECONDS_PER_COUNT * count
    started, steps, mb = time.monotonic(), 0, []
    while (passed := time.monotonic() - started) < seconds:
        if len(mb) <= passed / seconds * _SAMPLES:
            mb.append(_resident_mb())
        spec, envs = draw.choice(specs), draw.choice((1, 1, 4))
        agent.reset(num_envs=envs, seed=steps)
        obs = numbers.normal(size=(envs, spec.obs_dim)).astype(np.float32)
        sentence = " ".join(draw.choices(_WORDS, k=draw.randint(3, 9))) + f" {steps}"
        new = {"instruction": sentence, "action_dim": spec.action_dim}
        for told in (new, {"task": spec.name}):
            assert np.isfinite(agent.act(obs, plan=draw.random() < 0.5, **told)).all()
        steps += 1
    yield {"number": 0, "steps": steps, "sentences": steps, "mb": mb}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)


def growth(mb: list[float]) -> float:
    """Return by how many percent the last third lies above the second: the first fills caches."""
    third = max(len(mb) // 3, 1)
    second, last = np.mean(mb[third : 2 * third]), np.mean(mb[-third:])
    return round(float(100 * (last / second - 1)), 3)


def describe(row: dict[str, Any]) -> str:
    """Say in a line what came of it."""
    return f"{row['sentences']} sentences, memory {row['mb'][0]} to {row['mb'][-1]} MB, {growth(row['mb']):+.2f} %"


def judge(rows: list[dict[str, Any]], count: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the claims, and what else is worth keeping."""
    claims = {"memory_grows_percent": claim(growth(rows[0]["mb"]) if rows else None, _FLAT, "below")}
    return claims, {"minutes": count, "rows": rows}
