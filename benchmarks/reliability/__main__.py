"""How reliable the project is, as figures.

    python -m benchmarks.reliability                              every part, some hours
    python -m benchmarks.reliability --parts fuzz disk --minutes 20

The parts: `kill` (SIGKILL at random moments of every stage, `eft adapt`, `push` and `import`), `disk` (a disk that
fills at a random byte), `fuzz` (damaged files of every kind that is read), `act` (`Agent.act` for long, with new
sentences and tasks), `load` (processes that load one checkpoint at once). What is done is kept in `--work`, case by
case: the same command goes on there. Writes results/reliability.json, what is measured so far; a part that is not
finished does not hold.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability import act, disk, fuzz, kill, load
from benchmarks.results import add

Rows = list[dict[str, Any]]
PARTS: dict[str, Any] = {"kill": kill, "disk": disk, "fuzz": fuzz, "act": act, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these (default: at the end)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".resume/reliability"), metavar="FOLDER")
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=part.COUNT, metavar="N", help=part.COUNTS)
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.parts:
        count = getattr(options, name)
        rows, seconds = go_on(name, count, options.seed, options.work.resolve(), deadline)
        command = f"python -m benchmarks.reliability --parts {name} --{name} {count} --seed {options.seed}"
        claims, more = PARTS[name].judge(rows, count)
        add("reliability", name, command, seconds, claims, seed=options.seed, **more)


def go_on(name: str, count: int, seed: int, work: Path, deadline: float) -> tuple[Rows, float]:
    """Do the cases of a part that are not done yet, until the deadline; return all rows, and the seconds they took."""
    work = work / f"{name}-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "cases.jsonl"
    rows = read_log(log)
    cases: Iterator[dict[str, Any]] = PARTS[name].run_cases(count, seed, rows, work)
    while time.monotonic() < deadline:
        started = time.monotonic()
        row = next(cases, None)
        if row is None:
            break
        row["took"] = round(time.monotonic() - started, 2)
        rows.append(row)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name} {row['number'] + 1}: {PARTS[name].describe(row)}", flush=True)
    return rows, sum(row["took"] for row in rows)


def read_log(path: Path) -> Rows:
    """Return the cases that were done; half a line, of a killed run, is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


if __name__ == "__main__":
    main()
