"""The past steps that a model with history reads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Past(NamedTuple):
    """The W steps before the present of each of B episodes, the newest last."""

    obs: Tensor  # (W, B, O) float32, zero-padded
    action: Tensor  # (W, B, A) float32, what was executed at each
    length: Tensor  # (B,) int64 in [0, W], how many of the newest are of this episode; the others count for nothing
