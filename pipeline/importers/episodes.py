"""Episodes as another format tells them, fitted to one of our tasks, with a report of what was left out."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.config import near
from pipeline.data.demos import FILE, write_episodes
from pipeline.data.episode import Episode, say_unrewarded
from pipeline.files import sha256, write_json
from pipeline.importers.actions import Bounds, find_bounds
from pipeline.progress import Progress
from pipeline.tasks.spec import SUCCESS, TaskSpec

_MOST_VALUES = 2**26  # of one array of one episode: half a gigabyte
_FEW_PARTS = 30  # of an observation; of more, choices of three and four are too many to try


@dataclass(frozen=True, eq=False)
class Recorded:
    """One episode as its source tells it.

    Attributes:
        number: of the episode in the source, for the report.
        obs: (L + 1, o), the last observation included.
        action: (L, a), in the units of `Source.low` and `Source.high`.
        reward: (L,); NaN in all steps where the source has none, and in all but the last where it gives one number for
            the whole episode.
        terminated: whether it ended for good.
        success: at the last step; None where the source does not say.
        seed: what it was reset with; -1 where the source does not say.
        cut: what was left out of the episode, and why; empty if it is whole.
        expert: (L, a), what the expert intended, in the same units; None where the source tells nothing but the action.
    """

    number: int
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    success: bool | None
    seed: int = -1
    cut: str = ""
    expert: np.ndarray | None = None


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
        low, high: (a,) or scalar, the actions that are -1 and 1 with us, as the source says it.
    """

    form: str
    files: Sequence[Path]
    episodes: Iterable[Recorded | tuple[int, str]]
    total: int
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    low: np.ndarray | float = -1.0
    high: np.ndarray | float = 1.0


@dataclass(frozen=True)
class Reading:
    """What the user knows of the data and no file says.

    Attributes:
        successful: episodes of which the source does not say whether they succeeded have succeeded.
        reward_at_end: the task rewards the last step alone, so one reward per episode is all there is.
        low, high: the actions that are -1 and 1 with us, one number each or one per dim; None for what the source says.
        of_data: take the smallest and largest action in the data for them.
        clip: cut actions to these bounds, as the environment did when they were recorded.
    """

    successful: bool = False
    reward_at_end: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    of_data: bool = False
    clip: bool = False


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
    cut: list[dict[str, int | str]]  # episode that was kept, what was left out of it
    ignored: list[str]
    notes: list[str]


def import_episodes(
    source: Source, spec: TaskSpec, name: str, commit: str | None, reading: Reading, out: str | Path
) -> Report:
    """Write `out/<task>/episodes.parquet` and import.json beside it.

    Args:
        source: what a reader found.
        spec: the task they are of; scores them.
        name: where they come from, as the user said it.
        commit: of the Hub's repo.
        reading: what the user knows of the data.
        out: folder, e.g. `my_tasks/demos`.

    Raises:
        ValueError: not one episode can be used; the reasons are named.
    """
    kept: list[Episode] = []
    left_out: list[tuple[int, str]] = []
    cut: list[tuple[int, str]] = []
    # The smallest and largest action are only known once all are read.
    episodes = list(source.episodes) if reading.of_data else source.episodes
    actions = [one.action for one in episodes if isinstance(one, Recorded)] if reading.of_data else None
    bounds = find_bounds((source.low, source.high), (reading.low, reading.high), actions, reading.clip, spec.action_dim)
    with Progress(f"importing {spec.name}", source.total, "episodes") as progress:
        for recorded in episodes:
            if isinstance(recorded, tuple):
                left_out.append(recorded)
            else:
                try:
                    kept.append(fit(recorded, spec, reading, bounds, source.form))
                    cut += [(recorded.number, recorded.cut)] if recorded.cut else []
                except ValueError as error:
                    left_out.append((recorded.number, str(error)))
            progress.update(1, kept=len(kept))
    left_out.sort()
    if not kept:
        reasons = "\n".join(f"  episode {number}: {reason}" for number, reason in left_out[:3])
        raise ValueError(f"none of the {source.total} episodes of {name} can be used for {spec.name}:\n{reasons}")
    path = Path(out) / spec.name / FILE
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
        cut=[{"episode": number, "reason": reason} for number, reason in cut],
        ignored=source.ignored,
        notes=[*source.notes, *bounds.notes, *filter(None, [say_unrewarded(kept)])],
    )
    # The episodes come last: where they are, all is there, and an import that was killed is simply made again.
    write_json(path.with_name("import.json"), dataclasses.asdict(report))
    write_episodes(path, kept)
    return report


