"""Disks that fill at a random byte: a clear message, no half of a file, and with space again the same result.

Each case lies on a file system in memory, mounted where its own processes alone see it, and filled but for a part of
what the job would write.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.jobs import JOBS, Job, copy_for, left_over, prepare, run, settled, untouched, written
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
    with _namespace(work) as ask:
        for number in range(count):
            if number in done:
                continue
            name, draw = _NAMES[number % len(_NAMES)], random.Random(f"{seed}-{number}")
            sizes = [path.stat().st_size for out in JOBS[name].outs for path in _files(work / "project" / out)]
            free = draw.randrange(sum(sizes) + 1)
            yield {"number": number, "job": name, "free": free, **ask(name, free)}


@contextlib.contextmanager
def _namespace(work: Path) -> Iterator[Callable[[str, int], dict[str, Any]]]:
    """Start a process that may mount, and yield what asks it to play a case."""
    command = ["unshare", "-rm", sys.executable, "-m", "benchmarks.reliability.disk", str(work)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settled())
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(name: str, free: int) -> dict[str, Any]:
        requests.write(json.dumps([name, free]) + "\n")
        requests.flush()
        if not (answer := answers.readline()):
            raise RuntimeError(f"the process that plays {name} on a disk with {free} bytes has ended")
        return json.loads(answer)

    try:
        yield ask
    finally:
        requests.close()
        process.wait()
        answers.close()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]


def inside(name: str, free: int, work: Path) -> dict[str, Any]:
    """Play one case, in a namespace of its own."""
    job, project, place = JOBS[name], work / "project", work / "disk"
    place.mkdir(exist_ok=True)
    size = sum(path.stat().st_size + 4096 for path in project.rglob("*")) + _SPARE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        return _play(job, project, place, free)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a worker may still be about to end


def _play(job: Job, project: Path, place: Path, free: int) -> dict[str, Any]:
    """Run a job on a disk with so many bytes free, and once more with space."""
    folder, filler = place / "case", place / "filler"
    copy_for(job, project, folder)
    before = untouched(job, folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - free // 4096 * 4096)
    first = run(job, folder, settled())
    error, half = first.said[-600:] if first.code else "", left_over(folder)
    filler.unlink()
    again = run(job, folder, settled()) if first.code else first
    expected, found = written(job, project), written(job, folder)
    after = untouched(job, folder)
    return {
        "filled": bool(first.code),
        "error": error,
        "clear": not first.code or _is_clear(first.said),
        "left_over": half,
        "again": again.said[-600:] if again.code else "",
        "differs": sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)),
        "touched": sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)),
    }


def _is_clear(said: str) -> bool:
    """Whether what a user reads says that the disk is full, and no traceback stands above it."""
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
    for line in sys.stdin:
        asked, space = json.loads(line)
        print(json.dumps(inside(asked, space, Path(sys.argv[1]))), flush=True)
