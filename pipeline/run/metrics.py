"""The metrics of a run: one file of JSON lines that a resumed run continues exactly, trackers, time and memory."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.extras import needs
from pipeline.files import atomic_folder

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = Path("runs")  # where TensorBoard and its like find a run while it lasts, and after
FILE = "metrics.jsonl"
# For `dvc plots`, which reads no JSON lines: one small table per curve. DVC's charts draw a row that lacks a value as
# 0 or as a gap, so curves that are logged at different steps cannot share a table.
PLOTS = {"scores.csv": "eval/score", "losses.csv": "train/total_loss"}
_PROJECT = "eft"
_EXACT = "eval/"  # scores decide what happens next, all else is only looked at and is written with 6 digits
# Bytes that the names of one group (`train/`, `online/`) may take in the published file, before rows are left out.
# A run of 200 tasks then stays below 5 MB however long it lasts; evaluations are rare, and almost always all kept.
_GROUP_BYTES, _EVALUATION_BYTES = 400_000, 1_000_000

Table = Mapping[str, Sequence[float]]


class MetricsLog:
    """The rows that a run logs, as one JSON object per line: `{"step": 800, "train/total_loss": 2.31, ...}`.

    A row has only what is logged at its step. While the run lasts, the file has every row, so that a killed run goes
    on by cutting off what it logged after its last save. `publish` thins it.

    Args:
        folder: where the file grows during the run, inside its run folder.
        position: updates or env_steps done; rows logged after it, by a run that was killed since, are dropped.
        trackers: who else gets the rows, as `start_trackers` returns them.
    """

    def __init__(self, folder: Path, position: int = 0, trackers: Sequence[GeneralTracker] = ()):
        self.folder, self._trackers, self._path = folder, trackers, folder / FILE
        if position == 0:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        _cut_after(self._path, position)

    def write(self, step: int, values: Mapping[str, float], tables: Mapping[str, Table] | None = None) -> None:
        """Append one row.

        Args:
            step: updates or env_steps, never less than that of the row before.
            values: by name, which is `group/name`.
            tables: numbers by row name, e.g. of each task; they go to the file and not to the trackers.

        Raises:
            ValueError: a value is not finite.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value} at {step}: training has diverged")
        row: dict[str, Any] = {"step": step}
        row |= {name: float(value) if name.startswith(_EXACT) else _short(value) for name, value in values.items()}
        for name, table in (tables or {}).items():
            row[name] = {key: [_short(value) for value in numbers] for key, numbers in table.items()}
        with self._path.open("ab") as file:
            file.write(_line(row))
        for tracker in self._trackers:
            tracker.log({name: float(value) for name, value in values.items()}, step=step)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the rows written so far, oldest first."""
        return read_rows(self._path)

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Return what was written of one metric so far, as (step, value)."""
        return [(row["step"], float(row[name])) for row in self.rows() if name in row]

    def publish(self, target: str | Path) -> None:
        """End the log: put it, thinned, and all else in its folder where DVC expects it, whole."""
        for tracker in self._trackers:
            tracker.finish()
        with atomic_folder(target) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(FILE))
            with (partial / FILE).open("wb") as file:
                file.writelines(map(_line, _thinned(self._path)))
            for table, name in PLOTS.items():
                _write_plot(partial / table, name, partial / FILE)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole rows of a metrics file; the last line of a killed run may be half of one, and is left out.

    Raises:
        ValueError: a line is not a JSON object with an integer `step`; file and line are named.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError(f"{path}, line {number}: expected a JSON object with an integer `step`.")
            yield row


def start_trackers(names: Sequence[str], run: str, position: int, params: Mapping[str, Any]) -> list[GeneralTracker]:
    """Start the trackers named in runtime.trackers, through Accelerate.

    Args:
        names: e.g. `tensorboard`, `wandb`, `trackio`.
        run: name of the run: its stage and fingerprint, so that a resumed run goes on in the same place.
        position: updates or env_steps done; what TensorBoard shows after it is withdrawn.
        params: shown beside the run.

    Raises:
        ValueError: a tracker's package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"runtime.trackers names {name}, which is not installed: `pip install {name}`, or take it off the list"
            )
    if not names:
        return []
    with needs("pipeline"):
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # slow to import, and reading a log must not wait for it

    started = []
    for name in names:
        options: dict[str, Any] = {}
        if name == "tensorboard":
            if position == 0:
                shutil.rmtree(TRACKERS / run, ignore_errors=True)
            options = {"logging_dir": TRACKERS, "purge_step": position + 1}
            tracker = LOGGER_TYPE_TO_CLASS[name](run, **options)
        elif name == "wandb":
            options = {"id": run, "name": run, "resume": "allow", "dir": str(TRACKERS)}
            TRACKERS.mkdir(exist_ok=True)
            tracker = LOGGER_TYPE_TO_CLASS[name](_PROJECT, **options)
        else:
            tracker = LOGGER_TYPE_TO_CLASS[name](_PROJECT, name=run, resume="allow")
        tracker.start()
        if name != "tensorboard":  # which would show them as a run of its own with every start
            tracker.store_init_configuration(dict(params))
        started.append(tracker)
    return started


class Clock:
    """Seconds spent in each phase of a loop since they were last read."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time within this context towards `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the last reading, and those spent in each phase; and begin anew."""
        now = time.monotonic()
        total, self._started = now - self._started, now
        phases, self._seconds = dict(self._seconds), defaultdict(float)
        return total, phases


def memory_mb() -> float:
    """Return the memory of this process and its children in MiB, pages they share counted once."""
    total = 0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _short(value: float) -> float:
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")


def _cut_after(path: Path, position: int) -> None:
    """Leave the rows up to a position: a killed run may have written more, the last line half of one."""
    kept = sum(row["step"] <= position for row in read_rows(path))  # the first ones: steps never go down
    with path.open("rb+") as file:
        file.truncate(sum(len(file.readline()) for _ in range(kept)))


def _thinned(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a finished log, of each group every n-th and the last, so that it keeps to its bytes.

    n is 1 unless the run was long. It follows from the rows alone, and so does not depend on where a run was killed.
    """
    sizes: dict[str, list[int]] = defaultdict(list)
    for row in read_rows(path):
        for group in _groups(row):
            part = {name: value for name, value in row.items() if _group(name) == group}
            sizes[group].append(len(_line(part)))
    every = {group: _every(of_rows, group) for group, of_rows in sizes.items()}
    seen: Counter[str] = Counter()
    for row in read_rows(path):
        kept = {"step"}
        for group in _groups(row):
            if seen[group] % every[group] == 0 or seen[group] == len(sizes[group]) - 1:
                kept.add(group)
            seen[group] += 1
        if len(kept) > 1:
            yield {name: value for name, value in row.items() if _group(name) in kept}


def _every(sizes: Sequence[int], group: str) -> int:
    limit, every = _EVALUATION_BYTES if group == "eval" else _GROUP_BYTES, 1
    while every < len(sizes) and sum(sizes[::every]) + sizes[-1] > limit:
        every += 1
    return every


def _group(name: str) -> str:
    return name.split("/", 1)[0]


def _groups(row: Mapping[str, Any]) -> list[str]:
    return [group for group in dict.fromkeys(map(_group, row)) if group != "step"]


def _write_plot(path: Path, name: str, log: Path) -> None:
    """Write one metric as a table of two columns, unless it was never logged: DVC fails on a table without rows."""
    rows = [(row["step"], row[name]) for row in read_rows(log) if name in row]
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("step", name), *rows])
