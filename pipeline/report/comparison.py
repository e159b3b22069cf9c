"""The comparison of systems as `benchmarks.systems` wrote it, for the page: read, checked, drawn."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.files import read_json
from pipeline.report.charts import SYSTEMS, Line, line_chart
from pipeline.results import Estimate

FILE = Path("benchmarks/results/systems.json")
MADE_BY = "python -m benchmarks.systems"


class System(Estimate):
    """One system: score of the policy alone over seeds and episodes, and what it cost."""

    system: str
    seeds: list[int]
    plan: Estimate
    steps_to_80: (
        int | None
    )  # environment steps to 80 % of the best score of any system; None where a seed never gets there
    seeds_reached: int
    env_steps: int
    seconds: float
    peak_memory_mb: float
    parameters: int
    active_parameters: int
    gradient_cosine: Estimate
    negative_pairs: Estimate
    dormant_units: Estimate


class Points(BaseModel):
    """A learning curve with its interval over seeds."""

    env_steps: list[float]
    score: list[float]
    low: list[float]
    high: list[float]


class Claim(BaseModel):
    """A promised figure and what was measured."""

    value: float | None
    target: float
    holds: bool


class Comparison(BaseModel):
    """Systems trained on the same tasks, data and budget."""

    command: str
    commit: str
    machine: dict[str, Any]
    seconds: float
    whole_protocol: bool
    claims: dict[str, Claim]
    table: list[System]
    curves: dict[str, Points]
    tasks: dict[str, dict[str, Estimate]]  # by system, then by task: the policy alone

    @property
    def task_names(self) -> list[str]:
        """The tasks, in their order."""
        return list(next(iter(self.tasks.values())))

    def chart(self) -> Any:
        """Draw every system's learning curve with its interval."""
        lines = [
            Line(curve.env_steps, curve.score, colour, system, low=curve.low, high=curve.high)
            for (system, curve), colour in zip(self.curves.items(), cycle(SYSTEMS), strict=False)
        ]
        return line_chart("Score of each system against environment steps", "environment steps, all tasks", lines)


def read_comparison(root: str | Path) -> Comparison | None:
    """Read the comparison under `root`; None where there is none.

    Raises:
        ValueError: the file is there, but not of the expected form.
    """
    path = Path(root) / FILE
    if not path.exists():
        return None
    try:
        return Comparison.model_validate(read_json(path, MADE_BY))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: `{where}`: {first['msg']}. Run `{MADE_BY}` again.") from None
