"""What demonstrations hold, whether they can be of their task, and what learning would not see of them."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline import config
from pipeline.data.episode import Episode, say_unrewarded
from pipeline.model.world_model import _CLAMP as CLAMP
from pipeline.tasks.spec import SUCCESS, TaskSpec

_OUTLIERS = 0.01  # share of values beyond the clamp that may be outliers
_OTHER_ORIGIN = 0.1  # ... that cannot be a few dims which one task alone moves
_OTHER_UNITS = 30.0  # factor between two spreads from which on they are of other units
_GROUPS = 6  # episodes from which on two groups among them are no accident
_FAR = 2.0  # how many times as wide as either group the gap between two groups is, to be no accident
_HARDLY = 1e-3  # a spread below which learning does not scale a dim up
AT_BOUND = 0.99
_MEND = (
    "Other units, or another origin? Convert them, or give the task an `embodiment` sentence of its own: a new body "
    "gets the statistics of its demonstrations"
)


class Finding(NamedTuple):
    """One thing that was found. What is wrong should be mended before training; the rest is good to know."""

    wrong: bool
    text: str


class Limits(NamedTuple):
    """Of the model that is to learn."""

    horizon: int  # steps of a training slice
    obs_dim: int
    action_dim: int
    largest_reward: float  # that its bins can tell

    @classmethod
    def of(cls, model: config.Model, planner: config.Planner) -> Limits:
        """Return the limits of a model of these sizes."""
        largest = math.expm1(min(abs(model.bin_min), abs(model.bin_max)))  # bins are in symlog units
        return cls(planner.horizon, model.obs_dim, model.action_dim, largest)


class Reference(NamedTuple):
    """How observations of a body are centred and scaled: mean and std (o,), and whose they are."""

    origin: str
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, origin: str, episodes: Sequence[Episode]) -> Reference:
        """Return the statistics of demonstrations, as learning takes them."""
        obs = np.concatenate([episode.obs for episode in episodes])
        std = obs.std(0, dtype=np.float64)
        return cls(origin, obs.mean(0, dtype=np.float64), np.where(std < _HARDLY, 1.0, std))

    def scale(self, obs: np.ndarray) -> np.ndarray:
        """Return observations (n, o) in standard deviations around the mean, not yet cut."""
        return (obs - self.mean) / self.std


@dataclass(frozen=True)
class Examined:
    """The demonstrations of one task.

    Attributes:
        task: its name.
        episodes: all of them, of one width.
        reference: what observations were compared with; their own statistics where no other is known.
        findings: what is wrong first.
    """

    task: str
    episodes: list[Episode]
    reference: Reference
    findings: list[Finding]

    @property
    def lengths(self) -> np.ndarray:
        """Steps of every episode."""
        return np.array([len(episode.action) for episode in self.episodes])


def examine(
    task: str,
    episodes: list[Episode],
    spec: TaskSpec | None = None,
    known: Reference | None = None,
    limits: Limits | None = None,
) -> Examined:
    """Look at demonstrations of one task.

    Args:
        task: the name that they are filed under.
        episodes: valid ones.
        spec: the task; None if it is unknown.
        known: statistics of its body that do not come from these demonstrations.
        limits: of the model that is to learn; None if no parameters are known.
    """
    obs = np.concatenate([episode.obs for episode in episodes])
    reference = known if known and len(known.mean) == obs.shape[1] else None
    own = Reference.of("these demonstrations themselves", episodes)
    found = [
        *_of_another_task(task, episodes, spec),
        *_beyond_model(episodes, limits),
        *(unlike(obs, reference) if reference else []),
        *apart(episodes),
        *_copies(episodes),
        *_observations(obs, reference or own),
        *examine_actions(np.concatenate([episode.action for episode in episodes])),
        *_outcomes(episodes, spec),
    ]
    if known and not reference:
        found.append(Finding(False, f"{known.origin} has {len(known.mean)} values and was not compared with"))
    found.sort(key=lambda finding: not finding.wrong)
    return Examined(task, episodes, reference or own, found)


def unlike(obs: np.ndarray, known: Reference) -> list[Finding]:
    """Say where observations (n, o) are unlike those of the body whose statistics are known; nothing where they fit.

    Learning cuts observations at 10 standard deviations. Where that cuts much, or where everything moves 30 times more
    or less than it should, the units are others or something is shifted. A few dims may be this task's own.
    """
    beyond = np.abs(known.scale(obs)) > CLAMP
    spread, found = obs.std(0, dtype=np.float64), []
    if beyond.mean() > _OUTLIERS or (beyond.mean(0) > 0.5).any():
        worst = int(beyond.mean(0).argmax())
        here = f"{obs[:, worst].mean():.4g} ± {spread[worst]:.2g} here"
        there = f"{known.mean[worst]:.4g} ± {known.std[worst]:.2g} there"
        dims = _numbers(np.flatnonzero(beyond.mean(0) > _OUTLIERS))
        text = (
            f"{100 * beyond.mean():.0f} % of the observed values lie more than {CLAMP:g} standard deviations from "
            f"{known.origin} and are cut by its statistics, in dims {dims}; "
            f"dim {worst} is {here} and {there}. "
        )
        much = bool(beyond.mean() > _OTHER_ORIGIN)
        found.append(Finding(much, text + (_MEND if much else "Other units, or does no other task move them so?")))
    moving = (spread > 0) & (known.std != 1.0)  # where the known std is 1, the body hardly moves
    if moving.any():
        factor = float(np.median(spread[moving] / known.std[moving]))
        if not 1 / _OTHER_UNITS < factor < _OTHER_UNITS:
            found.append(
                Finding(True, f"what is observed varies {factor:.2g} times as much as {known.origin}. {_MEND}")
            )
    return found


def apart(episodes: Sequence[Episode]) -> list[Finding]:
    """Say which episodes are unlike the others of the same demonstrations: of other units, or another origin."""
    if len(episodes) < _GROUPS:
        return []
    obs = [episode.obs.astype(np.float64) for episode in episodes]
    spread, found = np.stack([one.std(0) for one in obs]), []
    if (moving := (spread > 0).all(0)).any():
        level = np.median(np.log(spread[:, moving]), 1)
        few, gap = _smaller_group(level)
        if gap > math.log(_OTHER_UNITS):
            text = (
                f"episodes {_numbers(few)} vary {math.exp(abs(level[few].mean() - np.delete(level, few).mean())):.2g}"
            )
            more = "more" if level[few].mean() > np.delete(level, few).mean() else "less"
            found.append(Finding(False, f"{text} times {more} than the others in what they observe: other units?"))
    low, high = (np.stack([side(one, 0) for one in obs]) for side in (np.min, np.max))
    shifted: dict[str, list[int]] = defaultdict(list)
    for dim in range(low.shape[1]):
        few, _ = _smaller_group((low[:, dim] + high[:, dim]) / 2)
        groups = [(low[part, dim].min(), high[part, dim].max()) for part in (few, np.delete(np.arange(len(obs)), few))]
        gap = max(groups[0][0] - groups[1][1], groups[1][0] - groups[0][1])
        widest = max(top - bottom for bottom, top in groups)
        if len(few) > 1 and gap > _FAR * widest > 0:
            shifted[_numbers(few)].append(dim)
    for few, dims in shifted.items():
        text = f"episodes {few} lie far from all others in observation dims {_numbers(dims)}"
        found.append(Finding(False, f"{text}: another origin, or another goal?"))
    return found


def _smaller_group(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Cut (n,) values at their largest gap, and return where the smaller group is, and the gap."""
    order = values.argsort()
    gaps = np.diff(values[order])
    cut = int(gaps.argmax()) + 1
    return np.sort(min(order[:cut], order[cut:], key=len)), float(gaps[cut - 1])


