"""Environments that step one after the other in one process, reading and writing rows of shared arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec


class Arrays(NamedTuple):
    """One row per environment of the whole vector, whoever steps it."""

    action: np.ndarray  # (N, A) float32
    obs: np.ndarray  # (N, O) float32, first of the next episode where the step ended one
    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    final_obs: np.ndarray  # (N, O) float32, true last observation of the step
    success: np.ndarray  # (N,) bool
    picture: np.ndarray  # (N, P, P, 3) uint8 RGB of `obs`; P is 0 where nothing is drawn
    final_picture: np.ndarray  # (N, P, P, 3) uint8 RGB of `final_obs`, written only where the step ended an episode


class Widths(NamedTuple):
    """What decides the size of the `Arrays`."""

    num_envs: int  # N
    obs_dim: int  # O
    action_dim: int  # A
    picture_size: int  # P, pixels of a picture's side


def layout(widths: Widths) -> list[tuple[tuple[int, ...], type]]:
    """Return shape and type of each of the `Arrays`."""
    n, obs_dim, action_dim, side = widths
    wide, flag, picture = ((n, obs_dim), np.float32), ((n,), np.bool_), ((n, side, side, 3), np.uint8)
    return [((n, action_dim), np.float32), wide, ((n,), np.float32), flag, flag, wide, flag, picture, picture]


def num_bytes(widths: Widths) -> int:
    """Return the size of the buffer that `view` needs."""
    return sum(_padded(shape, kind) for shape, kind in layout(widths))


def view(buffer: Any, widths: Widths) -> Arrays:
    """Lay the `Arrays` over one writable buffer."""
    arrays, offset = [], 0
    for shape, kind in layout(widths):
        arrays.append(np.frombuffer(buffer, kind, math.prod(shape), offset).reshape(shape))
        offset += _padded(shape, kind)
    return Arrays(*arrays)


class EnvGroup:
    """Some environments of a vector, in this process.

    Args:
        specs: index in the vector and task of each environment.
        arrays: where to read actions and write results; rows are indices in the vector.
        seed: seed of the vector.
    """

    def __init__(self, specs: Sequence[tuple[int, TaskSpec]], arrays: Arrays, seed: int) -> None:
        self._arrays, self._seed = arrays, seed
        obs_dim, action_dim, self._size = arrays.obs.shape[1], arrays.action.shape[1], arrays.picture.shape[1]
        self._envs = []
        for index, spec in specs:
            try:
                self._envs.append((index, make(spec, obs_dim, action_dim, self._size)))
            except Exception as error:
                error.add_note(f"This happened when building task {spec.name} ({spec.suite}: {spec.env_id}).")
                raise
        self._episodes = dict.fromkeys((index for index, _ in specs), 0)

    def reset(self) -> None:
        """Start episode 0 of each environment."""
        for index, env in self._envs:
            self._begin(index, env, 0)

    def step(self) -> None:
        """Take one agent step in each environment; where an episode ends, start the next."""
        _, obs, reward, terminated, truncated, final_obs, success, picture, final_picture = self._arrays
        for index, env in self._envs:
            last, reward[index], terminated[index], truncated[index], info = env.step(self._arrays.action[index])
            final_obs[index] = obs[index] = last
            success[index] = info["success"]
            over = terminated[index] or truncated[index]
            if self._size:
                (final_picture if over else picture)[index] = env.render()
            if over:
                self._begin(index, env, self._episodes[index] + 1)

    def restore(self, episodes: Iterable[int], actions: Iterable[np.ndarray]) -> None:
        """Go to the given episode of each environment, in this group's order, and replay its actions (L, A).

        Raises:
            ValueError: an episode ends within its actions, so they are not its beginning.
        """
        for (index, env), episode, played in zip(self._envs, episodes, actions, strict=True):
            self._begin(index, env, episode)
            for step, action in enumerate(played):
                self._arrays.obs[index], _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    raise ValueError(
                        f"task {env.task.name}: cannot restore episode {episode} of environment {index}: it ended "
                        f"after {step + 1} of {len(played)} recorded actions. The record is of another task, seed or "
                        "simulator version: start the run anew."
                    )
            if self._size:
                self._arrays.picture[index] = env.render()

    def close(self) -> None:
        """Release every environment."""
        for _, env in self._envs:
            env.close()

    def _begin(self, index: int, env: Any, episode: int) -> None:
        self._episodes[index] = episode
        self._arrays.obs[index], _ = env.reset(seed=episode_seed(self._seed, index, episode))
        if self._size:
            self._arrays.picture[index] = env.render()


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Return the seed of one episode of one environment, below 2**32; it depends on nothing else."""
    return int(np.random.SeedSequence((seed, index, episode)).generate_state(1)[0])


def _padded(shape: tuple[int, ...], kind: type) -> int:
    return -(-math.prod(shape) * np.dtype(kind).itemsize // 64) * 64  # each array begins on its own cache line
