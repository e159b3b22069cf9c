"""Scores of teachers against core-seconds: one chart, or all in one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from pipeline.files import atomic_file
from pipeline.report.charts import FINETUNED, Line, as_file, line_chart
from pipeline.results import TaughtPoint, read_teaching_curve


def draw_curve(task: str, curve: Path, target: Path) -> None:
    """Write the chart of one teacher, whose curve.json is `curve`, to a file; none where the curve is gone."""
    points = read_teaching_curve(curve)
    if points:
        with atomic_file(target) as partial:
            partial.write_text(as_file(teaching_chart(task, points)), encoding="utf-8")


def teaching_charts(curves: Mapping[str, Sequence[TaughtPoint]]) -> dict[str, Markup]:
    """Return a small chart per task."""
    return {task: teaching_chart(task, points, small=True) for task, points in curves.items()}


def teaching_chart(task: str, points: Sequence[TaughtPoint], small: bool = False) -> Markup:
    """Return the chart of a teacher: the score of evaluations in the real environment against core-seconds."""
    x, y = [point.seconds for point in points], [point.score for point in points]
    return line_chart(f"Teacher of {task}", "core-seconds", [Line(x, y, FINETUNED)], small=small)
