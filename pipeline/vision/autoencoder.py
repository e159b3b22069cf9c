"""A categorical autoencoder of pictures: convolutions, groups of one-hot codes, and back; learned from frames alone.

A picture becomes `groups` categorical variables of `classes` each. The decoder sees a one-hot sample of them, whose
gradient passes straight through to the probabilities; what is observed of a picture are the probabilities themselves,
so that equal pictures are observed as equal.

Source: DreamerV2 (arXiv 2010.02193) for the latent and its straight-through gradient, DreamerV3 (arXiv 2301.04104) for
the uniform mix; Mixture-of-World Models (arXiv 2602.01270) for 32 x 32 of them on pictures of 64 x 64.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
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
_SMALLEST = 4  # side of the innermost feature map


class Losses(NamedTuple):
    """Losses on a batch of pictures."""

    total: Tensor  # () weighted sum
    reconstruction: Tensor  # () half the square error, summed over a picture, in units of a picture's std of 1
    kl: Tensor  # () nats over all groups, of the probabilities from the uniform distribution


class Autoencoder(nn.Module):
    """Pictures (n, 3, S, S) in [0, 1] to probabilities (n, groups, classes), and one-hot codes back to pictures.

    Args:
        size: S, a power of 2 from 16 on.
        settings: sizes and coefficients.
    """

    def __init__(self, size: int, settings: config.Autoencoder):
        super().__init__()
        self.size, self.settings = size, settings
        depth = int(math.log2(size // _SMALLEST))
        widths = [settings.width * 2**level for level in range(depth)]
        code, self._inner = settings.groups * settings.classes, (widths[-1], _SMALLEST, _SMALLEST)
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
        """Values of a picture's vector."""
        return self.settings.groups * self.settings.classes

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return the probability of each class of each group, (n, groups, classes)."""
        logits = self.encoder(pictures - 0.5).view(len(pictures), self.settings.groups, self.settings.classes)
        mix = self.settings.uniform_mix
        return (1 - mix) * logits.softmax(-1) + mix / self.settings.classes

    def sample(self, probabilities: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a one-hot code (n, groups, classes), through which gradients reach the probabilities."""
        drawn = torch.multinomial(probabilities.detach().flatten(0, 1).cpu(), 1, generator=generator)
        code = F.one_hot(drawn.view(probabilities.shape[:-1]), self.settings.classes).to(probabilities)
        return code + probabilities - probabilities.detach()

    def decode(self, code: Tensor) -> Tensor:
        """Return pictures (n, 3, S, S) of codes (n, groups, classes)."""
        return self.decoder(code.flatten(1)) + 0.5

    def losses(self, pictures: Tensor, generator: torch.Generator) -> Losses:
        """Return the losses on pictures (n, 3, S, S) in [0, 1]."""
        probabilities = self.probabilities(pictures)
        error = self.decode(self.sample(probabilities, generator)) - pictures
        reconstruction = 0.5 * error.square().flatten(1).sum(1).mean()
        entropy = -(probabilities * probabilities.log().clamp(min=-100)).sum((1, 2)).mean()
        kl = self.settings.groups * math.log(self.settings.classes) - entropy
        return Losses(reconstruction + self.settings.kl_coef * kl, reconstruction, kl)

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Return pictures (n, 3, S, S) by way of the most probable code, in [0, 1]."""
        likely = self.probabilities(pictures).argmax(-1)
        return self.decode(F.one_hot(likely, self.settings.classes).to(pictures)).clamp(0, 1)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the vectors (n, groups x classes) of pictures (n, 3, S, S) in [0, 1]."""
        return self.probabilities(pixel_values).flatten(1)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
                  folder / "model.safetensors")  # fmt: skip
        write_json(
            folder / "config.json",
            {"model_type": MODEL_TYPE, "size": self.size, "autoencoder": dataclasses.asdict(self.settings)},
        )


def is_autoencoder(folder: Path) -> bool:
    """Whether a folder holds what `Autoencoder.save` writes, rather than a model of another kind."""
    path = folder / "config.json"
    content = read_json(path, "`dvc repro embed`") if path.is_file() else None
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def load_autoencoder(folder: Path, size: int) -> Autoencoder:
    """Read what `Autoencoder.save` wrote.

    Raises:
        ValueError: it is for pictures of another size, or its files do not belong together.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    content = read_json(path, "`dvc repro embed`")
    settings = config.parse(config.Autoencoder, content.get("autoencoder"), str(path))
    if content.get("size") != size:
        raise ValueError(f"{path} is of an autoencoder of {content.get('size')!r} pixels, vision.size is {size}.")
    try:
        state = load_file(weights)
        with torch.device("meta"):
            expected = {name: value.shape for name, value in Autoencoder(size, settings).state_dict().items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise ValueError("names or shapes of tensors differ")
    except (SafetensorError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise ValueError(f"{weights} does not hold the weights that {path} describes: {error}.") from None
    model = Autoencoder(size, settings)
    model.load_state_dict(state)
    return model.eval()
