"""The report: one HTML page that holds all it shows, pictures and videos included, and loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files import atomic_file
from pipeline.report.charts import FINETUNED, MUTED, PRETRAINED, Level, Line, line_chart, share_chart, timeline_chart
from pipeline.report.matrix import similarity_chart
from pipeline.report.teaching import teaching_charts
from pipeline.report.templates import environment
from pipeline.results import Adaptation, Curve, ExpertUse, Results, read_results

__all__ = ["render", "write_report"]

MODELS = {"pretrain": "pretrained", "finetune": "finetuned"}
MODES = {"policy": "policy alone", "plan": "with planning"}
ASKED = {
    "q_over_return": "Q over return",
    "advantage_q": "advantages, by Q",
    "advantage_model": "by the model",
    "value_share": "value's share",
    "plan_distance": "distance",
    "policy_score": "policy's score",
    "plan_score": "plans' score",
    "policy_return": "policy's return",
    "plan_return": "plans' return",
}  # figures of a checkpoint that was asked, and what the page calls them


def write_report(root: str | Path, target: str | Path) -> Results:
    """Read what the stages wrote under `root` and write the page to `target`, atomically.

    Returns:
        What was read; its `missing` says which stages have not run. The page says so too.

    Raises:
        ValueError: params.yaml or a metrics file is not of the expected form; it is named.
    """
    results = read_results(root)
    with atomic_file(target) as partial:
        partial.write_text(render(results), encoding="utf-8")
    return results


def render(results: Results) -> str:
    """Return the page as HTML; every text from outside is escaped."""
    templates = environment()
    templates.filters |= {
        "number": _number,
        "duration": _duration,
        "memory": _memory,
        "video": _data_uri,
        "png": _png_uri,
    }
    return templates.get_template("page.html.jinja").render(
        results=results,
        models=MODELS,
        modes=MODES,
        bars=_bars,
        texts={video.task: video.instruction for video, _ in results.videos},
        confidence=results.confidence,
        pretrain_charts=_training_charts(results.curves["pretrain"], "updates", PRETRAINED),
        finetune_charts=_training_charts(results.curves["finetune"], "environment steps", FINETUNED),
        teaching_charts=teaching_charts(results.teaching_curves),
        growth_chart=_growth_chart(results.curves["finetune"]),
        adaptation_charts={task: _adaptation_charts(adapted) for task, adapted in results.adapted.items()},
        expert_charts={
            stage: _expert_charts(results.experts[stage], unit)
            for stage, unit in (("finetune", "environment steps"), ("pretrain", "updates"))
            if results.experts[stage]
        },
        open_loop_chart=_open_loop_chart(results),
        asked_figures=ASKED,
        cluster_chart=similarity_chart("Similarity of the tasks' gradients", results.clusters)
        if results.clusters
        else None,
        picture_chart=similarity_chart("Similarity of the gradients by the tasks' pictures", results.picture_clusters)
        if results.picture_clusters
        else None,
        stages=_stages(results),
    )


def _bars(models: Mapping[str, Any], task: str | None = None) -> list[tuple[str, str, Any]]:
    """Return (checkpoint, mode, estimate) of one task, or of the mean over tasks, in the order they are drawn."""
    return [
        (model, mode, estimates if task is None else estimates[task])
        for model in MODELS
        for mode in MODES
        if (estimates := models.get(model, {}).get(mode)) and (task is None or task in estimates)
    ]


def _training_charts(curves: Mapping[str, Curve], unit: str, colour: str) -> dict[str, dict[str, Any]]:
    """Return charts by caption, in three groups: `scores` (means), `tasks` (one per task) and `losses`."""
    mean = curves.get("eval/score")
    tasks = {name.removeprefix("eval/"): curve for name, curve in curves.items() if name.startswith("eval/")}
    tasks.pop("score", None)
    charts: dict[str, dict[str, Any]] = {"scores": {}, "tasks": {}, "losses": {}}
    clock = curves.get("time/seconds")
    if mean:
        caption = f"Score against {unit}"
        lines = [*(Line(curve.steps, curve.values, MUTED, faint=True) for curve in tasks.values())]
        lines.append(Line(mean.steps, mean.values, colour, "mean over tasks"))
        charts["scores"][caption] = line_chart(caption, unit, lines)
    if mean and clock:
        minutes = np.asarray(clock.values) / 60
        lines = [replace(line, x=np.interp(line.x, clock.steps, minutes)) for line in lines]
        charts["scores"]["Score against time"] = line_chart("Score against time", "minutes", lines)
    for task, curve in tasks.items():
        played = curves.get(f"online/{task}", Curve([], []))
        lines = [Line(played.steps, played.values, MUTED, faint=True), Line(curve.steps, curve.values, colour)]
        charts["tasks"][task] = line_chart(task, unit, lines, small=True)
    if scales := [curve for name, curve in curves.items() if name.startswith("harmony/")]:
        caption = "scale of each task's loss"
        lines = [Line(curve.steps, curve.values, colour, faint=True) for curve in scales]
        charts["losses"][caption] = line_chart(caption, unit, lines, scores=False, small=True)
    for name, curve in curves.items():
        if name.startswith("train/"):
            label = name.removeprefix("train/")
            line = Line(curve.steps, curve.values, colour)
            charts["losses"][label] = line_chart(label, unit, [line], scores=False, small=True)
    return charts


def _growth_chart(curves: Mapping[str, Curve]) -> Any:
    """Return the chart of when tasks were solved and stages began, None where the model did not grow."""
    stage = curves.get("scaling/stage")
    if stage is None:
        return None
    solved = {name.removeprefix("solved/"): curve for name, curve in curves.items() if name.startswith("solved/")}
    end = max([*stage.steps, *(step for curve in solved.values() for step in curve.steps)])
    begun = [
        (step, f"stage {value:g}")
        for step, value, before in zip(stage.steps, stage.values, [0.0, *stage.values], strict=False)
        if value > before
    ]
    rows = {task: _spans(curve, end) for task, curve in solved.items()}
    return timeline_chart("When tasks were solved, and stages began", "environment steps", rows, end, begun)


def _spans(curve: Curve, end: float) -> list[tuple[float, float]]:
    """Return first and last step of each time that a curve of 0 and 1 was 1."""
    spans: list[tuple[float, float]] = []
    since = None
    for step, value in zip(curve.steps, curve.values, strict=True):
        if value and since is None:
            since = step
        elif not value and since is not None:
            spans.append((since, step))
            since = None
    return spans if since is None else [*spans, (since, end)]


def _expert_charts(use: Mapping[str, ExpertUse], unit: str) -> dict[str, Any]:
    return {
        layer: share_chart(f"Experts of {layer} by task against {unit}", unit, found.steps, found.tasks, found.shares)
        for layer, found in use.items()
    }


def _open_loop_chart(results: Results) -> Any:
    """Return the chart of scores against steps executed without feedback, None where that was not evaluated."""
    if results.scores is None or not results.scores.open_loop:
        return None
    found = results.scores.open_loop
    x = [entry.steps for entry in found]
    lines = [Line(x, [entry.tasks[task].score for entry in found], MUTED, faint=True) for task in found[0].tasks]
    lines.append(Line(x, [entry.mean.score for entry in found], FINETUNED, "mean over tasks"))
    return line_chart("Score against steps without feedback", "steps executed of each plan", lines)


def _adaptation_charts(adapted: Adaptation) -> list[Any]:
    zero_shot, after = adapted.zero_shot, adapted.adapted
    levels = [
        Level(zero_shot.score, zero_shot.low, zero_shot.high, PRETRAINED, "zero-shot"),
        Level(after.score, after.low, after.high, FINETUNED, "adapted"),
    ]
    scores = [point.score for point in adapted.curve]
    axes = {
        "environment steps": [point.env_steps for point in adapted.curve],
        "seconds": [point.seconds for point in adapted.curve],
    }
    return [
        line_chart(f"{adapted.task}: score against {label}", label, [Line(x, scores, FINETUNED)], levels)
        for label, x in axes.items()
    ]


def _stages(results: Results) -> list[dict[str, Any]]:
    """Return one row per stage that ran: name, seconds, peak memory in MiB (None where not measured), commit."""
    rows: list[dict[str, Any]] = []
    if results.teachers and results.teachers.tasks:
        # That of the teachers, not of the stage's last run, which leaves alone those that are there.
        seconds = sum(taught.seconds for taught in results.teachers.tasks.values())
        rows.append({"name": "teach, on one core", "seconds": seconds})
    if results.demos:
        rows.append({"name": "demos", "seconds": results.demos.seconds})
    for name in ("pretrain", "finetune", "evaluate"):
        if name in results.runs:
            rows.append({"name": name} | results.runs[name].model_dump())
    rows += [{"name": f"adapt {task}"} | adapted.model_dump() for task, adapted in results.adapted.items()]
    if "publish" in results.runs:
        rows.append({"name": "publish"} | results.runs["publish"].model_dump())
    return [{"peak_memory_mb": None, "commit": None, "versions": {}, "machine": {}} | row for row in rows]


def _number(value: float) -> str:
    """1234567 -> `1,234,567`."""
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """Seconds in the unit a reader would choose, unbreakable: `42 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        text = f"{hours} h {minutes % 60:02d} min"
    else:
        text = f"{minutes} min {seconds % 60:02d} s" if minutes else f"{seconds} s"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _memory(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def _png_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _data_uri(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
