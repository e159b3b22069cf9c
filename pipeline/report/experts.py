"""Which tasks used which experts: `experts.tsv` of a stage's metrics, read and drawn."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import share_chart


class ExpertUse(NamedTuple):
    """How one layer's experts were used."""

    steps: list[float]  # positions of the log lines
    tasks: list[str]
    shares: np.ndarray  # (lines, tasks, E): of a task's rows that went to an expert; NaN where it had none
    rows: np.ndarray  # (lines, tasks): a task's share of all rows

    @property
    def overall(self) -> np.ndarray:
        """(E,): each expert's share of the rows of all tasks at the last line."""
        return np.nansum(self.shares[-1] * self.rows[-1][:, None], axis=0)

    @property
    def favourites(self) -> list[tuple[str, int, float]]:
        """By task, at the last line that has it: the expert that most of its rows went to, and their share."""
        found = []
        for number, task in enumerate(self.tasks):
            last = self.shares[np.flatnonzero(self.rows[:, number])[-1], number]
            found.append((task, int(last.argmax()), float(last.max())))
        return found


def read_expert_use(folder: Path) -> dict[str, ExpertUse]:
    """Read `experts.tsv` of a metrics folder, by layer; empty where there is none.

    Raises:
        ValueError: it is not of the expected form.
    """
    path = folder / "experts.tsv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    try:
        experts = [key for key in lines[0] if key.startswith("expert_")] if lines else []
        layers = dict.fromkeys(line["layer"] for line in lines)
        return {layer: _use([line for line in lines if line["layer"] == layer], experts) for layer in layers}
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: expected columns step, layer, task, rows, expert_0 and so on, numbers but for layer and task."
        ) from None


def expert_charts(use: Mapping[str, ExpertUse], unit: str) -> dict[str, Markup]:
    """Return one chart per layer, by its name."""
    return {
        layer: share_chart(f"Experts of {layer} by task against {unit}", unit, found.steps, found.tasks, found.shares)
        for layer, found in use.items()
    }


def _use(lines: list[dict[str, str]], experts: list[str]) -> ExpertUse:
    steps = sorted({float(line["step"]) for line in lines})
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    shares = np.full((len(steps), len(tasks), len(experts)), np.nan)
    rows = np.zeros((len(steps), len(tasks)))
    for line in lines:
        where = steps.index(float(line["step"])), tasks.index(line["task"])
        shares[where] = [float(line[expert]) for expert in experts]
        rows[where] = float(line["rows"])
    return ExpertUse(steps, tasks, shares, rows)
