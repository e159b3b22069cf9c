"""Examining a task before training on it: `eft check-task NAME|FILE`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils.env_checker import check_env

from pipeline.extras import needs
from pipeline.files import atomic_file
from pipeline.tasks.any_gymnasium import GymnasiumSimulator
from pipeline.tasks.registry import load_catalogue, make, texts_shared
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

_NUM_STEPS = 200  # that are looked at, or more
_EPISODES, _MOST_EPISODES = 3, 5
_SECONDS = 30.0  # a slow simulator's episode is looked at for so long, not to its end
_NOT_BY_CHANCE = 20  # steps; that two of a few random episodes end at the same later one is no accident
_DRIFT, _LARGE = 10, 1e4  # growth within an episode, and size, of an observation that are warned of
_PADDING = 3  # entries beyond the task's own, to see that they stay zero and have no effect


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str  # what, in a few words
    passed: bool
    detail: str  # what was found; where it did not pass, what to do
    doubtful: bool = False  # it passed, and may yet not be what was meant


class _Doubt(Exception):
    """What was found may not be what was meant."""


def check_task(
    spec: TaskSpec,
    frame: Path | None = None,
    folder: str | Path | None = None,
    obs_dim: int | None = None,
    action_dim: int | None = None,
    horizon: int | None = None,
) -> list[Finding]:
    """Build one task, step it, and say what was found. Failures are findings, not exceptions.

    Args:
        spec: the task.
        frame: PNG file to draw the first image into.
        folder: folder of the user's own tasks, whose texts must differ from this one's.
        obs_dim: width that observations are padded to in training, which the task must fit into.
        action_dim: the same for actions.
        horizon: steps that an episode must have to be learned from.
    """
    findings = [_texts(spec, folder)]

    def build(render_size: int = 0) -> TaskEnv:
        widths = obs_dim or spec.obs_dim + _PADDING, action_dim or spec.action_dim + _PADDING
        return make(spec, *widths, render_size=render_size)

    try:
        env = build()
    except Exception as error:
        return [*findings, Finding("build", False, _say(error))]
    env.close()
    findings.append(Finding("build", True, f"{spec.obs_dim} observations, {spec.action_dim} actions, as written"))
    looks: list[tuple[str, Callable[[], str]]] = [
        ("Gymnasium's checker", lambda: _gymnasium(build())),
        ("repeatable", lambda: _repeatable(build(), build())),
        ("masked actions", lambda: _masked(build(), build())),
        ("random episodes", lambda: _random_episodes(build(), horizon)),
    ]
    if isinstance(env.simulator, GymnasiumSimulator):
        findings.append(Finding("actions", True, env.simulator.actions.text))
        looks.insert(0, ("observations", lambda: _observations(build())))
    if frame is not None:
        looks.append(("image", lambda: _image(build(render_size=224), frame)))
    return [*findings, *_look(looks)]


def _look(looks: list[tuple[str, Callable[[], str]]]) -> Iterator[Finding]:
    for check, look in looks:
        try:
            yield Finding(check, True, look())
        except _Doubt as doubt:
            yield Finding(check, True, str(doubt), doubtful=True)
        except Exception as error:
            yield Finding(check, False, _say(error))


def _texts(spec: TaskSpec, folder: str | Path | None) -> Finding:
    try:
        others = [other for other in load_catalogue(folder).values() if other.name != spec.name]
    except ValueError as error:
        return Finding("texts", False, str(error))
    shared = texts_shared([*others, spec])
    if shared:
        return Finding("texts", False, shared)
    return Finding("texts", True, f"{len(spec.instructions)} phrasings, none used by another task: {spec.text()!r}")


def _observations(env: TaskEnv) -> str:
    simulator: Any = env.simulator
    space, rng = simulator.env.observation_space, np.random.default_rng(0)
    env.reset(seed=0)
    for step in range(_NUM_STEPS):
        if not space.contains(simulator._obs):
            raise ValueError(
                f"after {step} steps the observation {simulator._obs!r} is not in the environment's observation_space "
                f"{space}: widen the space's bounds, or give its shape and dtype"
            )
        *_, terminated, truncated, _ = env.step(_random_action(env, rng))
        if terminated or truncated:
            env.reset()
    env.close()
    return f"{simulator.layout}; they keep to the environment's own bounds"


def _gymnasium(env: TaskEnv) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    env.close()
    notes = {str(one.message) for one in caught} - {""}
    # Ours to choose and chosen: padded observations have no bounds.
    notes = {note for note in notes if "infinity" not in note and "unbounded" not in note}
    return "; ".join(sorted(notes)) or "nothing to remark"


def _repeatable(one: TaskEnv, other: TaskEnv) -> str:
    starts, lengths = [], []
    for seed in range(1, 1 + _MOST_EPISODES):  # several where they are short
        first = _rollout(one, seed)
        starts.append(first.obs[0])
        lengths.append(len(first.reward))
        _rollout(one, seed + 100, num_steps=5)  # what came before must not matter
        for env, what in ((one, "the same seed gave another episode the second time"), (other, "two instances differ")):
            if (step := _first_difference(first, _rollout(env, seed, num_steps=lengths[-1]))) is not None:
                raise ValueError(
                    f"{what}, from step {step} on: reset(seed=) must determine the whole episode. Draw every random "
                    "number from the environment's own `self.np_random`, and keep no running statistics of "
                    "observations or rewards (NormalizeObservation, NormalizeReward)"
                )
        if sum(lengths) >= _NUM_STEPS:
            break
    starts.append(other.reset(seed=0)[0])
    one.close()
    other.close()
    found = f"the same seed gives the same episode, in episodes of {', '.join(map(str, lengths))} steps"
    same = all(np.array_equal(start, starts[0]) for start in starts)
    return f"{found}; every episode starts in the same state" if same else found


def _masked(one: TaskEnv, other: TaskEnv) -> str:
    one.reset(seed=1)
    other.reset(seed=1)
    used, action = one.task.action_dim, np.zeros(one.action_space.shape or (), np.float32)
    loud = action.copy()
    loud[used:] = 1
    for _ in range(5):
        (a, *_, terminated, truncated, _), (b, *_) = one.step(action), other.step(loud)
        if not np.array_equal(a, b) or a[one.task.obs_dim :].any():
            raise ValueError("padding is not inert: entries beyond the task's own changed something")
        if terminated or truncated:
            break
    one.close()
    other.close()
    return "padding stays zero and has no effect"


def _random_episodes(env: TaskEnv, horizon: int | None) -> str:
    """Play whole episodes: three, or up to five where they end early."""
    rewards, episodes, begun = np.zeros(0), list[_Rollout](), time.perf_counter()
    while len(episodes) < _MOST_EPISODES and len(rewards) < _EPISODES * env.task.episode_length:
        episodes.append(episode := _rollout(env, seed=len(episodes)))
        rewards = np.append(rewards, episode.reward)
        if time.perf_counter() - begun > _SECONDS:
            break
    env.close()
    speed = len(rewards) / (time.perf_counter() - begun)
    lengths, terminations = [len(one.reward) for one in episodes], sum(one.terminated for one in episodes)
    found = (
        f"{len(episodes)} episodes of {', '.join(map(str, lengths))} steps at {speed:.0f} steps/s, rewards "
        f"{rewards.min():.3g} to {rewards.max():.3g}, {terminations} terminations"
    )
    if terminations:
        found += " (plans reckon with ends if `model.termination` in params.yaml is true)"
    short = sum(length < (horizon or 0) for length in lengths)
    too_short = (
        f"{short} of {len(lengths)} episodes are shorter than planner.horizon = {horizon}: these are not learned from"
    )
    doubts = [
        too_short if short else "",
        _always_ends(episodes, env.task.episode_length),
        _drifting(episodes, env.task.obs_dim),
    ]
    if any(doubts):
        raise _Doubt(". ".join([found, *filter(None, doubts)]))
    return found


def _always_ends(episodes: list[_Rollout], limit: int) -> str:
    """Say that episodes end at one step before their limit, and none later, if so: that may be a time limit."""
    length = max(len(one.reward) for one in episodes)
    last = [one for one in episodes if len(one.reward) == length]
    every, flags = len(last) == len(episodes), {one.terminated for one in last}
    if length == limit or len(last) == 1 or len(flags) > 1 or not (every or length >= _NOT_BY_CHANCE):
        return ""
    who = "Every episode ends" if every else f"{len(last)} of {len(episodes)} episodes end, and none later,"
    found = f"{who} at step {length} of {limit}, whatever is done"
    if flags == {False}:
        return f"{found}: the environment truncates it. Write episode_length: {length}"
    return (
        f"{found}, with terminated=True. Is it a time limit? Then write episode_length: {length} and let the "
        "environment say truncated: after a termination nothing is worth anything, after a time limit what might have "
        "come counts"
    )


def _drifting(episodes: list[_Rollout], obs_dim: int) -> str:
    """Say which entries of the observation grow all through an episode, or are very large."""
    found, most = np.ones(obs_dim, bool), np.zeros(obs_dim)
    for one in episodes:
        size, part = np.abs(one.obs[:, :obs_dim]), -(-len(one.obs) // 10)
        early, late = size[:part].mean(0), size[-part:].mean(0)
        found &= late > _DRIFT * np.maximum(early, 1)
        most = np.maximum(most, size.max(0))
    doubts = []
    if found.any():
        doubts.append(
            f"Entries {_listed(found)} of the observation grow to more than {_DRIFT} times what they "
            "are at first: a counter, or a place that is left behind? What training has not met tells it nothing: take "
            "them out, or give them relative to something"
        )
    if (most > _LARGE).any():
        doubts.append(
            f"Entries {_listed(most > _LARGE)} of the observation reach {most.max():.0e}: give them in "
            "units in which they are about 1"
        )
    return ". ".join(doubts)


def _listed(which: np.ndarray, most: int = 8) -> str:
    """Return the numbers of entries as text, not more than a few."""
    numbers = np.flatnonzero(which).tolist()
    return str(numbers) if len(numbers) <= most else f"{str(numbers[:most])[:-1]}, ...]"


def _image(env: TaskEnv, frame: Path) -> str:
    with needs("pipeline"):
        from matplotlib.image import imsave

    env.reset(seed=0)
    image = env.render()
    env.close()
    with atomic_file(frame) as partial:
        imsave(partial, image, format="png")
    return f"{image.shape[1]} x {image.shape[0]} pixels in {frame}"


class _Rollout(NamedTuple):
    """The first L steps of one episode under random actions."""

    obs: np.ndarray  # (L + 1, O)
    reward: np.ndarray  # (L,)
    terminated: bool
    truncated: bool


def _rollout(env: TaskEnv, seed: int, num_steps: int | None = None) -> _Rollout:
    """Play an episode to its end, or so many steps of it; without a number also no longer than `_SECONDS`."""
    rng, begun = np.random.default_rng(seed), time.perf_counter()
    observations, rewards, terminated, truncated = [env.reset(seed=seed)[0]], [], False, False
    while not (terminated or truncated) and len(rewards) != num_steps:
        obs, reward, terminated, truncated, _ = env.step(_random_action(env, rng))
        observations.append(obs)
        rewards.append(reward)
        if num_steps is None and time.perf_counter() - begun > _SECONDS:
            break
    return _Rollout(np.array(observations), np.array(rewards), terminated, truncated)


def _first_difference(one: _Rollout, other: _Rollout) -> int | None:
    """Return the first step, counted from 0 for the reset, at which two rollouts differ; None if they do not."""
    for step in range(len(one.obs)):
        if step >= len(other.obs) or not np.array_equal(one.obs[step], other.obs[step]):
            return step
        if step and one.reward[step - 1] != other.reward[step - 1]:
            return step
    return None if one[2:] == other[2:] else len(one.reward)


def _random_action(env: TaskEnv, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
