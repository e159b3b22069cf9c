"""The figure of the few-shot protocol: score against demonstrations, and against environment steps, task by task."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.report.charts import STYLE, SYSTEMS, as_file, inline

_TITLE = "Score against the number of demonstrations, and against environment steps, per task"
_SHOWN = 5  # demonstrations of the curves
_LABELS = {"adapter": "adapter", "all": "all weights", "scratch": "from scratch", "cloning": "cloning from scratch"}
_COLOURS = dict(zip(_LABELS, SYSTEMS[1:], strict=True))


def draw(rows: Sequence[Mapping[str, Any]], first: Sequence[str], env_steps: int) -> str:
    """Return an SVG file: a column per task, a line per way.

    Args:
        rows: of `few_shot.summarise`: the score of a task, way and number of demonstrations, with its curves.
        first: tasks in the order of their columns; what else was learned comes after them.
        env_steps: how far the curves go.
    """
    learned = [row["task"] for row in rows]
    tasks = list(dict.fromkeys([*(task for task in first if task in learned), *learned]))
    demos = sorted({row["demos"] for row in rows})
    with mpl.rc_context({**STYLE, "font.size": 9.5}):
        figure = Figure(figsize=(2.5 * len(tasks) + 0.6, 5.2), layout="constrained")
        grid = figure.subplots(2, len(tasks), sharey=True, squeeze=False)
        for (above, below), task in zip(grid.T, tasks, strict=True):
            above.set_title(task, fontsize=10.5, loc="left")
            for way, colour in _COLOURS.items():
                own = {row["demos"]: row for row in rows if (row["task"], row["way"]) == (task, way)}
                known = [number for number in demos if number in own]
                if known:
                    at = [demos.index(number) for number in known]
                    low, score, high = ([own[number][name] for number in known] for name in ("low", "score", "high"))
                    above.vlines(at, low, high, color=colour, alpha=0.35, linewidth=3)
                    above.plot(at, score, color=colour, linewidth=2, marker="o", markersize=4.5, label=_LABELS[way])
                if _SHOWN in own:
                    steps = np.linspace(0, env_steps, 101)
                    curves = np.array([level(curve, steps) for curve in own[_SHOWN]["curves"]])
                    below.plot(steps, curves.mean(axis=0), color=colour, linewidth=2)
            above.set_xticks(range(len(demos)), [str(number) for number in demos])
            above.set_xlim(-0.25, len(demos) - 0.75)
            below.set_xticks([0, env_steps / 2, env_steps], ["0", f"{env_steps / 2000:g}k", f"{env_steps / 1000:g}k"])
            above.set_xlabel("demonstrations")
            below.set_xlabel("environment steps")
        grid[0, 0].set_ylim(-0.03, 1.03)
        grid[0, 0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        grid[0, 0].set_ylabel("score at the end")
        grid[1, 0].set_ylabel(f"score on the way, {_SHOWN} demonstrations")
        known = {label: line for axes in grid[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(known))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return as_file(inline(buffer.getvalue(), _TITLE))


def level(points: Sequence[tuple[float, float]], steps: np.ndarray) -> np.ndarray:
    """Return the scores (S,) at environment steps (S,): linear between evaluations and level after the last one.

    Args:
        points: environment steps and score of each evaluation; of several at one step the last counts. Without one
            before the first step it is 0 there.
        steps: ascending.
    """
    scores = dict([(0, 0.0), *points])
    return np.interp(steps, list(scores), list(scores.values()))
