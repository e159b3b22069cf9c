"""A frozen image encoder: any image model that `transformers.AutoModel` builds, by name.

Images arrive in the size that the simulator drew them in: nothing is resized, the model takes `vision.size` pixels.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.files import read_json, sha256
from pipeline.pixels.autoencoder import Autoencoders, is_autoencoder, load_autoencoders
from pipeline.run.cores import one_thread_by_default

FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


class FrozenEncoder:
    """A frozen map from images to vectors.

    A vector is the model's pooled output (DINOv2: its class token after the last norm), or the mean over its last
    tokens where it has none; of our own autoencoder, the probabilities of its classes. Equal images give equal
    vectors in calls of equal size.

    Args:
        name: a Hub id, with `@<commit>` for a certain one, or a folder.
        size: pixels of an image's side.
        batch_size: images that go through the model at once.
        device: where to compute.

    Attributes:
        id: name and hash of the weights: equal ids and sizes mean the same vectors.
        dim: values of a vector.
        cluster: where each cluster of tasks has an encoder of its own, the number of each task's; else empty.

    Raises:
        OSError: the files are neither on this machine nor on the Hub.
        ValueError: the name or the files are not those of an image model, or it does not take images of this size.

    Source: Oquab et al., arXiv 2304.07193 (DINOv2).
    """

    def __init__(self, name: str, size: int, batch_size: int, device: torch.device | str = "cpu"):
        from transformers import AutoModel
        from transformers.utils import logging

        one_thread_by_default()
        folder = _find(name)
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ValueError(f"vision.encoder: {folder} holds no model.safetensors; other weights are not read.")
        logging.disable_progress_bar()  # a second's work needs no bar
        if is_autoencoder(folder):
            self._model: Any = load_autoencoders(folder, size).to(device)
            self.cluster = dict(self._model.cluster)
            self._mean, self._std = (torch.full((3,), value, dtype=torch.float32, device=device) for value in (0, 1))
        else:
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
            self._model = AutoModel.from_pretrained(folder, dtype=torch.float32, **local).eval().to(device)
            self._mean, self._std = (value.to(device) for value in _statistics(folder))
            self.cluster = {}
        self.name, self.size, self.device = name, size, torch.device(device)
        self._batch_size = batch_size
        self.id = f"{folder.name if Path(name).is_dir() else name.partition('@')[0]}@{sha256(weights)[:16]}"
        try:
            self.dim = self._encode(torch.zeros(1, size, size, 3, dtype=torch.uint8), torch.zeros(1).long()).shape[1]
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"vision.encoder {name} does not turn images of {size} x {size} pixels into vectors: {error}. It "
                "must be an image model, and vision.size one that it takes (224 for most; DINOv2: a multiple of 14)."
            ) from error

    def check(self, images: np.ndarray) -> None:
        """Refuse images that are not (n, size, size, 3) uint8.

        Raises:
            ValueError: says what was given and what is expected.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"expected images (n, {self.size}, {self.size}, 3) of uint8, got {images.shape} of {images.dtype}: "
                "draw them in the size of vision.size."
            )

    def encode(self, images: np.ndarray, cluster: np.ndarray | None = None) -> np.ndarray:
        """Encode images.

        Args:
            images: (n, size, size, 3) uint8 RGB, upright.
            cluster: (n,) int64, of each image's task, where clusters have encoders of their own; None for 0.

        Returns:
            (n, dim) float32.

        Raises:
            ValueError: the images have another form.
        """
        self.check(images)
        if not len(images):
            return np.zeros((0, self.dim), np.float32)
        own = torch.zeros(len(images)).long() if cluster is None else torch.from_numpy(cluster)
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(self._batch_size)
        pairs = zip(parts, own.split(self._batch_size), strict=True)
        return np.concatenate([self._encode(part, numbers).cpu().numpy() for part, numbers in pairs])

    @torch.inference_mode()
    def _encode(self, images: Tensor, cluster: Tensor) -> Tensor:
        pixels = (images.to(self.device).float() / 255 - self._mean) / self._std
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
        if isinstance(self._model, Autoencoders):
            return self._model(pixels, cluster.to(self.device))
        out = self._model(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled.reshape(len(images), -1)


def _find(name: str) -> Path:
    """Return the folder of the model: the one that `name` is, or one in the Hub's cache, downloaded if need be."""
    if name and Path(name).is_dir():
        return Path(name).resolve()
    model, _, revision = name.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        raise ValueError(
            f"vision.encoder is {name!r}: expected a Hub id such as facebook/dinov2-base, with @<commit> for a certain "
            "one, or an existing folder that holds a transformers image model."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's

    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=FILES))
    except (OSError, ValueError, HTTPError) as error:
        raise OSError(
            f"the image encoder {name} is neither in the Hub's cache nor to be had from the Hub: "
            f"{str(error).splitlines()[0]} Connect to the network, set HF_HOME to a cache that holds it, name a folder "
            "in vision.encoder, or set vision.observe to `state`."
        ) from None


def _statistics(folder: Path) -> tuple[Tensor, Tensor]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"vision.encoder: {folder} has no preprocessor_config.json, so it is no image model.")
    content = read_json(path, "whoever published the encoder")
    try:
        mean, std = (
            torch.tensor([float(v) for v in content[key]], dtype=torch.float32) for key in ("image_mean", "image_std")
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: `image_mean` and `image_std` are not three numbers: {json.dumps(content)[:200]}"
        ) from None
    if mean.shape != (3,) or std.shape != (3,) or not (std > 0).all():
        raise ValueError(f"{path}: `image_mean` and `image_std` must be three numbers each, std above 0.")
    return mean, std