def fit(recorded: Recorded, spec: TaskSpec, reading: Reading, bounds: Bounds, method: str) -> Episode:
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
    obs = np.ascontiguousarray(_unpad(recorded.obs, spec.obs_dim, "observations"), np.float32)
    action = bounds.scale(_unpad(recorded.action, spec.action_dim, "actions").astype(np.float64))
    expert = action
    if recorded.expert is not None:
        expert = bounds.scale(_unpad(recorded.expert, spec.action_dim, "expert's actions").astype(np.float64))
    reward = _rewards(np.asarray(recorded.reward, np.float32), reading)
    success = recorded.success
    if success is None:
        if spec.score == SUCCESS and not reading.successful:
            raise ValueError(
                f"{spec.name} is scored by success, of which the source says nothing. If every episode in it is known "
                "to have succeeded, say --successful"
            )
        success = reading.successful
    episode_return = float(reward.sum(dtype=np.float64))
    episode = Episode(
        task=spec.name,
        obs=obs,
        action=action,
        expert_action=expert,
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


def first_end(length: int, **flags: np.ndarray | None) -> tuple[int, str]:
    """Return how many of an episode's steps come before its end, that one included, and what is to be cut.

    Args:
        length: L, its steps.
        **flags: (L,) each, by the source's name: whether the episode was over after each step; None where not told.

    Raises:
        ValueError: a flag is told for another number of steps, or missing (NaN) at one.
    """
    first, why = length, ""
    for name, flag in flags.items():
        if flag is None:
            continue
        told = np.ravel(flag).astype(np.float64)
        if len(told) != length:
            raise ValueError(f"`{name}` is told for {len(told)} steps, there are {length}")
        if (missing := np.isnan(told)).any():
            raise ValueError(f"`{name}` is missing at step {int(missing.argmax())}")
        if (over := told.astype(bool)).any() and (after := int(over.argmax()) + 1) < first:
            first, why = after, f"{length - after} steps after its end: `{name}` is true at step {after - 1}"
    return first, why


def success_at(success: np.ndarray | None, step: int) -> bool | None:
    """Return whether the task was done at a step; None where the source does not say, or the value is missing (NaN).

    Args:
        success: (L,) or (L, 1).
        step: counted from 0, or back from -1, the last.

    Raises:
        ValueError: it is not told for this step.
    """
    if success is None:
        return None
    told = np.ravel(success).astype(np.float64)
    if not -len(told) <= step < len(told):
        raise ValueError(f"`success` is told for {len(told)} steps, and not for step {step}")
    return None if np.isnan(told[step]) else bool(told[step])


def check_rewards(reward: np.ndarray, length: int) -> np.ndarray:
    """Return the rewards as (L,) float64.

    Args:
        reward: (L,) or (L, 1).
        length: L, the episode's actions.

    Raises:
        ValueError: there are more or fewer, or several numbers for one step.
    """
    if reward.ndim < 1 or (len(reward) and reward.size != len(reward)):
        raise ValueError(f"its rewards have the shape {reward.shape}, expected one number for each of {length} actions")
    if len(reward) != length:
        raise ValueError(f"it has {len(reward)} rewards for {length} actions")
    return reward.ravel().astype(np.float64)


def check_arrays(length: int, width: int, what: str) -> None:
    """Refuse sizes that lie, before memory is taken for them.

    Raises:
        ValueError: there is nothing, or more than any episode has.
    """
    if length < 1:
        raise ValueError(f"`{what}` is empty")
    if width > 65536 or length * width > _MOST_VALUES:
        raise ValueError(f"`{what}` has {length} rows of {width} values, more than an episode can have")


def choose(names: Sequence[str], widths: Mapping[str, int], features: Sequence[str], spec: TaskSpec) -> list[str]:
    """Return which parts of an observation to take, in order.

    Args:
        names: of all parts that may be taken, in the order in which they are joined.
        widths: values of each.
        features: those that the user names; none for all.
        spec: the task, which says how wide they must be together.

    Raises:
        ValueError: one is unknown, or they are not as wide as the task's observations; says which would be.
    """
    for name in features:
        if name not in names:
            raise ValueError(f"there is no `{name}` to observe.{near(name, list(names))} There are: {_list(widths)}.")
    chosen = list(features or names)
    if (total := sum(widths[name] for name in chosen)) == spec.obs_dim:
        return chosen
    most = min(len(names), 4 if len(names) <= _FEW_PARTS else 2)
    fitting = (
        f"--features {' '.join(some)}"
        for count in range(1, most + 1)
        for some in itertools.combinations(names, count)
        if sum(widths[name] for name in some) == spec.obs_dim
    )
    first = "; or ".join(itertools.islice(fitting, 3))
    advice = f"Of this width: {first}." if first else f"No choice of up to {most} --features is as wide."
    raise ValueError(
        f"the data observe {_list({name: widths[name] for name in chosen}) or 'no vectors'}, {total} values together; "
        f"{spec.name} observes {spec.obs_dim}. {advice}"
    )


def _list(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {width}" for name, width in widths.items())


def _rewards(reward: np.ndarray, reading: Reading) -> np.ndarray:
    """Return rewards of every step (L,), those of a task that rewards its last step alone included; NaN if unknown."""
    missing = np.isnan(reward)
    if not missing.any():
        return reward
    if missing.all() and not reading.reward_at_end:
        return reward
    if missing.all():
        raise ValueError("no reward is in it, not even the one at the end that --reward-at-end says it has")
    if not missing[:-1].all() or missing[-1]:
        raise ValueError(f"its reward is missing at step {int(missing.argmax())}")
    if not reading.reward_at_end:
        raise ValueError(
            "its reward is given at the end alone, and a world model learns the reward of every step. If the task "
            "itself rewards nothing but the last step, say --reward-at-end; if it is a sum over all steps, leave it "
            "out: policy and dynamics are learned without"
        )
    return np.nan_to_num(reward, nan=0.0)


def _unpad(values: np.ndarray, width: int, what: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] < width:
        raise ValueError(f"its {what} have the shape {values.shape}, expected {width} values each")
    if np.any(values[:, width:]):
        raise ValueError(f"its {what} are {values.shape[1]} wide, and beyond the task's {width} not only zeros")
    return values[:, :width]