def _of_another_task(task: str, episodes: list[Episode], spec: TaskSpec | None) -> list[Finding]:
    others = sorted({episode.task for episode in episodes} - {task})
    found = [Finding(True, f"filed under {task}, and of {', '.join(others)}: learning refuses them")] if others else []
    if spec is None:
        return [*found, Finding(False, "no task of this name is known, so its sizes and length were not compared")]
    obs_dim, action_dim = episodes[0].obs.shape[1], episodes[0].action.shape[1]
    if (obs_dim, action_dim) != (spec.obs_dim, spec.action_dim):
        found.append(
            Finding(
                True,
                f"{obs_dim} values are observed and {action_dim} action dims taken, {spec.name} has {spec.obs_dim} and "
                f"{spec.action_dim}",
            )
        )
    longer = [number for number, episode in enumerate(episodes) if len(episode.action) > spec.episode_length]
    if longer:
        text = f"episodes {_numbers(longer)} are longer than the task's {spec.episode_length} steps"
        found.append(Finding(True, f"{text}: recorded with another action repeat or time limit?"))
    full = [episode for episode in episodes if len(episode.action) == spec.episode_length]
    if full and all(episode.terminated for episode in full):
        text = f"{len(full)} episodes ended for good at step {spec.episode_length}, where the time limit is"
        found.append(Finding(False, f"{text}: if it was the limit, `terminated` must be false"))
    return found


