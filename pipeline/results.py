"""What the stages left behind, read and checked, as the report and the cards of a release need it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline import config
from pipeline.files import read_json, sha256
from pipeline.run.metrics import FILE, Table, read_rows

_EXPERT_USE = "expert_use/"  # before the layers' names, of the tables of which task used which expert


class Estimate(BaseModel):
    """A score in [0, 1] with its interval."""

    score: float
    low: float
    high: float
    scores: list[float] = []  # per episode; empty for a mean over tasks


class RunSummary(BaseModel):
    """What a stage says of its own run (summary.json)."""

    stage: str
    seconds: float
    peak_memory_mb: float
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]
    labels: dict[str, str] | None = None  # which expert labelled each task that has one; None where labels were off


class Pair(BaseModel):
    """Two tasks that only the instruction tells apart: [given][scored as]."""

    tasks: tuple[str, str]
    mode: str  # "policy" or "plan"
    scores: tuple[tuple[float, float], tuple[float, float]]
    low: tuple[tuple[float, float], tuple[float, float]]
    high: tuple[tuple[float, float], tuple[float, float]]

    def row(self, given: int) -> list[Estimate]:
        """Return the estimates under one instruction: scored as the first task, and as the second."""
        cells = zip(self.scores[given], self.low[given], self.high[given], strict=True)
        return [Estimate(score=score, low=low, high=high) for score, low, high in cells]

    @property
    def verdict(self) -> str:
        """`clear`, `weak` (intervals overlap) or `no`: does each task score best under its own instruction?"""
        columns = [(0, 1), (1, 0)]  # (given its own task, given the other) for each task scored
        if all(self.low[own][own] > self.high[other][own] for own, other in columns):
            return "clear"
        return "weak" if all(self.scores[own][own] > self.scores[other][own] for own, other in columns) else "no"


class OpenLoop(BaseModel):
    """Scores of plans of which so many steps are executed without feedback."""

    steps: int
    tasks: dict[str, Estimate]
    mean: Estimate


class Sentence(BaseModel):
    """A sentence that nothing was trained on, and what was scored when a task was told by it."""

    text: str
    kind: str
    score: float
    understood: str | None  # the task that it was understood as; None for none, or for a model without a head
    probability: float | None


class Words(BaseModel):
    """A task's score in its own words and in others, and their ratio; None where its own score is 0."""

    own: float
    other: float
    ratio: float | None
    low: float | None
    high: float | None
    sentences: list[Sentence] = []  # none for a mean over tasks

    @property
    def failed(self) -> list[Sentence]:
        """The sentences that scored less than half of what the task's own words did."""
        return [one for one in self.sentences if one.score < self.own / 2]


class InOtherWords(BaseModel):
    """How the finetuned policy fares when tasks are told in words that nothing was trained on."""

    episodes: int  # per sentence
    tasks: dict[str, Words]
    mean: Words | None


class Scores(BaseModel):
    """The evaluation (scores.json): by checkpoint ("pretrain", "finetune"), mode ("policy", "plan") and task."""

    models: dict[str, dict[str, dict[str, Estimate]]]
    mean: dict[str, dict[str, Estimate]]
    chosen: dict[str, str] = {}  # by task, the mode that the finetuned agent takes where it may choose
    pairs: list[Pair]
    open_loop: list[OpenLoop] = []
    words: InOtherWords | None = None
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


class Adaptation(RunSummary):
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


class TaughtPoint(BaseModel):
    """One evaluation of a teacher in training (curve.json), in the real environment."""

    steps: int
    seconds: float  # of a core
    score: float


class Taught(BaseModel):
    """The teacher of one task."""

    score: float  # mean of fresh episodes in the real environment
    standard_error: float
    episodes: int
    steps: int  # agent steps after which it was as good
    trained_steps: int
    seconds: float  # of a core, for all of the training


class Teachers(BaseModel):
    """The training of teachers (checkpoints/teach.json)."""

    tasks: dict[str, Taught]


class TaskDemos(BaseModel):
    """The demonstrations of one task."""

    kept: int
    attempts: int
    score: float | None  # mean; None if their rewards are unknown
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


class TaskClusters(BaseModel):
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


