"""SIGKILL at random moments of every job: run again it ends as if nobody had disturbed it, and touches nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.jobs import JOBS, copy_for, ended, hub, prepare, run, settled, start, untouched, written
from benchmarks.results import claim

COUNT, COUNTS = 100, "SIGKILLs"
_WHOLE = {"eft import": "imported/hang/episodes.parquet", "eft adapt": "adapted/adapter_config.json"}
_IN_A_ROW = 4  # kills of one run, at most, before it may end


def run_cases(count: int, seed: int, rows: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Kill jobs, one after the other, until `count` kills are among the rows, which grow meanwhile.

    Yields:
        `number`, `job`, `kills`, `after` (seconds of each), `differs` (files unlike those of the undisturbed run),
        `touched` (files of others that changed).
    """
    seconds = prepare(work)
    names = list(JOBS)
    while sum(row["kills"] for row in rows) < count:
        number = len(rows)
        name = names[number % len(names)]
        draw = random.Random(f"{seed}-{number}")
        most = min(_IN_A_ROW, count - sum(row["kills"] for row in rows))
        moments = [round(draw.uniform(0, seconds[name]), 2) for _ in range(most)]
        yield {"number": number, "job": name, **_case(name, moments, work)}


def _case(name: str, moments: list[float], work: Path) -> dict[str, Any]:
    job, folder = JOBS[name], work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    copy_for(job, work / "project", folder)
    before, kills = untouched(job, folder), []
    with hub() if job.fresh else contextlib.nullcontext((None, settled())) as (there, environment):
        for moment in moments:
            pid = start(job, folder, environment)
            time.sleep(moment)
            if ended(pid):
                break
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:  # so early that it leads no group yet
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills.append(moment)
        error = ""
        if not _is_done(name, folder):
            done = run(job, folder, environment)
            error = done.said[-500:] if done.code else ""
        differs = _differs(name, folder, work, there)
    after = untouched(job, folder)
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    shutil.rmtree(folder)
    return {"kills": len(kills), "after": kills, "error": error, "differs": differs, "touched": touched}


def _is_done(name: str, folder: Path) -> bool:
    """Whether there is nothing left to do: an import or an adapter that is whole refuses to be made again."""
    return name in _WHOLE and (folder / _WHOLE[name]).exists()


def _differs(name: str, folder: Path, work: Path, there: Any) -> list[str]:
    """Return which files are not those of the undisturbed run."""
    job = JOBS[name]
    if name == "eft push":
        release = folder / "checkpoints/publish/release"
        local = {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}
        remote = set(there.repos["me/eft"].commits[-1].files) - {".gitattributes"}
        return sorted(local ^ remote)
    expected, found = written(job, work / "project"), written(job, folder)
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


def describe(row: dict[str, Any]) -> str:
    """Say in a line what came of a case."""
    said = f"{row['job']}, killed after {row['after']} s"
    bad = [f"{key}: {row[key]}" for key in ("error", "differs", "touched") if row[key]]
    return f"{said}: {'; '.join(bad) or 'equal'}"


def judge(rows: list[dict[str, Any]], count: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the claims, and what else is worth keeping."""
    claims = {
        "kills": claim(sum(row["kills"] for row in rows), count, "above"),
        "runs_that_failed": claim(sum(bool(row["error"]) for row in rows), 0, "below"),
        "runs_with_another_result": claim(sum(bool(row["differs"]) for row in rows), 0, "below"),
        "runs_that_touched_other_files": claim(sum(bool(row["touched"]) for row in rows), 0, "below"),
    }
    kills: Counter[str] = Counter()
    for row in rows:
        kills[row["job"]] += row["kills"]
    bad = [row for row in rows if row["error"] or row["differs"] or row["touched"]]
    return claims, {"kills_by_job": dict(kills), "bad": bad}
