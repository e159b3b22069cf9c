"""Environments whose observations hold the vectors of their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.pixels.pixel_encoder import PixelEncoder
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv
from pipeline.tasks.vector import TIMEOUT, Step, VectorEnv


class PixelEnvs(VectorEnv):
    """A `VectorEnv` whose observations hold the vectors of its images: see `PixelEncoder`.

    Workers draw; this process encodes the images of all environments together.

    Args:
        pixel_encoder: turns the images into observations.
        others: as of `VectorEnv`; `obs_dim` must hold the state and the vector. Experts that label read
            the state alone.
    """

    def __init__(
        self,
        pixel_encoder: PixelEncoder,
        specs: Sequence[TaskSpec],
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        numbers: Sequence[int] | None = None,
        labels: Labels | None = None,
        timeout: float = TIMEOUT,
        first_steps: int | None = None,
    ) -> None:
        size = pixel_encoder.image_size
        super().__init__(specs, obs_dim, action_dim, seed, num_workers, numbers, size, labels, timeout, first_steps)
        self._pixel_encoder = pixel_encoder
        self._obs_dims, self._tasks = [spec.obs_dim for spec in specs], [spec.name for spec in specs]

    def reset(self, playing: np.ndarray | None = None) -> np.ndarray:
        """Start episode 0 of each environment, or of those that play, as `VectorEnv` does.

        What is returned of the others, (N, O), has no vector of an image in it.
        """
        return self._augment(super().reset(playing), playing)

    def end_step(self) -> Step:
        """Wait for the step that was begun, encode the images of the environments that took it, return what it gave."""
        step = super().end_step()
        done = np.flatnonzero(step.terminated | step.truncated)
        # Where no episode ended, or one was lost, both observations are the same.
        obs = self._augment(step.obs, self._arrays.playing | step.lost)
        final_obs = np.where((step.terminated | step.truncated)[:, None], step.final_obs, obs)
        if len(done):
            ended, dims, tasks = final_obs[done], [self._obs_dims[i] for i in done], [self._tasks[i] for i in done]
            self._pixel_encoder.augment(ended, dims, step.final_image[done], tasks)
            final_obs[done] = ended
        return step._replace(obs=obs, final_obs=final_obs)

    def restore(self, episodes: np.ndarray, actions: Sequence[np.ndarray]) -> np.ndarray:
        """Go into the middle of known episodes by replaying what was done in them; return the observations, (N, O)."""
        return self._augment(super().restore(episodes, actions))

    def _augment(self, obs: np.ndarray, playing: np.ndarray | None = None) -> np.ndarray:
        which = np.arange(len(obs)) if playing is None else np.flatnonzero(playing)
        if not len(which):
            return obs
        observed, dims, tasks = obs[which], [self._obs_dims[i] for i in which], [self._tasks[i] for i in which]
        self._pixel_encoder.augment(observed, dims, self.image[which], tasks)
        obs[which] = observed
        return obs


def env_maker(pixel_encoder: PixelEncoder | None) -> Callable[..., VectorEnv]:
    """Return `make_envs(specs, obs_dim, action_dim, seed, num_workers, numbers, labels, timeout, first_steps)`.

    The last four may be left out. It builds a `PixelEnvs`, or a plain `VectorEnv` where images are not observed.

    Raises:
        ValueError: from `make_envs`, a task does not fit into `obs_dim`.
    """

    def make_envs(
        specs: Sequence[TaskSpec],
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        numbers: Sequence[int] | None = None,
        labels: Labels | None = None,
        timeout: float = TIMEOUT,
        first_steps: int | None = None,
    ) -> VectorEnv:
        for spec in specs:
            check_width(spec, pixel_encoder, obs_dim)
        if pixel_encoder is None:
            return VectorEnv(
                specs, obs_dim, action_dim, seed, num_workers, numbers, 0, labels, timeout, first_steps
            )  # fmt: skip
        return PixelEnvs(
            pixel_encoder, specs, obs_dim, action_dim, seed, num_workers, numbers, labels, timeout, first_steps
        )  # fmt: skip

    return make_envs


def episode_observer(spec: TaskSpec, pixel_encoder: PixelEncoder | None) -> Callable[[TaskEnv, np.ndarray], np.ndarray]:
    """Return `observe(env, obs)`: what an agent observes, (1, O), in one environment whose padded state is `obs` (O,).

    Where images are observed, `env` must draw in `pixel_encoder.image_size`.
    """

    def observe(env: TaskEnv, obs: np.ndarray) -> np.ndarray:
        batch = obs[None].copy()
        if pixel_encoder is not None:
            pixel_encoder.augment(batch, [spec.obs_dim], env.render()[None], [spec.name])
        return batch

    return observe


def observed_width(spec: TaskSpec, pixel_encoder: PixelEncoder | None) -> int:
    """Return how wide a model must be for a task: it holds the state before a vector takes its place."""
    return spec.obs_dim if pixel_encoder is None else max(spec.obs_dim, pixel_encoder.width(spec.obs_dim))


def check_width(spec: TaskSpec, pixel_encoder: PixelEncoder | None, obs_dim: int) -> None:
    """Refuse a task whose observation is wider than the model.

    Raises:
        ValueError: says how wide model.obs_dim must be.
    """
    parts = ""
    if pixel_encoder is not None:
        parts = f" ({spec.obs_dim} of state, {pixel_encoder.encoder.dim} of the image's vector)"
    spec.check_width(obs_dim, observed_width(spec, pixel_encoder), parts)
