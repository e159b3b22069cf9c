"""The page of `eft check-data`: what demonstrations hold, task by task, in one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.data.episode import mean_known
from pipeline.examine import AT_BOUND, CLAMP, Examined
from pipeline.files import atomic_file
from pipeline.report.charts import FINETUNED, MUTED, PRETRAINED, Level, Line, line_chart
from pipeline.report.templates import environment

_MOST_LINES = 20  # episodes drawn one by one


def write_page(found: Sequence[Examined], problems: Sequence[str], source: str, target: str | Path) -> None:
    """Write the page, atomically.

    Args:
        found: by task.
        problems: files that could not be read, and why.
        source: the folder that was examined.
        target: the file.
    """
    page = environment().get_template("data.html.jinja")
    sections = [
        {
            "data": one,
            "score": mean_known(episode.score for episode in one.episodes),
            "total": mean_known(episode.episode_return for episode in one.episodes),
            "charts": _charts(one),
            "dims": list(_dims(one)),
            "action_dims": _action_dims(one),
        }
        for one in found
    ]
    with atomic_file(target) as partial:
        partial.write_text(page.render(sections=sections, problems=problems, source=source), encoding="utf-8")


def _charts(data: Examined) -> dict[str, Markup]:
    """Return charts by caption."""
    numbers = list(range(len(data.episodes)))
    rewarded = [number for number, episode in enumerate(data.episodes) if episode.rewarded]
    returns = [data.episodes[number].episode_return for number in rewarded]
    scaled = data.reference.scale(np.concatenate([episode.obs for episode in data.episodes]))
    action = np.concatenate([episode.action for episode in data.episodes])
    across = f"Observations in standard deviations from {data.reference.origin}: mean, 1st to 99th percentile"
    far = bool((np.abs(scaled) > CLAMP / 2).any())
    cut = [Level(0.0, -CLAMP, CLAMP, MUTED, "what learning sees")] if far else []
    rewards = [
        Line(list(range(len(episode.reward))), episode.reward.tolist(), MUTED, faint=True)
        for episode in (data.episodes[number] for number in rewarded[:_MOST_LINES])
    ]
    charts = {
        "Steps of each episode": ("episode", [Line(numbers, data.lengths.tolist(), PRETRAINED)], ()),
        "Return of each episode": ("episode", [Line(rewarded, returns, FINETUNED)] if rewarded else [], ()),
        across: ("observation dim", [_band(scaled, PRETRAINED)], cut),
        "Actions: mean, 1st to 99th percentile": ("action dim", [_band(action, FINETUNED)], ()),
        f"Reward of each step, {len(rewards)} episodes": ("step", rewards, ()),
    }
    return {
        caption: line_chart(f"{data.task}: {caption}", unit, lines, levels, scores=False)
        for caption, (unit, lines, levels) in charts.items()
        if lines
    }


def _band(values: np.ndarray, colour: str) -> Line:
    """Return the mean of each column of (n, d), with a band around it."""
    low, high = np.percentile(values, [1, 99], axis=0)
    dims = list(range(values.shape[1]))
    return Line(dims, values.mean(0).tolist(), colour, low=low.tolist(), high=high.tolist())


def _action_dims(data: Examined) -> list[list[float]]:
    """Return smallest, largest, mean and std of each action dim, and the share of actions at their bounds."""
    action = np.concatenate([episode.action for episode in data.episodes])
    at_bound = (np.abs(action) >= AT_BOUND).mean(0)
    return np.stack([action.min(0), action.max(0), action.mean(0), action.std(0), at_bound], 1).tolist()


def _dims(data: Examined) -> list[dict[str, Any]]:
    """Return one row per observation dim."""
    obs = np.concatenate([episode.obs for episode in data.episodes])
    beyond = (np.abs(data.reference.scale(obs)) > CLAMP).mean(0)
    columns = obs.min(0), obs.max(0), obs.mean(0), obs.std(0), data.reference.mean, data.reference.std, beyond
    names = "low", "high", "mean", "std", "known_mean", "known_std", "beyond"
    return [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]
