"""A categorical autoencoder of images: convolutions, groups of one-hot codes, and back; learned from frames alone.

An image becomes `groups` categorical variables of `classes` each. The decoder sees a one-hot sample of them, whose
gradient passes straight through to the probabilities; what is observed of an image are the probabilities themselves,
so that equal images are observed as equal.

Source: DreamerV2 (arXiv 2010.02193) for the latent and its straight-through gradient, DreamerV3 (arXiv 2301.04104) for
the uniform mix; Mixture-of-World Models (arXiv 2602.01270) for 32 x 32 of them on images of 64 x 64, and for one
autoencoder per cluster of tasks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import config
from pipeline.files import read_json, write_json

MODEL_TYPE = "eft-categorical-autoencoder"
_INNER_SIZE = 4  # side of the innermost feature map


class Losses(NamedTuple):
    """Losses on a batch of images."""

    total: Tensor  # () weighted sum
    reconstruction: Tensor  # () half the square error, summed over an image, in units of an image's std of 1
    kl: Tensor  # () nats over all groups, of the probabilities from the uniform distribution


class Autoencoder(nn.Module):
    """Images (n, 3, S, S) in [0, 1] to probabilities (n, groups, classes), and one-hot codes back to images.

    Args:
        size: S, a power of 2 from 16 on.
        settings: sizes and coefficients.
    """

    def __init__(self, size: int, settings: config.Autoencoder):
        super().__init__()
        self.size, self.settings = size, settings
        depth = int(math.log2(size // _INNER_SIZE))
        widths = [settings.width * 2**level for level in range(depth)]
        code, self._inner = settings.groups * settings.classes, (widths[-1], _INNER_SIZE, _INNER_SIZE)
        # Each layer of the encoder halves the side and doubles the width, down to an inner map; the decoder mirrors it.
        down: list[nn.Module] = []
        for before, after in itertools.pairwise([3, *widths]):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(1, after), nn.SiLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(self._inner), code))
        up: list[nn.Module] = [nn.Linear(code, math.prod(self._inner)), nn.Unflatten(1, self._inner)]
        for before, after in itertools.pairwise([*reversed(widths), 3]):
            up += [nn.GroupNorm(1, before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*up)

    @property
    def dim(self) -> int:
        """Values of an image's vector."""
        return self.settings.groups * self.settings.classes

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class of each group, (n, groups, classes)."""
        logits = self.encoder(images - 0.5).view(len(images), self.settings.groups, self.settings.classes)
        mix = self.settings.uniform_mix
        return (1 - mix) * logits.softmax(-1) + mix / self.settings.classes

    def sample(self, probabilities: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a one-hot code (n, groups, classes), through which gradients reach the probabilities."""
        # Straight through: the value is the one-hot draw, the gradient is that of the probabilities.
        drawn = torch.multinomial(probabilities.detach().flatten(0, 1).cpu(), 1, generator=generator)
        code = F.one_hot(drawn.view(probabilities.shape[:-1]), self.settings.classes).to(probabilities)
        return code + probabilities - probabilities.detach()

    def decode(self, code: Tensor) -> Tensor:
        """Return images (n, 3, S, S) of codes (n, groups, classes)."""
        return self.decoder(code.flatten(1)) + 0.5

    def losses(self, images: Tensor, generator: torch.Generator) -> Losses:
        """Return the losses on images (n, 3, S, S) in [0, 1]."""
        probabilities = self.probabilities(images)
        error = self.decode(self.sample(probabilities, generator)) - images
        reconstruction = 0.5 * error.square().flatten(1).sum(1).mean()
        # The divergence from the uniform distribution is the largest entropy, less that of the probabilities.
        entropy = -(probabilities * probabilities.log().clamp(min=-100)).sum((1, 2)).mean()
        kl = self.settings.groups * math.log(self.settings.classes) - entropy
        return Losses(reconstruction + self.settings.kl_coef * kl, reconstruction, kl)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images (n, 3, S, S) by way of the most probable code, in [0, 1]."""
        likely = self.probabilities(images).argmax(-1)
        return self.decode(F.one_hot(likely, self.settings.classes).to(images)).clamp(0, 1)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the vectors (n, groups x classes) of images (n, 3, S, S) in [0, 1]."""
        return self.probabilities(pixel_values).flatten(1)


class Autoencoders(nn.Module):
    """One autoencoder for all tasks, or one per cluster of tasks.

    Args:
        size: as of `Autoencoder`.
        settings: as of `Autoencoder`.
        cluster: the number of each task's own, from 0 on; empty where all tasks share the only one.
    """

    def __init__(self, size: int, settings: config.Autoencoder, cluster: Mapping[str, int] | None = None):
        super().__init__()
        self.size, self.settings, self.cluster = size, settings, dict(cluster or {})
        count = max(self.cluster.values(), default=0) + 1
        self.members = nn.ModuleList(Autoencoder(size, settings) for _ in range(count))

    def member(self, number: int) -> Autoencoder:
        """Return the autoencoder of a cluster."""
        found = self.members[number]
        assert isinstance(found, Autoencoder)
        return found

    def for_task(self, task: str) -> Autoencoder:
        """Return the autoencoder that a task's images go through."""
        return self.member(self.cluster[task] if self.cluster else 0)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, cluster: Tensor) -> Tensor:
        """Return the vectors (n, groups x classes) of images (n, 3, S, S) in [0, 1], each by its cluster's (n,)."""
        present = cluster.unique().tolist()
        if len(present) == 1:
            return self.member(present[0])(pixel_values)
        found = pixel_values.new_empty(len(pixel_values), self.settings.groups * self.settings.classes)
        for number in present:
            rows = cluster == number
            found[rows] = self.member(number)(pixel_values[rows])
        return found

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
                  folder / "model.safetensors")  # fmt: skip
        write_json(
            folder / "config.json",
            {
                "model_type": MODEL_TYPE,
                "size": self.size,
                "autoencoder": dataclasses.asdict(self.settings),
                "cluster": self.cluster,
            },
        )


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder holds what `Autoencoders.save` writes, rather than a model of another kind."""
    path = folder / "config.json"
    content = read_json(path, "`dvc repro embed`") if path.is_file() else None
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def load_autoencoders(folder: Path, size: int) -> Autoencoders:
    """Read what `Autoencoders.save` wrote.

    Raises:
        ValueError: it is for images of another size, or its files do not belong together.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    content = read_json(path, "`dvc repro embed`")
    settings = config.parse(config.Autoencoder, content.get("autoencoder"), str(path))
    if content.get("size") != size:
        raise ValueError(f"{path} is of an autoencoder of {content.get('size')!r} pixels, vision.size is {size}.")
    cluster = content.get("cluster")
    numbers = sorted(set(cluster.values())) if isinstance(cluster, dict) else None
    if numbers is None or any(type(number) is not int for number in numbers) or numbers != list(range(len(numbers))):
        raise ValueError(f"{path}: `cluster` must number each task's cluster from 0 on, got {str(cluster)[:200]}.")
    try:
        state = load_file(weights)
        with torch.device("meta"):
            expected = {name: value.shape for name, value in Autoencoders(size, settings, cluster).state_dict().items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise ValueError("names or shapes of tensors differ")
    except (SafetensorError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"{weights} does not hold the weights that {path} describes: {error}.") from None
    model = Autoencoders(size, settings, cluster)
    model = model.float()  # whatever torch's default dtype is
    model.load_state_dict(state)
    return model.eval()
