"""Examining a task before training on it: `eft check-task NAME|FILE`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils.env_checker import check_env

from pipeline.files import atomic_file
from pipeline.tasks.any_gymnasium import GymnasiumSimulator
from pipeline.tasks.registry import load_catalogue, make, texts_shared
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

NUM_STEPS = 200
_PADDING = 3  # entries beyond the task's own, to see that they stay zero and have no effect


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str  # what, in a few words
    passed: bool
    detail: str  # what was found; where it did not pass, what to do


def check_task(
    spec: TaskSpec,
    frame: Path | None = None,
    folder: str | Path | None = None,
    obs_dim: int | None = None,
    action_dim: int | None = None,
) -> list[Finding]:
    """Build one task, step it, and say what was found. Failures are findings, not exceptions.

    Args:
        spec: the task.
        frame: PNG file to draw the first image into.
        folder: folder of the user's own tasks, whose texts must differ from this one's.
        obs_dim: width that observations are padded to in training, which the task must fit into.
        action_dim: the same for actions.
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
        ("random steps", lambda: _random_steps(build())),
    ]
    if isinstance(env.simulator, GymnasiumSimulator):
        looks.insert(0, ("bounds", lambda: _bounds(build())))
    if frame is not None:
        looks.append(("image", lambda: _image(build(render_size=224), frame)))
    return [*findings, *_look(looks)]


def _look(looks: list[tuple[str, Callable[[], str]]]) -> Iterator[Finding]:
    for check, look in looks:
        try:
            yield Finding(check, True, look())
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


def _bounds(env: TaskEnv) -> str:
    simulator: Any = env.simulator
    space, rng = simulator.env.observation_space, np.random.default_rng(0)
    env.reset(seed=0)
    for step in range(NUM_STEPS):
        if not space.contains(simulator._obs):
            raise ValueError(
                f"after {step} steps the observation {simulator._obs!r} is not in the environment's observation_space "
                f"{space}: widen the space's bounds, or give its shape and dtype"
            )
        *_, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        if terminated or truncated:
            env.reset()
    env.close()
    low, high = simulator.low.min(), simulator.high.max()
    return f"observations keep to the environment's own bounds; actions in [{low:g}, {high:g}] are mapped onto [-1, 1]"


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
    first = _rollout(one, seed=1, num_steps=20)
    _rollout(one, seed=2, num_steps=5)  # what came before must not matter
    if not all(np.array_equal(a, b) for a, b in zip(first, _rollout(one, seed=1, num_steps=20), strict=True)):
        raise ValueError("the same seed gave another episode the second time: reset(seed=) must determine everything")
    if not all(np.array_equal(a, b) for a, b in zip(first, _rollout(other, seed=1, num_steps=20), strict=True)):
        raise ValueError("two instances gave different episodes under one seed: reset(seed=) must determine everything")
    differs = not np.array_equal(other.reset(seed=2)[0], first[0][0])
    one.close()
    other.close()
    return "the same seed gives the same episode" + ("" if differs else "; every episode starts in the same state")


def _masked(one: TaskEnv, other: TaskEnv) -> str:
    one.reset(seed=1)
    other.reset(seed=1)
    used, action = one.task.action_dim, np.zeros(one.action_space.shape or (), np.float32)
    loud = action.copy()
    loud[used:] = 1
    for _ in range(5):
        a, b = one.step(action)[0], other.step(loud)[0]
        if not np.array_equal(a, b) or a[one.task.obs_dim :].any():
            raise ValueError("padding is not inert: entries beyond the task's own changed something")
    one.close()
    other.close()
    return "padding stays zero and has no effect"


def _random_steps(env: TaskEnv) -> str:
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    rewards, ends, seconds = [], 0, 0.0
    for _ in range(NUM_STEPS):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        start = time.perf_counter()
        _, reward, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - start
        rewards.append(reward)
        if terminated or truncated:
            ends += terminated
            env.reset()
    env.close()
    return (
        f"{NUM_STEPS} steps at {NUM_STEPS / seconds:.0f} steps/s, rewards {min(rewards):.3g} to {max(rewards):.3g}, "
        f"{ends} terminations"
    )


def _image(env: TaskEnv, frame: Path) -> str:
    from matplotlib.image import imsave

    env.reset(seed=0)
    image = env.render()
    env.close()
    with atomic_file(frame) as partial:
        imsave(partial, image, format="png")
    return f"{image.shape[1]} x {image.shape[0]} pixels in {frame}"


def _rollout(env: TaskEnv, seed: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return observations and rewards of the first steps of one episode under fixed actions."""
    rng = np.random.default_rng(seed)
    observations, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(num_steps):
        obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        observations.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards)


def _say(error: Exception) -> str:
    return str(error) or type(error).__name__