class Ways(BaseModel):
    """Ways of finetuning beside each other, with the policy's or the plans' mean score over tasks and seeds."""

    command: str
    commits: list[str]
    machine: dict[str, Any]
    policy: dict[str, Estimate]  # by way (control, own, labels), and `<way>_minus_control`
    plan: dict[str, Estimate]
    tasks: dict[str, dict[str, list[float]]]  # by way and task, the policy's score with each seed

    @property
    def seeds(self) -> int:
        """How many seeds each way was run with; the smallest number of them."""
        return min((len(scores) for found in self.tasks.values() for scores in found.values()), default=0)

    def are_of(self, tasks: Sequence[str]) -> bool:
        """Return whether these tasks were compared, and no others."""
        return all(set(found) == set(tasks) for found in self.tasks.values())

    def means(self, task: str) -> dict[str, float]:
        """Return each way's mean score of a task over the seeds."""
        return {way: float(np.mean(found[task])) for way, found in self.tasks.items()}


class Figures(BaseModel):
    """What one task's values and plans are worth; None where there is no such figure, of returns that are all 0 say."""

    q_over_return: float | None  # of demonstrated actions
    advantage_q: float | None  # rank correlation with true advantages
    advantage_model: float | None
    value_share: float | None  # of the policy's gradient
    plan_distance: float | None  # root mean square per action dim
    policy_score: float | None
    plan_score: float | None
    policy_return: float | None  # part of what demonstrations earn
    plan_return: float | None


class Asked(BaseModel):
    """A finetuned checkpoint that was asked what its values and plans are worth (checkpoints/probe.json)."""

    command: str
    commit: str
    machine: dict[str, Any]
    run: str  # SHA-256 of the summary of the finetuning that made the checkpoint
    tasks: dict[str, Figures]


class Reconstructions(BaseModel):
    """What the autoencoder of pictures has learned (training.json)."""

    shown: list[str]  # tasks in the picture, from left to right
    error: dict[str, float]  # mean absolute error of a pixel in [0, 1], by task


class Curve(NamedTuple):
    """One metric over updates or env_steps."""

    steps: list[float]
    values: list[float]


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


@dataclass(frozen=True)
class Results:
    """Everything the page shows; None or empty where a stage has not run."""

    tasks: config.Tasks
    confidence: float  # of the intervals
    params: str  # params.yaml as it stands
    demos: Demos | None
    runs: dict[str, RunSummary]  # pretrain, finetune, evaluate, publish: those that ran
    curves: dict[str, dict[str, Curve]]  # by stage, then by metric name, e.g. "eval/score"
    scores: Scores | None
    videos: list[tuple[Video, Path]]
    adapted: dict[str, Adaptation]
    adapted_videos: dict[str, Path]
    experts: dict[str, dict[str, ExpertUse]]  # by stage, then by layer; empty for a model without
    clusters: TaskClusters | None = None  # where the model has any
    asked: tuple[Asked, bool] | None = None  # and whether it is the checkpoint of this run of finetuning
    teachers: Teachers | None = None
    teaching_curves: dict[str, list[TaughtPoint]] = field(default_factory=dict)  # by task; those that are there
    reconstructions: tuple[Reconstructions, Path] | None = None  # with the picture, where pictures are learned
    picture_clusters: TaskClusters | None = None  # where each has an autoencoder of its own
    ways: Ways | None = None  # of finetuning, where they were compared
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
    teachers = read(Teachers, checkpoints / "teach.json", "teach")
    demos = read(Demos, root / "datasets/demos.json", "demos")
    stages = ("pretrain", "finetune", "evaluate", "publish")
    logs = {stage: checkpoints / stage / "metrics" for stage in ("pretrain", "finetune")}
    runs = {stage: read(RunSummary, checkpoints / stage / "metrics/summary.json", stage) for stage in stages}
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
        curves={stage: read_curves(folder) for stage, folder in logs.items()},
        scores=scores,
        videos=[(video, index.parent / video.file) for video in videos],
        adapted={task: adaptation for task, adaptation in adapted.items() if adaptation},
        adapted_videos={
            task: path
            for task in tasks.held_out
            if (path := checkpoints / "adapt" / task / "videos/adapted.mp4").exists()
        },
        experts={stage: read_expert_use(folder) for stage, folder in logs.items()},
        clusters=_parse(TaskClusters, found, "pretrain") if found.exists() else None,
        asked=_read_asked(checkpoints / "probe.json", logs["finetune"] / "summary.json"),
        teachers=teachers,
        teaching_curves=read_teaching_curves(checkpoints / "teach", teachers.tasks if teachers else ()),
        reconstructions=(_parse(Reconstructions, learned, "embed"), learned.with_name("reconstructions.png"))
        if learned.exists()
        else None,
        picture_clusters=_parse(TaskClusters, apart, "embed") if apart.exists() else None,
        ways=_read_ways(checkpoints / "ways.json"),
        missing=missing,
    )


