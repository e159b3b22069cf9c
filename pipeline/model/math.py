"""The formulas: two-hot scalars, the squashed Gaussian policy, the losses. Pure functions.

Shapes are time first, then the batch. `bins` is always the (K,) tensor of evenly spaced bin centres, in symlog units;
`weights` (T,) are those of a slice's steps (`step_weights`).

Source: Newt (arXiv 2511.19584), TD-MPC2 (arXiv 2310.16828); two-hot scalars: DreamerV3 (arXiv 2301.04104).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- scalars as distributions over bins ------------------------------------------------------------------------------


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Undo `symlog`: sign(x) (exp(|x|) - 1)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Symexp.apply(x)
    return x.abs().expm1().copysign(x)


class _Symexp(torch.autograd.Function):
    """`symexp` y with its derivative |y| + 1, which takes fewer operations than those of its parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.abs().expm1().copysign(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.addcmul(grad, grad, y.abs())


def locate(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Find the two bins around scalars.

    Args:
        x: (...) scalars; clamped to the outermost bins.
        bins: (K,)

    Returns:
        lower: (...) int64 in [0, K - 2], the bin below; the one above is lower + 1.
        weight: (...) in [0, 1], the share of the upper bin.
    """
    low, high = bins[0], bins[-1]
    # Dividing the whole width by K - 1 keeps the rounding error of a single bin centre out of the weight.
    position = (symlog(x).clamp(low, high) - low) / ((high - low) / (len(bins) - 1))
    lower = position.floor().clamp(0, len(bins) - 2)
    # A NaN gets a valid bin and the weight NaN, so that the loss shows it.
    return lower.nan_to_num(0).long(), position - lower


def two_hot(x: Tensor, bins: Tensor) -> Tensor:
    """Encode scalars (...) as (..., K): two neighbouring entries share the weight 1."""
    lower, weight = locate(x, bins)
    out = torch.zeros(*x.shape, len(bins), dtype=x.dtype, device=x.device)
    out.scatter_(-1, lower.unsqueeze(-1), 1 - weight.unsqueeze(-1))
    return out.scatter_(-1, lower.unsqueeze(-1) + 1, weight.unsqueeze(-1))


def decode(logits: Tensor, bins: Tensor) -> Tensor:
    """Turn logits (..., K) into scalars (...): softmax, expectation over the bins, symexp; in float32 always.

    In bfloat16 the numbers around symlog(300) lie 0.03 apart, so a value of 300 would be known to 2 %.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return symexp(logits.to(bins.dtype).softmax(-1) @ bins)


def soft_cross_entropy(logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of logits (..., K) against two-hot targets, without building the (..., K) targets.

    Args:
        logits: (..., K)
        target: what `locate` returned for scalars whose shape broadcasts to (...).

    Returns:
        (...): logsumexp(logits) minus the weighted mean of the two logits.
    """
    lower, weight = (part.expand(logits.shape[:-1]).unsqueeze(-1) for part in target)
    below, above = logits.gather(-1, lower), logits.gather(-1, lower + 1)
    return logits.logsumexp(-1) - torch.lerp(below, above, weight).squeeze(-1)


# --- the policy: a Gaussian squashed by tanh -------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """The policy at some latents. Padded action dims are 0 in `mean`, `log_std`, `noise` and `action`."""

    mean: Tensor  # (..., A) before tanh
    log_std: Tensor  # (..., A)
    noise: Tensor  # (..., A) standard normal, or 0 for the mode
    action: Tensor  # (..., A) = tanh(mean + noise exp(log_std)), in [-1, 1]
    num_dims: Tensor  # (n,) real action dims; broadcasts against (...)

    @property
    def entropy(self) -> Tensor:
        """(...) entropy estimated from one sample, nats."""
        return -self._log_probs[1]

    @property
    def scaled_entropy(self) -> Tensor:
        """(...) entropy scaled by the number of real action dims, as the loss weighs it.

        Source: Newt (arXiv 2511.19584); with g the Gaussian and l the squashed log-probability, -l g n / (l + 1e-8).
        """
        gaussian, squashed = self._log_probs
        return -squashed * (gaussian * self.num_dims) / (squashed + 1e-8)

    @cached_property
    def _log_probs(self) -> tuple[Tensor, Tensor]:
        gaussian = (-0.5 * self.noise**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return gaussian, gaussian - torch.log(torch.relu(1 - self.action**2) + 1e-6).sum(-1)


def squashed_gaussian(
    raw: Tensor, action_mask: Tensor, noise: Tensor | None, log_std_min: float, log_std_max: float
) -> Policy:
    """Turn the output of the policy head into a policy.

    Args:
        raw: (..., 2 A) mean and raw log-std.
        action_mask: (n, A) 1 on real action dims; broadcasts against (..., A).
        noise: (..., A) standard normal draws; None for the mode.
        log_std_min: lower bound of log_std.
        log_std_max: upper bound of log_std.
    """
    mean, log_std = raw.chunk(2, dim=-1)
    mean = mean * action_mask
    half = 0.5 * (log_std_max - log_std_min)
    log_std = (half * log_std.tanh() + (log_std_min + half)) * action_mask
    if noise is None:
        noise, action = torch.zeros_like(mean), mean.tanh()
    else:
        noise = noise * action_mask
        action = torch.addcmul(mean, noise, log_std.exp()).tanh()
    return Policy(mean, log_std, noise, action, action_mask.sum(-1))


# --- losses ----------------------------------------------------------------------------------------------------------


def step_weights(rho: float, horizon: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights (T + 1,) of a slice's steps: rho^t, normalised to sum 1.

    Losses over T steps use the first T without normalising again, so their weights sum to a little less than 1.
    """
    weights = rho ** torch.arange(horizon + 1, device=device, dtype=torch.get_default_dtype())
    return weights / weights.sum()


def td_target(reward: Tensor, terminated: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Return r + gamma (1 - terminated) V(next) for reward, terminated, next_value (T, B) and discount (B,)."""
    return reward + discount * (1 - terminated) * next_value


def consistency_loss(z: Tensor, target: Tensor, weights: Tensor, each: bool = False) -> Tensor:
    """Mean square distance of predicted latents (T, B, Z) from encoded ones, weighted over time by `weights` (T,).

    With `each`, here and in the losses below, one loss per slice (B,) instead of their mean.
    """
    square = (z - target).square()
    return weights @ (square.mean(2) if each else square.mean((1, 2)))


def scalar_losses(
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    bins: Tensor,
    weights: Tensor,
    each: bool = False,
    known: Tensor | None = None,
) -> list[Tensor]:
    """Soft cross-entropies of two-hot scalars: the reward's loss, and the value's as a mean over Q members.

    Args:
        logits: of several scalars: (T, B, K) each, or (M, T, B, K) for M heads with the same target.
        targets: (T, B) each.
        bins: (K,)
        weights: (T,)
        each: one loss per slice.
        known: (B,) bool, the slices whose targets are known; the losses of the others are 0. None for all.
    """
    heads = [one if one.ndim == 4 else one.unsqueeze(0) for one in logits]
    counts = [len(one) for one in heads]
    target = torch.stack(list(targets))
    if known is not None:
        target = target.masked_fill(~known, 0.0)
    lower, weight = (
        torch.cat([one.expand(count, -1, -1) for one, count in zip(part.split(1), counts, strict=True)])
        for part in locate(target, bins)
    )
    entropies = soft_cross_entropy(torch.cat(heads), (lower, weight))  # (heads, T, B)
    if known is not None:
        entropies = entropies * known
    found = weights @ entropies if each else entropies.mean(-1) @ weights
    return [one.squeeze(0) if len(one) == 1 else one.mean(0) for one in found.split(counts)]


def termination_loss(logits: Tensor, terminated: Tensor, each: bool = False) -> Tensor:
    """Binary cross-entropy of predicted terminations (T, B), unweighted over time; terminated is 1 at a final step.

    Source: TD-MPC2 (arXiv 2310.16828), the option `episodic` of its later release.
    """
    if each:
        return F.binary_cross_entropy_with_logits(logits, terminated, reduction="none").mean(0)
    return F.binary_cross_entropy_with_logits(logits, terminated)


def imitation_error(action: Tensor, expert_action: Tensor, action_mask: Tensor) -> Tensor:
    """Mean square error (T, B) over the real action dims; action and expert_action (T, B, A), action_mask (B, A)."""
    return ((action - expert_action).square() * action_mask).sum(-1) / action_mask.sum(-1)


def bc_loss(policy: Policy, error: Tensor, weights: Tensor, entropy_coef: float, each: bool = False) -> Tensor:
    """Behaviour cloning with an entropy bonus; `error` (T, B) is the imitation error of the policy (T, B, ...)."""
    loss = weights @ (error - entropy_coef * policy.scaled_entropy)
    return (loss if each else loss.mean()) / len(weights)


@torch.no_grad()
def update_value_scale(scale: Tensor, values: Tensor, tau: float) -> None:
    """Move the value scale (1,) by the fraction tau towards the range of values (any shape), in place.

    The range is the 95th minus the 5th percentile, interpolated linearly, and at least 1. A NaN is a value that is not
    known: it does not count, and where none is known the scale stays as it is.

    Source: TD-MPC2 (arXiv 2310.16828), appendix.
    """
    if not values.numel():
        return
    # How many are known decides nothing that the processor would have to wait for: torch's own quantile would ask.
    ordered = values.to(scale.dtype).flatten().sort().values  # NaNs come last
    count = (~ordered.isnan()).sum()
    place = torch.linspace(0.05, 0.95, 2, dtype=scale.dtype, device=scale.device) * (count - 1).clamp(min=0)
    below = place.floor()
    around = ordered[torch.stack([below, place.ceil()]).long()]
    low, high = torch.lerp(around[0], around[1], place - below).unbind()
    scale.copy_(torch.where(count > 0, torch.lerp(scale, (high - low).clamp(min=1).reshape(1), tau), scale))
