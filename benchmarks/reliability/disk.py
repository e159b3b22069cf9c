"""Disks that fill at a random byte: a clear message, no half of a file, and with space again the same result.

Each case lies on a file system in memory, mounted where its own processes alone see it, and filled but for a part of
what the job would write.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.jobs import JOBS, copy_for, hub, left_over, prepare, run, untouched, written
from benchmarks.results import claim

COUNT, COUNTS = 30, "disks that fill"
_NAMES = [name for name in JOBS if name != "eft push"]  # it writes nothing here
_SPARE = 64 * 2**20  # of the file system, beside what is copied there and filled


def run_cases(count: int, seed: int, rows: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Fill `count` disks; those among the rows are passed over.

    Yields:
        `number`, `job`, `free` bytes, `filled` (whether it was too little), `error` (what the user was told), `clear`,
        `left_over`, `differs`, `touched`.

    Raises:
        OSError: no file system can be mounted here.
    """
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    if probe.returncode:
        raise OSError("no file system of a given size can be mounted here: run this where `unshare -rm` may mount")
    prepare(work)
    done = {row["number"] for row in rows}
    for number in range(count):
        if number in done:
            continue
        name, draw = _NAMES[number % len(_NAMES)], random.Random(f"{seed}-{number}")
        sizes = [path.stat().st_size for out in JOBS[name].outs for path in _files(work / "project" / out)]
        free = draw.randrange(sum(sizes) + 1)
        command = [sys.executable, "-m", __spec__.name, name, str(free), str(work)]
        inside = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True, check=False)
        if inside.returncode:
            raise RuntimeError(f"the case itself failed: {inside.stderr[-2000:]}")
        yield {"number": number, "job": name, "free": free, **json.loads(inside.stdout.splitlines()[-1])}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]


def inside(name: str, free: int, work: Path) -> dict[str, Any]:
    """Play one case, in a namespace of its own."""
    job, project, place = JOBS[name], work / "project", work / "disk"
    place.mkdir(exist_ok=True)
    size = sum(path.stat().st_size + 4096 for path in project.rglob("*")) + _SPARE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    folder, filler = place / "case", place / "filler"
    copy_for(job, project, folder)
    before = untouched(job, folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - free // 4096 * 4096)
    with hub() as (_, environment):
        first = run(job, folder, environment)
        error, half = first.stderr[-600:] if first.returncode else "", left_over(folder)
        filler.unlink()
        again = run(job, folder, environment) if first.returncode else first
    expected, found = written(job, project), written(job, folder)
    after = untouched(job, folder)
    return {
        "filled": bool(first.returncode),
        "error": error,
        "clear": not first.returncode or _is_clear(first),
        "left_over": half,
        "again": again.stderr[-600:] if again.returncode else "",
        "differs": sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)),
        "touched": sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)),
    }


def _is_clear(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether the last thing a user reads says that the disk is full, and no traceback stands above it."""
    said = done.stderr.strip()
    return "Traceback" not in said and bool(re.search("no space left", said, re.IGNORECASE))


def describe(row: dict[str, Any]) -> str:
    """Say in a line what came of a case."""
    bad = [f"{key}: {row[key]}" for key in ("left_over", "again", "differs", "touched") if row[key]]
    bad += [] if row["clear"] else [f"unclear: {row['error'][-300:]!r}"]
    return f"{row['job']}, {row['free']} bytes free{'' if row['filled'] else ', enough'}: {'; '.join(bad) or 'equal'}"


def judge(rows: list[dict[str, Any]], count: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the claims, and what else is worth keeping."""
    claims = {
        "disks": claim(len(rows), count, "above"),
        "unclear_messages": claim(sum(not row["clear"] for row in rows), 0, "below"),
        "half_written_files": claim(sum(len(row["left_over"]) for row in rows), 0, "below"),
        "runs_that_did_not_go_on": claim(sum(bool(row["again"]) for row in rows), 0, "below"),
        "runs_with_another_result": claim(sum(bool(row["differs"]) for row in rows), 0, "below"),
        "runs_that_touched_other_files": claim(sum(bool(row["touched"]) for row in rows), 0, "below"),
    }
    keys = "left_over", "again", "differs", "touched"
    bad = [row for row in rows if not row["clear"] or any(row[key] for key in keys)]
    return claims, {"filled": sum(row["filled"] for row in rows), "bad": bad}


if __name__ == "__main__":
    print(json.dumps(inside(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
