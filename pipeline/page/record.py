"""Keeping what was played: an episode as a demonstration, and as a film."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.data.demos import FILE, read_episodes, write_episodes
from pipeline.data.episode import Episode
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.video import write_video

_MOST_FPS = 50
_PATIENCE = 30  # seconds that another page may take to keep an episode
FILM_SIZE = 384  # pixels of a side


class Recorder:
    """The steps of the episode on the page.

    Args:
        spec: its task.
        seed: what it was reset with.
        obs: (o,) the first observation.
    """

    def __init__(self, spec: TaskSpec, seed: int, obs: np.ndarray) -> None:
        self.spec, self.seed = spec, seed
        self.obs, self.actions = [obs.astype(np.float32)], list[np.ndarray]()
        self.rewards, self._modes = list[float](), dict[str, None]()
        self.terminated = self.success = False

    def __len__(self) -> int:
        return len(self.actions)

    def add(
        self, action: np.ndarray, obs: np.ndarray, reward: float, terminated: bool, success: bool, mode: str
    ) -> None:
        """Keep one step: what was done, by whom, and what came of it."""
        self.actions.append(np.clip(action, -1, 1).astype(np.float32))
        self.obs.append(obs.astype(np.float32))
        self.rewards.append(float(np.float32(reward)))
        self.terminated, self.success = terminated, success
        self._modes[mode] = None

    @property
    def episode_return(self) -> float:
        """The undiscounted sum of rewards so far."""
        return float(sum(self.rewards))

    @property
    def score(self) -> float:
        """The task's own score if the episode ended here, in [0, 1]."""
        return self.spec.evaluate(self.episode_return, self.success)

    def episode(self) -> Episode:
        """Return the episode so far, as demonstrations are kept.

        Raises:
            ValueError: nothing was played yet.
        """
        if not self.actions:
            raise ValueError("nothing was played yet: an episode without steps is no demonstration.")
        actions = np.stack(self.actions)
        return Episode(
            task=self.spec.name,
            obs=np.stack(self.obs),
            action=actions,
            expert_action=actions,
            reward=np.array(self.rewards, np.float32),
            terminated=self.terminated,
            success=self.success,
            score=self.score,
            episode_return=self.episode_return,
            seed=self.seed,
            method="+".join(self._modes),
        )


def keep(folder: Path, episode: Episode) -> tuple[Path, int]:
    """Add an episode to the demonstrations of its task in `folder`, the form that `eft adapt --demos` takes.

    Returns:
        The file, and how many demonstrations it holds now.

    Raises:
        ValueError: it is kept already, or the file that is there holds something else.
        OSError: the disk is full or not writable.
    """
    path = folder / episode.task / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{FILE}.lock"), timeout=_PATIENCE):  # another page may keep one there too
        before = read_episodes(path, "eft play") if path.exists() else []
        if any(np.array_equal(old.action, episode.action) and np.array_equal(old.obs, episode.obs) for old in before):
            raise ValueError(f"this episode is in {path} already.")
        write_episodes(path, [*before, episode])
        return path, len(before) + 1


@contextlib.contextmanager
def reserved(folder: Path, name: str, suffix: str) -> Iterator[Path]:
    """Yield a path in a folder that no file has, kept free of other pages meanwhile; it is to be written within."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / f"{name}{f'-{number}' if number > 1 else ''}{suffix}"
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
            break
    try:
        yield path
    finally:
        if path.stat().st_size == 0:
            path.unlink()


def film(
    path: Path, spec: TaskSpec, seed: int, actions: list[np.ndarray], step_seconds: float, given_up: Callable[[], bool]
) -> None:
    """Play an episode again in an environment of its own, and write it as mp4.

    Args:
        path: the file.
        spec: the task.
        seed: what the episode was reset with.
        actions: (a,) of each step.
        step_seconds: how long a step lasts.
        given_up: asked at every frame; nothing is written once it says so.

    Raises:
        InterruptedError: it was given up.
        RenderingUnavailable: this machine cannot draw.
        ValueError: nothing was played yet.
    """
    if not actions:
        raise ValueError("nothing was played yet: there is nothing to film.")
    skip = max(1, round(1 / (step_seconds * _MOST_FPS)))  # more frames a second than a screen shows are left out
    fps = max(1, round(1 / (step_seconds * skip)))
    frames = _frames(spec, seed, actions, skip)
    write_video(path, itertools.takewhile(lambda _: _go_on(given_up), frames), fps)


def _go_on(given_up: Callable[[], bool]) -> bool:
    if given_up():
        raise InterruptedError("the video was given up.")
    return True


def _frames(spec: TaskSpec, seed: int, actions: list[np.ndarray], skip: int) -> Iterator[np.ndarray]:
    env: Any = make(spec, spec.obs_dim, spec.action_dim, FILM_SIZE)
    try:
        env.reset(seed=seed)
        yield env.render()
        for number, action in enumerate(actions, 1):
            env.step(action)
            if number % skip == 0 or number == len(actions):
                yield env.render()
    finally:
        env.close()
