"""What an agent observes of an image: the vector of a frozen encoder, beside the state or in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import config
from pipeline.pixels.encoder import FrozenEncoder

IMAGE_VECTORS = Path("datasets/picture_vectors")  # of the demonstrations' images, written by the stage `embed`
AUTOENCODER_FOLDER = IMAGE_VECTORS / config.AUTOENCODER  # where `embed` writes the autoencoder that it has trained


class PixelEncoder:
    """Turns images into vectors and puts them into observations.

    A task with a state of s values is observed as s + E values (`both`), or as E (`pictures`), E = `encoder.dim`.

    Args:
        encoder: turns images into vectors.
        observe: `both` or `pictures`.
    """

    def __init__(self, encoder: FrozenEncoder, observe: config.Observe):
        self.encoder, self.observe = encoder, observe
        self._cluster = dict(encoder.cluster)  # by task, those of `assign_nearest` included

    @property
    def image_size(self) -> int:
        """Pixels of an image's side."""
        return self.encoder.size

    def width(self, obs_dim: int) -> int:
        """Return how many values are observed of a task whose state has `obs_dim`."""
        return self.encoder.dim + (obs_dim if self.observe == "both" else 0)

    def assign_nearest(self, task: str, nearest: Callable[[str, Collection[str]], str]) -> None:
        """Give a new task the encoder of the nearest task that has one.

        Nothing is done where one encoder serves all tasks, or where the task has one already.

        Args:
            task: its name.
            nearest: given its name and the names of the tasks that have an encoder, returns one of these.
        """
        if self._cluster and task not in self._cluster:
            self._cluster[task] = self.encoder.cluster[nearest(task, self.encoder.cluster)]

    def forget(self, tasks: Collection[str]) -> None:
        """Forget which encoder was assigned to some tasks."""
        for task in tasks:
            self._cluster.pop(task, None)

    def cluster(self, task: str) -> int:
        """Return the number of the encoder that a task's images go through, 0 where one serves all.

        Raises:
            ValueError: the task has no encoder.
        """
        if self._cluster and task not in self._cluster:
            raise ValueError(
                f"{self.encoder.name} has an encoder per cluster of tasks and knows none for {task}: "
                "`PixelEncoder.assign_nearest` gives a new task that of the nearest one."
            )
        return self._cluster.get(task, 0)

    def encode(self, images: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
        """Return the vectors (n, E) of images (n, P, P, 3) uint8, each of the task named beside it."""
        return self.encoder.encode(images, np.array([self.cluster(task) for task in tasks], np.int64))

    def join(self, states: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return what is observed, (..., width), of states (..., s) and the vectors of their images (..., E)."""
        return np.concatenate([states, vectors], axis=-1) if self.observe == "both" else vectors

    def augment(self, obs: np.ndarray, obs_dims: Sequence[int], images: np.ndarray, tasks: Sequence[str]) -> None:
        """Encode images and put their vectors into padded states, in place.

        Args:
            obs: (n, O) float32, states zero-padded to O.
            obs_dims: width of each one's state.
            images: (n, P, P, 3) uint8, one for each state.
            tasks: the task of each.
        """
        for row, obs_dim, vector in zip(obs, obs_dims, self.encode(images, tasks), strict=True):
            observed = self.join(row[:obs_dim].copy(), vector)
            row[: len(observed)] = observed
            row[len(observed) :] = 0


def check_picture(
    pixel_encoder: PixelEncoder | None, picture: np.ndarray | None, num_envs: int, obs_dim: int, widest: int
) -> np.ndarray | None:
    """Return the `picture` that was given to `Agent.act` as images (N, P, P, 3); None for an agent of states alone.

    Args:
        pixel_encoder: the agent's.
        picture: (P, P, 3) or (N, P, P, 3), as it was given.
        num_envs: N, how many environments the agent acts in.
        obs_dim: width of the state.
        widest: O, what the model takes.

    Raises:
        ValueError: it is missing or not asked for, of another form or number, or its vector does not fit in.
    """
    if pixel_encoder is None:
        if picture is not None:
            raise ValueError(
                "this agent observes states alone: leave out `picture`, or load an agent that observes images."
            )
        return None
    if picture is None:
        raise ValueError("this agent observes images beside or in place of the state: give `picture`.")
    if pixel_encoder.width(obs_dim) > widest:
        raise ValueError(
            f"a state of {obs_dim} and an image's vector of {pixel_encoder.encoder.dim} values do not fit into the "
            f"{widest} that this agent observes: give the state without padding."
        )
    images = picture if picture.ndim == 4 else picture[None]
    if len(images) != num_envs:
        raise ValueError(f"`picture` is of {len(images)} environments, `obs` of {num_envs}.")
    pixel_encoder.encoder.check(images)
    return images


def load_pixel_encoder(vision: config.Vision, device: torch.device | str) -> PixelEncoder | None:
    """Return what the parameters ask for, None where the state is all that is observed."""
    if vision.observe == "state":
        return None
    encoder = str(AUTOENCODER_FOLDER) if vision.encoder == config.AUTOENCODER else vision.encoder
    return PixelEncoder(FrozenEncoder(encoder, vision.size, vision.batch_size, device), vision.observe)
