"""Metrics on their way to DVCLive files, kept consistent with the state a resumed run goes on from."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from dvclive.live import Live
from scmrepo.exceptions import SCMError

from pipeline.files import atomic_file, atomic_folder


class MetricsLog:
    """Rows of metrics over updates or env_steps, as DVCLive writes them (metrics.json and one TSV per metric).

    Args:
        folder: where the files grow during the run, inside its scratch folder.
        position: updates or env_steps done; rows logged after it, by a run that was killed since, are dropped.
    """

    def __init__(self, folder: Path, position: int = 0):
        self.folder = folder
        for path in folder.glob("plots/metrics/**/*.tsv"):
            _drop_rows_after(path, position)
        resumed = position > 0 and (folder / "metrics.json").exists()
        if not resumed:
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

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return what was logged of one metric so far, as (position, value)."""
        path = self.folder / "plots" / "metrics" / f"{name}.tsv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            return [(int(row["step"]), float(row[name.rsplit("/", 1)[-1]])) for row in rows]

    def publish(self, target: str | Path) -> None:
        """End the log and put its files where DVC expects them, whole."""
        self._live.end()
        with atomic_folder(target) as partial:
            shutil.copytree(self.folder, partial, dirs_exist_ok=True)


def _drop_rows_after(path: Path, position: int) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    kept = [row for row in rows if int(row["step"]) <= position]
    if len(kept) == len(rows):
        return
    if not kept:
        path.unlink()
        return
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(kept)
