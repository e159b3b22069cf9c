"""What a run or an agent observes: states, or images as well."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import config
from pipeline.data.episode import Episode
from pipeline.learn.evaluator import record
from pipeline.learn.task_setup import DEMOS
from pipeline.model.actor import Actor
from pipeline.pixels.demonstrations import check_bodies, observed_demonstrations
from pipeline.pixels.envs import env_maker, episode_observer, observed_width
from pipeline.pixels.pixel_encoder import IMAGE_VECTORS, PixelEncoder, load_pixel_encoder
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv


class Observing(NamedTuple):
    """How observations come about; learning is handed the parts it needs and knows no images.

    Attributes:
        pixel_encoder: turns images into vectors; None where the state is all that is observed.
    """

    pixel_encoder: PixelEncoder | None = None

    @classmethod
    def load(
        cls,
        vision: config.Vision,
        device: torch.device,
        tasks: Sequence[str],
        nearest: Callable[[str, Collection[str]], str],
    ) -> Observing:
        """Load what the parameters ask for.

        `nearest` says which of some tasks reads most like another: one without demonstrations has no autoencoder of
        its own cluster.
        """
        pixel_encoder = load_pixel_encoder(vision, device)
        if pixel_encoder is not None:
            for name in tasks:
                pixel_encoder.assign_nearest(name, nearest)
        return cls(pixel_encoder)

    @property
    def make_envs(self) -> Callable[..., VectorEnv]:
        """What makes environments; called like `VectorEnv`."""
        return env_maker(self.pixel_encoder)

    def width(self, spec: TaskSpec) -> int:
        """Return how wide a model must be for a task."""
        return observed_width(spec, self.pixel_encoder)

    def demonstrations(self, spec: TaskSpec, episodes: Sequence[Episode]) -> list[Episode]:
        """Return demonstrations as they are observed."""
        return observed_demonstrations(IMAGE_VECTORS, DEMOS, spec, episodes, self.pixel_encoder)

    def check_bodies(self, specs: Sequence[TaskSpec], demos: Mapping[str, Sequence[Episode]]) -> None:
        """Refuse a body without demonstrations where images are observed."""
        if self.pixel_encoder is not None:
            check_bodies(specs, demos)

    def record(
        self, actor: Actor, spec: TaskSpec, seed: int, settings: config.Evaluate
    ) -> tuple[list[np.ndarray], float]:
        """Film one planned episode: its frames (size, size, 3) uint8 and its score.

        Where images are observed, the film is of their size.

        Raises:
            RenderingUnavailable: this machine cannot draw.
        """
        size = settings.video_size if self.pixel_encoder is None else self.pixel_encoder.image_size
        env = make(spec, actor.model.config.obs_dim, actor.model.config.action_dim, size)
        observe = episode_observer(spec, self.pixel_encoder)
        return record(actor, spec, env, seed, settings.video_every, observe)


def check_device(device: torch.device | str) -> None:
    """Refuse a device to compute on that is not there.

    Raises:
        ValueError: says which.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: a torch that was built for the CPU alone
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"`device` is {device}, but torch sees no such device here ({reason}). Use cpu.") from None


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number, numpy's and torch's too, as Python's.

    Raises:
        ValueError: it is none, or not from `least` to `most`; `name` is what it is called.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"`{name}` is {value!r}: expected a whole number.") from None
    if not least <= number <= most:
        raise ValueError(f"`{name}` is {number}: expected a whole number from {least} to {most}.")
    return number


def chosen_envs(envs: Sequence[int] | np.ndarray | int, num_envs: int) -> torch.Tensor:
    """Return the environments of these numbers, or of a mask (N,) bool, as (N,) bool.

    Raises:
        ValueError: there is no such environment, or these are no numbers.
    """
    numbers = np.atleast_1d(np.asarray(envs))
    if numbers.dtype == np.bool_ and numbers.shape == (num_envs,):
        return torch.from_numpy(numbers.copy())
    numbers = numbers if numbers.size else np.zeros(0, np.int64)
    whole = numbers.ndim == 1 and np.issubdtype(numbers.dtype, np.integer)
    if not whole or not ((numbers >= 0) & (numbers < num_envs)).all():
        raise ValueError(
            f"`envs` is {envs!r}: expected a list of numbers from 0 to {num_envs - 1}, or {num_envs} times True or "
            "False."
        )
    chosen = torch.zeros(num_envs, dtype=torch.bool)
    chosen[torch.from_numpy(numbers.astype(np.int64))] = True
    return chosen


def check_obs(
    obs: np.ndarray, batch: np.ndarray, specs: Sequence[TaskSpec | None], widest: int, num_envs: int
) -> list[int]:
    """Refuse observations that do not fit, and return how many values each environment observes.

    Args:
        obs: as they were given.
        batch: the same as (N, o).
        specs: the task of each, None where it is not known.
        widest: O, what the model takes.
        num_envs: N, how many environments there are.

    Raises:
        ValueError: shape, number of environments or values are not what was expected.
    """
    known = {spec.name: spec.obs_dim for spec in specs if spec}
    least = max(known.values(), default=1)
    wanted = range(least, widest + 1) if None in specs else (least, widest)
    if obs.ndim not in (1, 2) or batch.shape[1] not in wanted:
        what = f"{least} to {widest}" if None in specs else f"{least} (or {widest}, zero-padded)"
        raise ValueError(f"`obs` has the shape {obs.shape}; expected {what} values, for one environment or (N, ...).")
    if len(batch) != num_envs:
        raise ValueError(
            f"`obs` is of {len(batch)} environments, but the agent was reset for {num_envs}: call "
            f"`agent.reset(num_envs={len(batch)})` when their episodes begin."
        )
    if not np.isfinite(batch).all():
        raise ValueError("`obs` holds values that are not finite (NaN or infinity).")
    widths = [spec.obs_dim if spec else batch.shape[1] for spec in specs]
    for spec, row, width in zip(specs, batch, widths, strict=True):
        if spec and row[width:].any():
            raise ValueError(f"`obs` holds more than the {width} values of {spec.name}: beyond them it must be zero.")
    return widths
