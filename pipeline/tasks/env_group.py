"""Environments that step one after the other in one process, reading and writing rows of shared arrays."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.tasks.labels import Expert, Labels, ask
from pipeline.tasks.physics import drop_textures
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import SimulationError, TaskEnv


class Arrays(NamedTuple):
    """One row per environment of the whole vector, whoever steps it."""

    action: np.ndarray  # (N, A) float32
    obs: np.ndarray  # (N, O) float32, first of the next episode where the step ended one
    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    final_obs: np.ndarray  # (N, O) float32, true last observation of the step
    success: np.ndarray  # (N,) bool
    lost: np.ndarray  # (N,) bool, the episode under way failed and counts for nothing; another one began
    episode: np.ndarray  # (N,) int64, number of the episode that each environment is in
    beats: np.ndarray  # (N,) int64, counted up before and after each call of an environment: odd while it is busy
    image: np.ndarray  # (N, P, P, 3) uint8 RGB of `obs`; P is 0 where nothing is drawn
    final_image: np.ndarray  # (N, P, P, 3) uint8 RGB of `final_obs`, written only where the step ended an episode
    starting: np.ndarray  # (N,) bool, which are built anew or reset at this moment: that may take longer than a step
    playing: np.ndarray  # (N,) bool, which environments the step is for; the others rest in the middle of an episode
    label: np.ndarray  # (N, A) float32, what the expert would have done in this step; (N, 0) where none is asked


MAX_FAILURES = (
    3  # of one environment, one after the other without a finished episode between; the next one stops the run
)


class Widths(NamedTuple):
    """What decides the size of the `Arrays`."""

    num_envs: int  # N
    obs_dim: int  # O
    action_dim: int  # A
    image_size: int  # P, pixels of an image's side
    label_dim: int = 0  # A where experts are asked, else 0


def layout(widths: Widths) -> list[tuple[tuple[int, ...], type]]:
    """Return shape and type of each of the `Arrays`."""
    n, obs_dim, action_dim, side, label_dim = widths
    wide, flag, count = ((n, obs_dim), np.float32), ((n,), np.bool_), ((n,), np.int64)
    image = ((n, side, side, 3), np.uint8)
    start = [((n, action_dim), np.float32), wide, ((n,), np.float32), flag, flag]
    return [*start, wide, flag, flag, count, count, image, image, flag, flag, ((n, label_dim), np.float32)]


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

    An environment that fails (it raises, or returns NaN or a wrong shape) is built anew and begins its next episode;
    the row of `lost` says so, and `failures` holds the error. So does one whose expert fails.

    Args:
        specs: index in the vector and task of each environment.
        arrays: where to read actions and write results; rows are indices in the vector.
        seed: seed of the run.
        numbers: number in the run of each environment of the vector.
        labels: whose experts are asked before each step; None asks nobody.
        first_steps: fewest agent steps of episode 0 of each environment, which ends after a random number; None: whole.
    """

    def __init__(
        self,
        specs: Sequence[tuple[int, TaskSpec]],
        arrays: Arrays,
        seed: int,
        numbers: Sequence[int],
        labels: Labels | None = None,
        first_steps: int | None = None,
    ) -> None:
        self._arrays, self._seed, self._numbers, self._specs = arrays, seed, numbers, dict(specs)
        self._size = arrays.image.shape[1]
        self._labels, self._first_steps = labels, first_steps
        self._steps_left = dict.fromkeys(self._specs, math.inf)  # until an episode 0 that is not to be whole is cut off
        self._experts: dict[int, Expert] = {}  # of the environments that are labelled
        self._success = dict.fromkeys(self._specs, False)  # whether the present state is a successful one
        self._envs = {index: self._build(index) for index in self._specs}
        self.failures: list[tuple[int, str]] = []  # of the last call: index, and error with its traceback

    def reset(self) -> None:
        """Start episode 0 of each environment that plays."""
        self.failures = []
        for index in self._envs:
            if self._arrays.playing[index]:
                self._begin(index, 0)

    def step(self) -> None:
        """Take one agent step in each environment that plays; where an episode ends, start the next."""
        self.failures = []
        action, obs, reward, terminated, truncated, final_obs, success, lost, _, beats, *more = self._arrays
        image, final_image, _, playing, label = more
        for index, env in self._envs.items():
            if not playing[index]:
                self._nothing_happened(index)
                continue
            beats[index] += 1
            try:
                if index in self._experts:  # in the state before the action
                    wanted = ask(self._experts[index], env.task, obs[index], self._success[index])
                    label[index, : len(wanted)] = wanted
                last, reward[index], terminated[index], truncated[index], info = env.step(action[index])
            except SimulationError as error:
                self._lose(index, error)
                continue
            finally:
                beats[index] += 1
            final_obs[index] = obs[index] = last
            success[index] = self._success[index] = info["success"]
            lost[index] = False
            self._steps_left[index] -= 1
            if self._steps_left[index] <= 0 and not terminated[index]:
                truncated[index] = True
            over = terminated[index] or truncated[index]
            if self._size:
                (final_image if over else image)[index] = env.render()
            if over:
                self._begin(index, int(self._arrays.episode[index]) + 1)

    def restore(self, episodes: Iterable[int], actions: Iterable[np.ndarray]) -> None:
        """Go to the given episode of each environment, in this group's order, and replay its actions (L, A).

        Raises:
            ValueError: an episode ends within its actions, so they are not its beginning.
        """
        self.failures = []
        for index, episode, played in zip(self._envs, episodes, actions, strict=True):
            self._begin(index, episode)
            for step, action in enumerate(played):
                env = self._envs[index]
                self._arrays.beats[index] += 2
                self._steps_left[index] -= 1
                self._arrays.obs[index], _, terminated, truncated, info = env.step(action)
                self._success[index] = info["success"]
                if terminated or truncated:
                    raise ValueError(
                        f"task {env.task.name}: cannot restore episode {episode} of environment {index}: it ended "
                        f"after {step + 1} of {len(played)} recorded actions. The record is of another task, seed or "
                        "simulator version: start the run anew."
                    )
            if self._size:
                self._arrays.image[index] = self._envs[index].render()

    def close(self) -> None:
        """Release every environment."""
        for env in self._envs.values():
            env.close()

    def _build(self, index: int) -> TaskEnv:
        spec = self._specs[index]
        try:
            env = make(spec, self._arrays.obs.shape[1], self._arrays.action.shape[1], self._size)
            if self._labels and spec.name in self._labels.kinds:
                self._experts[index] = self._labels.open_expert(spec, env)
            if not self._size:
                drop_textures(env)
            return env
        except Exception as error:
            error.add_note(f"This happened when building task {spec.name} ({spec.suite}: {spec.env_id}).")
            raise

    def _begin(self, index: int, episode: int) -> None:
        """Start an episode; one that cannot be started is a failure, and the next one is tried."""
        self._arrays.starting[index] = True
        for attempt in range(MAX_FAILURES + 1):
            self._arrays.episode[index] = episode + attempt
            self._steps_left[index] = self._length(index) if episode + attempt == 0 else math.inf
            seed = episode_seed(self._seed, self._numbers[index], episode + attempt)
            self._arrays.beats[index] += 1
            try:
                self._arrays.obs[index], info = self._envs[index].reset(seed=seed)
                self._success[index] = info["success"]
                if self._size:
                    self._arrays.image[index] = self._envs[index].render()
                self._arrays.starting[index] = False
                return
            except SimulationError as error:
                self.failures.append((index, _report(error)))
                if attempt == MAX_FAILURES:
                    raise
            finally:
                self._arrays.beats[index] += 1
            self._rebuild(index)

    def _length(self, index: int) -> float:
        """Return after how many steps episode 0 is cut off, which follows from seed and number of the environment."""
        longest = self._specs[index].episode_length
        if self._first_steps is None or self._first_steps >= longest:
            return math.inf
        draw = np.random.default_rng((self._seed, self._numbers[index]))
        return int(draw.integers(self._first_steps, longest, endpoint=True))

    def _lose(self, index: int, error: SimulationError) -> None:
        self.failures.append((index, _report(error)))
        self._rebuild(index)  # a simulator that failed halfway through a step may be in any state
        self._begin(index, int(self._arrays.episode[index]) + 1)
        self._nothing_happened(index)
        self._arrays.lost[index] = True

    def _nothing_happened(self, index: int) -> None:
        _, obs, reward, terminated, truncated, final_obs, success, lost, *_ = self._arrays
        reward[index], terminated[index], truncated[index], success[index] = 0, False, False, False
        final_obs[index], lost[index] = obs[index], False

    def _rebuild(self, index: int) -> None:
        self._arrays.starting[index] = True
        with contextlib.suppress(Exception):  # it is broken: whether it closes well does not matter
            self._envs[index].close()
        self._envs[index] = self._build(index)


def _report(error: Exception) -> str:
    return f"{error}\n\n{''.join(traceback.format_exception(error))}"


def episode_seed(seed: int, number: int, episode: int) -> int:
    """Return the seed of one episode of one environment, below 2**32; it depends on nothing else."""
    return int(np.random.SeedSequence((seed, number, episode)).generate_state(1)[0])


def _padded(shape: tuple[int, ...], kind: type) -> int:
    return -(-math.prod(shape) * np.dtype(kind).itemsize // 64) * 64  # each array begins on its own cache line
