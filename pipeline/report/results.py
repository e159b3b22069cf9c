"""What the stages left behind, read and checked: the forms of the metrics files, as the report needs them."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline import config
from pipeline.files import read_json
from pipeline.report.experts import ExpertUse, read_expert_use


class Estimate(BaseModel):
    """A score in [0, 1] with its interval."""

    score: float
    low: float
    high: float
    scores: list[float] = []  # per episode; empty for a mean over tasks


class Summary(BaseModel):
    """What a stage says of its own run (summary.json)."""

    stage: str
    seconds: float
    peak_memory_mb: float
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]


class Pair(BaseModel):
    """Two tasks that only the instruction tells apart: [told][scored as]."""

    tasks: tuple[str, str]
    mode: str  # "policy" or "plan"
    scores: tuple[tuple[float, float], tuple[float, float]]
    low: tuple[tuple[float, float], tuple[float, float]]
    high: tuple[tuple[float, float], tuple[float, float]]

    def row(self, told: int) -> list[Estimate]:
        """Return the estimates under one instruction: scored as the first task, and as the second."""
        cells = zip(self.scores[told], self.low[told], self.high[told], strict=True)
        return [Estimate(score=score, low=low, high=high) for score, low, high in cells]

    @property
    def verdict(self) -> str:
        """`clear`, `weak` (intervals overlap) or `no`: does each task score best under its own instruction?"""
        columns = [(0, 1), (1, 0)]  # (told its own task, told the other) for each task scored
        if all(self.low[own][own] > self.high[other][own] for own, other in columns):
            return "clear"
        return "weak" if all(self.scores[own][own] > self.scores[other][own] for own, other in columns) else "no"


class OpenLoop(BaseModel):
    """Scores of plans of which so many steps are executed without feedback."""

    steps: int
    tasks: dict[str, Estimate]
    mean: Estimate


class Scores(BaseModel):
    """The evaluation (scores.json): by checkpoint ("pretrain", "finetune"), mode ("policy", "plan") and task."""

    models: dict[str, dict[str, dict[str, Estimate]]]
    mean: dict[str, dict[str, Estimate]]
    pairs: list[Pair]
    open_loop: list[OpenLoop] = []
    weights: dict[str, str] = {}  # SHA-256 of each checkpoint's model.safetensors

    @property
    def tasks(self) -> list[str]:
        """The evaluated tasks, in the order of evaluation."""
        return list(dict.fromkeys(task for modes in self.models.values() for tasks in modes.values() for task in tasks))


class Point(BaseModel):
    """One evaluation during an adaptation."""

    env_steps: int
    updates: int
    seconds: float
    score: float


class Adaptation(Summary):
    """How one held-out task was adapted to (its summary.json)."""

    task: str
    zero_shot: Estimate
    adapted: Estimate
    curve: list[Point]
    adapter_parameters: int
    base_parameters: int
    demos: int

    @property
    def verdict(self) -> str:
        """`clear`, `weak` (intervals overlap) or `no`: is the adapted score above the zero-shot one?"""
        if self.adapted.low > self.zero_shot.high:
            return "clear"
        return "weak" if self.adapted.score > self.zero_shot.score else "no"


class TaskDemos(BaseModel):
    """The demonstrations of one task."""

    kept: int
    attempts: int
    score: float
    seconds: float
    method: str


class Demos(BaseModel):
    """The collection of demonstrations (datasets/demos.json)."""

    tasks: dict[str, TaskDemos]
    missing: dict[str, str] = {}  # tasks without demonstrations, or with fewer than wanted, and why
    seconds: float


class Video(BaseModel):
    """One filmed episode."""

    task: str
    instruction: str
    score: float
    file: str


class Clusters(BaseModel):
    """The clusters of tasks found by their gradients (clusters.json), by `pretrain` or by `embed` on pictures."""

    tasks: list[str]
    cluster: list[int]  # of each task
    order: list[int]  # rows, neighbours being similar and clusters in one piece
    similarity: list[list[float]]  # mean over layers of the cosines of the tasks' gradients
    silhouette: dict[int, float]  # mean, by number of clusters

    @property
    def members(self) -> list[list[str]]:
        """The tasks of each cluster, as ordered."""
        numbers = list(dict.fromkeys(self.cluster[row] for row in self.order))
        return [[self.tasks[row] for row in self.order if self.cluster[row] == number] for number in numbers]


class Reconstructions(BaseModel):
    """What the autoencoder of pictures has learned (training.json)."""

    shown: list[str]  # tasks in the picture, from left to right
    error: dict[str, float]  # mean absolute error of a pixel in [0, 1], by task


class Curve(NamedTuple):
    """One metric over updates or env_steps."""

    steps: list[float]
    values: list[float]


@dataclass(frozen=True)
class Results:
    """Everything the page shows; None or empty where a stage has not run."""

    tasks: config.Tasks
    confidence: float  # of the intervals
    params: str  # params.yaml as it stands
    demos: Demos | None
    runs: dict[str, Summary]  # pretrain, finetune, evaluate, publish: those that ran
    curves: dict[str, dict[str, Curve]]  # by stage, then by metric name, e.g. "eval/score"
    scores: Scores | None
    videos: list[tuple[Video, Path]]
    adapted: dict[str, Adaptation]
    adapted_videos: dict[str, Path]
    experts: dict[str, dict[str, ExpertUse]]  # by stage, then by layer; empty for a model without
    clusters: Clusters | None = None  # where the model has any
    reconstructions: tuple[Reconstructions, Path] | None = None  # with the picture, where pictures are learned
    picture_clusters: Clusters | None = None  # where each has an autoencoder of its own
    missing: dict[str, Path] = field(default_factory=dict)  # stage -> the file that is not there


Form = TypeVar("Form")


def read_results(root: str | Path = ".") -> Results:
    """Read what the stages wrote under `root`; a stage that has not run is named in `missing`.

    Raises:
        ValueError: params.yaml is wrong, or a file is there but not of the expected form; it is named.
    """
    root = Path(root)
    checkpoints = root / "checkpoints"
    missing: dict[str, Path] = {}

    def read(form: type[Form] | Any, path: Path, stage: str) -> Any:
        if path.exists():
            return _parse(form, path, stage)
        missing[stage] = path.relative_to(root)
        return None

    tasks = config.load(config.Tasks, root / "params.yaml")
    demos = read(Demos, root / "datasets/demos.json", "demos")
    stages = ("pretrain", "finetune", "evaluate", "publish")
    runs = {stage: read(Summary, checkpoints / stage / "metrics/summary.json", stage) for stage in stages}
    scores = read(Scores, checkpoints / "evaluate/metrics/scores.json", "evaluate")
    adapted = {
        task: read(Adaptation, checkpoints / "adapt" / task / "metrics/summary.json", f"adapt@{task}")
        for task in tasks.held_out
    }
    found = checkpoints / "pretrain/metrics/clusters.json"
    learned = root / "datasets/picture_vectors/autoencoder/training.json"
    apart = learned.with_name("clusters.json")
    index = checkpoints / "evaluate/videos/index.json"
    videos = _parse(list[Video], index, "evaluate") if index.exists() else []
    return Results(
        tasks=tasks,
        confidence=config.load(config.Evaluate, root / "params.yaml").confidence,
        params=(root / "params.yaml").read_text(encoding="utf-8"),
        demos=demos,
        runs={stage: run for stage, run in runs.items() if run},
        curves={stage: read_curves(checkpoints / stage / "metrics") for stage in ("pretrain", "finetune")},
        scores=scores,
        videos=[(video, index.parent / video.file) for video in videos],
        adapted={task: adaptation for task, adaptation in adapted.items() if adaptation},
        adapted_videos={
            task: path
            for task in tasks.held_out
            if (path := checkpoints / "adapt" / task / "videos/adapted.mp4").exists()
        },
        experts={stage: read_expert_use(checkpoints / stage / "metrics") for stage in ("pretrain", "finetune")},
        clusters=_parse(Clusters, found, "pretrain") if found.exists() else None,
        reconstructions=(_parse(Reconstructions, learned, "embed"), learned.with_name("reconstructions.png"))
        if learned.exists()
        else None,
        picture_clusters=_parse(Clusters, apart, "embed") if apart.exists() else None,
        missing=missing,
    )


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read DVCLive's TSV files, by metric name (`train/loss`), in natural order.

    Raises:
        ValueError: a file is not of DVCLive's form.
    """
    base = folder / "plots/metrics"
    names = {path.relative_to(base).with_suffix("").as_posix(): path for path in base.rglob("*.tsv")}
    return {name: _read_curve(names[name]) for name in sorted(names, key=_natural)}


def _read_curve(path: Path) -> Curve:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return Curve([float(row["step"]) for row in rows], [float(row[path.stem]) for row in rows])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: expected columns `step` and `{path.stem}`, all numbers.") from None


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _parse(form: Any, path: Path, stage: str) -> Any:
    content = read_json(path, f"dvc repro {stage}")
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: `{where}`: {first['msg']}. Run `dvc repro --force {stage}`.") from None