def _beyond_model(episodes: list[Episode], limits: Limits | None) -> list[Finding]:
    """What learning refuses or cannot see, whatever the values are."""
    if limits is None:
        return []
    found = []
    short = [number for number, episode in enumerate(episodes) if len(episode.action) < limits.horizon]
    if short:
        text = f"episodes {_numbers(short)} are shorter than planner.horizon {limits.horizon}"
        none = len(short) == len(episodes)
        found.append(Finding(none, f"{text}: learning {'refuses them' if none else 'leaves them out'}"))
    for what, width, most in (
        ("observed values", episodes[0].obs.shape[1], limits.obs_dim),
        ("action dims", episodes[0].action.shape[1], limits.action_dim),
    ):
        if width > most:
            found.append(Finding(True, f"{width} {what}, the model takes {most}"))
    largest = max((float(np.abs(episode.reward).max()) for episode in episodes if episode.rewarded), default=0.0)
    if largest > limits.largest_reward:
        text = f"rewards reach {largest:.4g}, the model tells them up to {limits.largest_reward:.4g}"
        found.append(Finding(True, f"{text}: scale them in the task, or widen model.bin_min and bin_max"))
    return found


def shared(data: Mapping[str, Sequence[Episode]]) -> dict[str, Finding]:
    """Say of each task whose demonstrations are also filed under others, rewards included, which these are."""
    tasks: dict[str, set[str]] = defaultdict(set)
    for task, episodes in data.items():
        for episode in episodes:
            tasks[_digest(episode.obs, episode.action, episode.reward)].add(task)
    found = {}
    for task in data:
        groups = [group for group in tasks.values() if task in group and len(group) > 1]
        if groups:
            others = ", ".join(sorted({other for group in groups for other in group} - {task}))
            found[task] = Finding(True, f"{len(groups)} episodes are also filed under {others}: of which are they?")
    return found


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _copies(episodes: list[Episode]) -> list[Finding]:
    same: dict[str, list[int]] = defaultdict(list)
    for number, episode in enumerate(episodes):
        same[_digest(episode.obs, episode.action)].append(number)
    groups = [numbers for numbers in same.values() if len(numbers) > 1]
    found = []
    if groups:
        listed = "; ".join(_numbers(numbers) for numbers in groups[:5])
        found.append(Finding(True, f"{sum(map(len, groups)) - len(groups)} episodes are copies of others: {listed}"))
    starts = {episode.obs[0].tobytes() for episode in episodes}
    if len(starts) < len(episodes) and not groups:
        text = f"{len(episodes)} episodes begin in {len(starts)} different states"
        found.append(Finding(False, text))
    return found


def _observations(obs: np.ndarray, reference: Reference) -> list[Finding]:
    spread, found = np.ptp(obs, 0), []
    std = obs.std(0, dtype=np.float64) / reference.std
    if len(still := np.flatnonzero(spread == 0)):
        found.append(Finding(False, f"observation dims {_numbers(still)} never change"))
    if len(hardly := np.flatnonzero((spread > 0) & (std < _HARDLY))):
        text = f"observation dims {_numbers(hardly)} vary by less than {_HARDLY:g} once they are scaled"
        found.append(Finding(False, f"{text}: learning hardly sees them"))
    return found


def examine_actions(action: np.ndarray) -> list[Finding]:
    """Say what is odd about actions (n, a)."""
    found = []
    largest = np.abs(action).max(0)
    if len(still := np.flatnonzero(np.ptp(action, 0) == 0)):
        found.append(Finding(False, f"action dims {_numbers(still)} never change"))
    if largest.max() < 0.1:
        text = f"no action is larger than {largest.max():.2g}, where 1 is the largest possible"
        found.append(Finding(True, f"{text}: scaled by other bounds than the environment's?"))
    if (share := float((np.abs(action) >= AT_BOUND).mean())) > 0.5:
        found.append(Finding(False, f"{100 * share:.0f} % of the actions are at their bounds"))
    return found


def _outcomes(episodes: list[Episode], spec: TaskSpec | None) -> list[Finding]:
    found = []
    failed = [number for number, episode in enumerate(episodes) if episode.score == 0]
    if failed:
        what = "without success" if spec is not None and spec.score == SUCCESS else "with a score of 0"
        found.append(Finding(False, f"episodes {_numbers(failed)} end {what}, and are cloned like the others"))
    if said := say_unrewarded(episodes):
        found.append(Finding(False, said))
    rewarded = [episode for episode in episodes if episode.rewarded]
    rewards = np.concatenate([episode.reward for episode in rewarded]) if rewarded else None
    if rewards is not None and np.ptp(rewards) == 0:
        text = f"every reward is {rewards[0]:g}, so reward and value learn nothing from them"
        found.append(Finding(bool(rewards[0] == 0), text))
    if spec is not None:
        other = [
            number
            for number, episode in enumerate(episodes)
            if abs(spec.evaluate(episode.episode_return, episode.success) - episode.score) > 1e-3
        ]
        if other:
            text = f"the scores of episodes {_numbers(other)} are not those of the rule {spec.score!r}"
            found.append(Finding(True, f"{text}: recorded for another version of the task?"))
    return found


def _numbers(values: Sequence[int] | np.ndarray, most: int = 8) -> str:
    """Return numbers as text, runs of them as a range: `0-4, 7`."""
    runs: list[list[int]] = []
    for value in map(int, values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    return ", ".join(shown) + (", ..." if len(runs) > most else "")
