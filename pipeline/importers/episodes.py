"""Episodes as another format tells them, fitted to one of our tasks, with a report of what was left out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.demos import FILE, write_episodes
from pipeline.data.episode import Episode
from pipeline.files import sha256, write_json
from pipeline.progress import Progress
from pipeline.tasks.spec import SUCCESS, TaskSpec

_ROUNDING = 1e-4  # how far an action may lie outside its bounds and still be taken for one on them


@dataclass(frozen=True, eq=False)
class Recorded:
    """One episode as its source tells it.

    Attributes:
        number: of the episode in the source, for the report.
        obs: (L + 1, o), the last observation included.
        action: (L, a) in [-1, 1].
        reward: (L,).
        terminated: whether it ended for good.
        success: at the last step; None where the source does not say.
        seed: what it was reset with; -1 where the source does not say.
    """

    number: int
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    success: bool | None
    seed: int = -1


@dataclass
class Source:
    """What a reader found: the episodes, and what else there was.

    Attributes:
        form: the format's name.
        files: that were read.
        episodes: read one by one; one that cannot be read is (number, reason).
        total: how many there are.
        ignored: columns and files that have no place with us.
        notes: what was assumed.
    """

    form: str
    files: Sequence[Path]
    episodes: Iterable[Recorded | tuple[int, str]]
    total: int
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """What became of an import; written beside its episodes as import.json."""

    form: str
    source: str
    commit: str | None  # of the Hub's repo; None for a file of the user's
    sha256: dict[str, str]  # of every file that was read
    task: str
    found: int
    kept: int
    steps: int
    left_out: list[dict[str, int | str]]  # episode, reason
    ignored: list[str]
    notes: list[str]


def import_episodes(
    source: Source, spec: TaskSpec, name: str, commit: str | None, successful: bool, out: str | Path
) -> Report:
    """Write `out/<task>/episodes.parquet` and import.json beside it.

    Args:
        source: what a reader found.
        spec: the task they are of; scores them.
        name: where they come from, as the user said it.
        commit: of the Hub's repo.
        successful: take episodes of which the source does not say whether they succeeded for successful.
        out: folder, e.g. `my_tasks/demos`.

    Raises:
        ValueError: not one episode can be used; the reasons are named.
    """
    kept: list[Episode] = []
    left_out: list[tuple[int, str]] = []
    with Progress(f"importing {spec.name}", source.total, "episodes") as progress:
        for recorded in source.episodes:
            try:
                if isinstance(recorded, tuple):
                    left_out.append(recorded)
                else:
                    kept.append(fit(recorded, spec, successful, source.form))
            except ValueError as error:
                left_out.append((recorded.number, str(error)))  # pyright: ignore[reportAttributeAccessIssue]
            progress.update(1, kept=len(kept))
    if not kept:
        reasons = "\n".join(f"  episode {number}: {reason}" for number, reason in left_out[:3])
        raise ValueError(f"none of the {source.total} episodes of {name} can be used for {spec.name}:\n{reasons}")
    path = Path(out) / spec.name / FILE
    write_episodes(path, kept)
    root = Path(os.path.commonpath([file.parent for file in source.files]))
    report = Report(
        form=source.form,
        source=name,
        commit=commit,
        sha256={file.relative_to(root).as_posix(): sha256(file) for file in source.files},
        task=spec.name,
        found=source.total,
        kept=len(kept),
        steps=sum(len(episode.action) for episode in kept),
        left_out=[{"episode": number, "reason": reason} for number, reason in left_out],
        ignored=source.ignored,
        notes=source.notes,
    )
    write_json(path.with_name("import.json"), dataclasses.asdict(report))
    return report


def fit(recorded: Recorded, spec: TaskSpec, successful: bool, method: str) -> Episode:
    """Turn a recorded episode into one of `spec`: unpadded, actions in [-1, 1], scored by the task's own rule.

    Raises:
        ValueError: it cannot be one of this task; says why.
    """
    length = len(recorded.action)
    if length > spec.episode_length:
        raise ValueError(
            f"it has {length} steps, an episode of {spec.name} has at most {spec.episode_length}: recorded with "
            "another action repeat or time limit?"
        )
    obs = _unpad(recorded.obs, spec.obs_dim, "observations")
    action = _unpad(recorded.action, spec.action_dim, "actions")
    excess = np.abs(action).max(initial=0) - 1
    if excess > _ROUNDING:
        raise ValueError(f"its actions reach {1 + excess:g}, expected [-1, 1]")
    action = action.clip(-1, 1)
    reward = np.asarray(recorded.reward, np.float32)
    success = recorded.success
    if success is None:
        if spec.score == SUCCESS and not successful:
            raise ValueError(
                f"{spec.name} is scored by success, of which the source says nothing. If every episode in it is known "
                "to have succeeded, say --successful"
            )
        success = successful
    episode_return = float(reward.sum(dtype=np.float64))
    episode = Episode(
        task=spec.name,
        obs=obs,
        action=action,
        expert_action=action,
        reward=reward,
        terminated=recorded.terminated,
        success=success,
        score=spec.evaluate(episode_return, success),
        episode_return=episode_return,
        seed=recorded.seed,
        method=method,
    )
    episode.check()
    return episode


def check_arrays(length: int, width: int, spec: TaskSpec, what: str) -> None:
    """Refuse sizes that no episode of `spec` can have, before memory is taken for them.

    Raises:
        ValueError: `length` or `width` is beyond the task's.
    """
    if not 0 < length <= spec.episode_length + 1:
        raise ValueError(f"`{what}` has {length} rows, an episode of {spec.name} has at most {spec.episode_length + 1}")
    if width > 65536:
        raise ValueError(f"`{what}` is {width} wide, {spec.name} observes {spec.obs_dim} values")


def _unpad(values: np.ndarray, width: int, what: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] < width:
        raise ValueError(f"its {what} have the shape {values.shape}, expected {width} values each")
    if np.any(values[:, width:]):
        raise ValueError(f"its {what} are {values.shape[1]} wide, and beyond the task's {width} not only zeros")
    return np.ascontiguousarray(values[:, :width], np.float32)
