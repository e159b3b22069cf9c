"""What a GPU must be given so that the processor never waits for it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor onto a device. To a GPU it goes by pinned memory, and the call returns before it has arrived."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


_pretended = False


def launches(tensor: Tensor) -> bool:
    """Whether a tensor lies where every operation is launched, and few large ones are fastest: on a GPU.

    On a CPU, whose caches are small, many small ones are faster.
    """
    return _pretended or tensor.device.type != "cpu"


def pretend_to_launch(whether: bool) -> None:
    """Compute on the CPU by the operations that a GPU is given, to count and to test them where there is none."""
    global _pretended
    _pretended = whether


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Set a generator's state; that of a generator of another device seeds it, as its numbers are others anyway."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        generator.manual_seed(int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "little"))


def pretends() -> bool:
    """Whether `pretend_to_launch` is on."""
    return _pretended
