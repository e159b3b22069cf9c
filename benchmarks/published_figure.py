"""The figure of learning from nothing: our curves beside the published ones, task by task."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pipeline.report.charts import FINETUNED, MUTED, STYLE, as_file, inline

_TITLE = "Score against agent steps of single tasks learned from nothing, beside what TD-MPC2 published"


def draw(published: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], env_steps: int) -> str:
    """Return an SVG file: a panel per task, with a thin line per seed and a thick one of their mean.

    Args:
        published: scores by task, seed and agent steps.
        runs: of ours: `task`, and `curve`, the score by agent steps.
        env_steps: how far the panels go.
    """
    with mpl.rc_context({**STYLE, "font.size": 9.5}):
        figure = Figure(figsize=(2.5 * len(published) + 0.6, 3.0), layout="constrained")
        grid = figure.subplots(1, len(published), sharey=True, squeeze=False)[0]
        for axes, (task, seeds) in zip(grid, published.items(), strict=True):
            axes.set_title(task, fontsize=10.5, loc="left")
            curves = {"published": (MUTED, list(seeds.values()))}
            curves["ours"] = FINETUNED, [run["curve"] for run in runs if run["task"] == task]
            for label, (colour, own) in curves.items():
                _draw(axes, [_points(curve, env_steps) for curve in own], colour, label)
            axes.set_xlim(-0.02 * env_steps, 1.02 * env_steps)
            axes.set_xticks([0, env_steps / 2, env_steps], ["0", f"{env_steps / 2000:g}k", f"{env_steps / 1000:g}k"])
            axes.set_xlabel("agent steps")
        grid[0].set_ylim(-0.03, 1.03)
        grid[0].set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        grid[0].set_ylabel("score, by plans")
        known = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(known))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return as_file(inline(buffer.getvalue(), _TITLE))


def _points(curve: Mapping[str, float], env_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return agent steps and scores (n,) of a curve, in order and up to `env_steps`."""
    points = sorted((int(steps), score) for steps, score in curve.items() if int(steps) <= env_steps)
    steps, scores = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, scores


def _draw(axes: Any, curves: Sequence[tuple[np.ndarray, np.ndarray]], colour: str, label: str) -> None:
    """Draw each curve thinly, and their mean as far as all of them go."""
    if not curves:
        return
    for steps, scores in curves:
        axes.plot(steps, scores, color=colour, alpha=0.45, linewidth=1.1)
    every = sorted({step for steps, _ in curves for step in steps.tolist()})
    common = np.array([step for step in every if step <= min(steps[-1] for steps, _ in curves)])
    mean = np.mean([np.interp(common, steps, scores) for steps, scores in curves], axis=0)
    axes.plot(common, mean, color=colour, linewidth=2.2, label=label, marker="o", markersize=3.5)