def _read_ways(path: Path) -> Ways | None:
    """Read how ways of finetuning compare: no stage makes that, it belongs to Git."""
    back = f"git checkout {path}"
    return _checked(Ways, read_json(path, back), path, back) if path.exists() else None


def read_teaching_curve(path: Path) -> list[TaughtPoint]:
    """Read the curve of a teacher, empty where there is none.

    Raises:
        ValueError: the file is not of the form that a training writes.
    """
    return _parse(list[TaughtPoint], path, "teach") if path.exists() else []


def read_teaching_curves(folder: Path, tasks: Iterable[str]) -> dict[str, list[TaughtPoint]]:
    """Read the curves of these tasks' teachers; those that are not there are left out."""
    curves = {task: read_teaching_curve(folder / task / "curve.json") for task in tasks}
    return {task: points for task, points in curves.items() if points}


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read the curves of a metrics folder, by metric name (`train/loss`), in natural order; empty where there are none.

    Raises:
        ValueError: the file is not of the form that a run writes; file and line are named.
    """
    curves: dict[str, dict[float, float]] = {}
    for step, row in _rows(folder):
        for name, value in row.items():
            if not isinstance(value, dict):
                curves.setdefault(name, {})[step] = value  # an evaluation that a killed run repeated counts once
    return {name: Curve(list(curves[name]), list(curves[name].values())) for name in sorted(curves, key=_natural)}


def read_expert_use(folder: Path) -> dict[str, ExpertUse]:
    """Read which tasks used which experts from a metrics folder, by layer; empty for a model without experts.

    Raises:
        ValueError: the file is not of the form that a run writes; file and line are named.
    """
    layers: dict[str, dict[float, Table]] = {}
    for step, row in _rows(folder):
        for name, value in row.items():
            if name.startswith(_EXPERT_USE):
                layers.setdefault(name.removeprefix(_EXPERT_USE), {})[step] = value
    try:
        return {layer: _expert_use(tables) for layer, tables in layers.items()}
    except ValueError:
        raise ValueError(f"{folder / FILE}: the rows of a table `{_EXPERT_USE}...` are not equally long.") from None


def _expert_use(tables: Mapping[float, Table]) -> ExpertUse:
    tasks = list(dict.fromkeys(task for table in tables.values() for task in table))
    num_experts = max(len(parts) for table in tables.values() for parts in table.values())
    parts = np.array([[table.get(task, [0.0] * num_experts) for task in tasks] for table in tables.values()])
    rows = parts.sum(-1)
    shares = np.divide(parts, rows[..., None], out=np.full(parts.shape, np.nan), where=rows[..., None] > 0)
    return ExpertUse(list(tables), tasks, shares, rows)


def _rows(folder: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield step and values of the rows of a metrics folder, each value a number or a table of numbers."""
    path = folder / FILE
    for number, row in enumerate(read_rows(path) if path.exists() else (), 1):
        step = row.pop("step")
        for name, value in row.items():
            if not (_is_table(value) if name.startswith(_EXPERT_USE) else _is_number(value)):
                raise ValueError(f"{path}, line {number}: `{name}` is not a number, nor a table of numbers.")
        yield step, row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_table(value: Any) -> bool:
    rows = list(value.values()) if isinstance(value, dict) else []
    return bool(rows) and all(isinstance(row, list) and row and all(map(_is_number, row)) for row in rows)


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _read_asked(path: Path, summary: Path) -> tuple[Asked, bool] | None:
    """Read what a checkpoint was asked, and whether this summary is of the run that made it; None where none was."""
    if not path.exists():
        return None
    asked = _parse(Asked, path, "report")
    return asked, summary.exists() and sha256(summary) == asked.run


def _parse(form: Any, path: Path, stage: str) -> Any:
    return _checked(form, read_json(path, f"dvc repro {stage}"), path, f"dvc repro --force {stage}")


def _checked(form: Any, content: Any, path: Path, again: str) -> Any:
    """Return content in its form; `again` is the command that brings the file."""
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: `{where}`: {first['msg']}. Run `{again}`.") from None
