"""Scores of teachers against core-seconds: one chart, or all in one grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.files import read_json
from pipeline.report.charts import FINETUNED, Line, as_file, line_chart


def draw_curves(curves: Mapping[str, Path], target: Path) -> None:
    """Write one teacher's chart to a file."""
    charts = teaching_charts({name: read_json(path, "`eft teach`") for name, path in curves.items()})
    target.write_text(as_file(next(iter(charts.values()))), encoding="utf-8")


def teaching_charts(curves: Mapping[str, list[dict[str, Any]]]) -> dict[str, Markup]:
    """Return a chart per task: the score of evaluations in the real environment against core-seconds."""
    charts = {}
    for name, rows in curves.items():
        x, y = [row["seconds"] for row in rows], [row["score"] for row in rows]
        charts[name] = line_chart(name, "core-seconds", [Line(x, y, FINETUNED)])
    return charts
