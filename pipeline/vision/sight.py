"""What an agent observes that sees: the vectors of its pictures beside its state, or in its place."""

from __future__ import annotations

from collections.abc import Sequence
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

    def width(self, obs_dim: int) -> int:
        """Return how many values are observed of a task whose state has `obs_dim`."""
        return self.encoder.dim + (obs_dim if self.observe == "both" else 0)

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
