"""Scalars as distributions over bins: symlog, two-hot targets, soft cross-entropy, decoding.

Source: DreamerV3 (arXiv 2301.04104), section "Learning from scalars"; TD-MPC2 (arXiv 2310.16828).
`bins` is everywhere the (K,) tensor of evenly spaced bin centres, in symlog units.
"""

from __future__ import annotations

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undo `symlog`: sign(x) (exp(|x|) - 1)."""
    return x.sign() * x.abs().expm1()


def locate(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Find the two bins around scalars.

    Args:
        x: (...) scalars; beyond the outermost bins they count as those.
        bins: (K,)

    Returns:
        lower: (...) int64 in [0, K - 2], the bin below; the other one is the next.
        weight: (...) in [0, 1], the share of the upper bin.
    """
    low, high = bins[0], bins[-1]
    # Dividing by the whole width's share keeps the rounding of a single bin centre out of the weight.
    position = (symlog(x).clamp(low, high) - low) / ((high - low) / (len(bins) - 1))
    lower = position.floor().clamp(0, len(bins) - 2)
    # A scalar that is not a number gets a valid bin and a weight that is not a number: the loss shows it.
    return lower.nan_to_num(0).long(), position - lower


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Encode scalars (...) as (..., K), two neighbouring entries sharing the weight 1."""
    lower, weight = locate(x, bins)
    out = torch.zeros(*x.shape, len(bins), dtype=x.dtype, device=x.device)
    out.scatter_(-1, lower.unsqueeze(-1), 1 - weight.unsqueeze(-1))
    return out.scatter_(-1, lower.unsqueeze(-1) + 1, weight.unsqueeze(-1))


def decode(logits: Tensor, bins: Tensor) -> Tensor:
    """Turn logits (..., K) into scalars (...): softmax, expectation over bins, symexp."""
    return symexp(logits.softmax(-1) @ bins)


def soft_cross_entropy(logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of logits (..., K) against two-hot targets.

    Args:
        logits: (..., K)
        target: what `locate` returns for scalars whose shape broadcasts to (...): the targets of several heads are
            located once.

    Returns:
        (...): logsumexp(logits) minus the two logits, weighted. The (..., K) targets are never built.
    """
    lower, weight = (part.expand(logits.shape[:-1]).unsqueeze(-1) for part in target)
    below, above = logits.gather(-1, lower), logits.gather(-1, lower + 1)
    return logits.logsumexp(-1) - torch.lerp(below, above, weight).squeeze(-1)
