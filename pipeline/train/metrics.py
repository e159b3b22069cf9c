"""Metrics on their way to DVCLive files, kept consistent with the state a resumed run goes on from, and to trackers."""

from __future__ import annotations

import csv
import importlib.util
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from dvclive.live import Live
from scmrepo.exceptions import SCMError

from pipeline.files import atomic_file, atomic_folder, write_json

TRACKERS = Path("runs")  # where TensorBoard and its like find a run while it lasts, and after
_PROJECT = "eft"


class MetricsLog:
    """Rows of metrics over updates or env_steps, as DVCLive writes them (metrics.json and one TSV per metric).

    Beside them, tables of several columns.

    Args:
        folder: where the files grow during the run, inside its scratch folder.
        position: updates or env_steps done; rows logged after it, by a run that was killed since, are dropped.
        trackers: who else is told, as `start_trackers` returns them.
    """

    def __init__(self, folder: Path, position: int = 0, trackers: Sequence[GeneralTracker] = ()):
        self.folder, self._trackers = folder, trackers
        resumed = position > 0 and folder.exists()
        if resumed:
            _go_back(folder, position)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            self._live = Live(
                dir=str(folder), resume=resumed, report=None, save_dvc_exp=False, dvcyaml=None, monitor_system=False
            )
        except SCMError as error:
            raise ValueError(f"DVCLive cannot work in this Git repository ({error}). Commit something first.") from None

    def log(self, position: int, values: Mapping[str, float]) -> None:
        """Add one row per metric at `position` updates or env_steps. Names are `group/name`.

        Raises:
            ValueError: a value is not finite.
        """
        self._live.step = position
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"the metric {name} is {value} at {position}: training has diverged")
            self._live.log_metric(name, float(value), timestamp=False)
        self._live.make_summary()
        for tracker in self._trackers:
            tracker.log({name: float(value) for name, value in values.items()}, step=position)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return what was logged of one metric so far, as (position, value)."""
        path = self.folder / "plots" / "metrics" / f"{name}.tsv"
        rows = _read(path) if path.exists() else []
        return [(int(row["step"]), float(row[name.rsplit("/", 1)[-1]])) for row in rows]

    def append(self, name: str, position: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Append rows at `position` to the table `<name>.tsv` beside the metrics; its columns are always the same."""
        path = self.folder / f"{name}.tsv"
        known = path.exists()
        with path.open("a", newline="") as file:
            for row in rows:
                if not known:
                    file.write("\t".join(["step", *row]) + "\n")
                    known = True
                file.write("\t".join([str(position), *row.values()]) + "\n")

    def table(self, name: str) -> list[dict[str, str]]:
        """Return the rows appended to a table so far, with their `step`."""
        path = self.folder / f"{name}.tsv"
        return _read(path) if path.exists() else []

    def publish(self, target: str | Path) -> None:
        """End the log and put its files where DVC expects them, whole."""
        self._live.end()
        for tracker in self._trackers:
            tracker.finish()
        with atomic_folder(target) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)


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
    started = []
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"runtime.trackers names {name}, which is not installed: `pip install {name}`, or take it off the list"
            )
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


def _go_back(folder: Path, position: int) -> None:
    """Leave the metrics as they were at `position`: a killed run may have logged more, the last line half of one."""
    summary: dict[str, Any] = {"step": position}
    root = folder / "plots" / "metrics"
    for path in [*sorted(root.rglob("*.tsv")), *sorted(folder.glob("*.tsv"))]:
        rows = _read(path)
        kept = [row for row in rows if int(row["step"]) <= position]
        if not kept:
            path.unlink()
            continue
        with atomic_file(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(kept[0]), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        if path.parent == folder:  # a table, of which there is no latest value
            continue
        level = summary
        for part in path.relative_to(root).parts[:-1]:
            level = level.setdefault(part, {})
        level[path.stem] = float(kept[-1][path.stem])
    write_json(folder / "metrics.json", summary)


def _read(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a TSV file."""
    lines = path.read_text().splitlines(keepends=True)
    rows = list(csv.DictReader((line for line in lines if line.endswith("\n")), delimiter="\t"))
    return [row for row in rows if None not in row.values()]
