"""What an agent observes that sees: the vectors of its pictures beside its state, or in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline import config
from pipeline.vision.encoder import PictureEncoder

LEARNED = Path("datasets/picture_vectors") / config.AUTOENCODER  # where the stage `embed` puts what it has learned


class Sight:
    """Puts the vectors of pictures into observations.

    A task with a state of s values is observed as s + E values (`both`), or as E (`pictures`), E = `encoder.dim`.

    Args:
        encoder: turns pictures into vectors.
        observe: `both` or `pictures`.
    """

    def __init__(self, encoder: PictureEncoder, observe: config.Observe):
        self.encoder, self.observe = encoder, observe
        self._cluster = dict(encoder.cluster)  # and that of tasks adopted since

    def width(self, obs_dim: int) -> int:
        """Return how many values are observed of a task whose state has `obs_dim`."""
        return self.encoder.dim + (obs_dim if self.observe == "both" else 0)

    def adopt(self, task: str, nearest: Callable[[str, Collection[str]], str]) -> None:
        """Let a task be seen as the nearest one is that the encoder was made for.

        Nothing is done where one encoder serves all tasks, or where it was made for this task too.

        Args:
            task: its name.
            nearest: given its name and those the encoder was made for, returns one of these.
        """
        if self._cluster and task not in self._cluster:
            self._cluster[task] = self.encoder.cluster[nearest(task, self.encoder.cluster)]

    def encode(self, pictures: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
        """Return the vectors (n, E) of pictures (n, S, S, 3) uint8, each of the task named beside it."""
        return self.encoder.encode(pictures, np.array([self.cluster(task) for task in tasks], np.int64))

    def cluster(self, task: str) -> int:
        """Return the number of the encoder that a task is seen by, 0 where one serves all.

        Raises:
            ValueError: the encoder was not made for the task, nor was the task adopted.
        """
        if self._cluster and task not in self._cluster:
            raise ValueError(
                f"{self.encoder.name} has an encoder per cluster of tasks and knows none for {task}: `Sight.adopt` "
                "gives a new task that of the nearest one."
            )
        return self._cluster.get(task, 0)

    def join(self, states: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Return what is observed, (..., width), of states (..., s) and the vectors of their pictures (..., E)."""
        return np.concatenate([states, vectors], axis=-1) if self.observe == "both" else vectors

    def look(self, obs: np.ndarray, obs_dims: Sequence[int], vectors: np.ndarray) -> None:
        """Turn padded states into padded observations, in place.

        Args:
            obs: (n, O) float32, states zero-padded to O.
            obs_dims: width of each one's state.
            vectors: (n, E) of their pictures.
        """
        for row, obs_dim, vector in zip(obs, obs_dims, vectors, strict=True):
            seen = self.join(row[:obs_dim].copy(), vector)
            row[: len(seen)] = seen
            row[len(seen) :] = 0


def load_sight(vision: config.Vision, device: torch.device | str) -> Sight | None:
    """Return what the parameters ask for, None where the state is all that is observed."""
    if vision.observe == "state":
        return None
    encoder = str(LEARNED) if vision.encoder == config.AUTOENCODER else vision.encoder
    return Sight(PictureEncoder(encoder, vision.size, vision.batch_size, device), vision.observe)
