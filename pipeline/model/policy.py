"""The policy prior: a Gaussian squashed by tanh, over the real action dims of each task."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """What the policy says at some latents; padded action dims are 0 in `mean`, `log_std`, `noise` and `action`.

    Entropies are computed when asked for: acting needs none.
    """

    mean: Tensor  # (..., A) before the squashing
    log_std: Tensor  # (..., A)
    noise: Tensor  # (..., A) standard normal, or 0 for the mode
    action: Tensor  # (..., A) = tanh(mean + noise exp(log_std)), in [-1, 1]
    num_dims: Tensor  # (B,) real action dims, broadcasts against (...)

    @property
    def entropy(self) -> Tensor:
        """(...) single-sample estimate of the entropy, nats."""
        return -self._log_probs[1]

    @property
    def scaled_entropy(self) -> Tensor:
        """(...) entropy scaled by the number of real action dims, as the method weighs it.

        Source: Newt (arXiv 2511.19584); with g the Gaussian and l the squashed log-probability, -l g n / (l + 1e-8).
        """
        gaussian, squashed = self._log_probs
        return -squashed * (gaussian * self.num_dims) / (squashed + 1e-8)

    @property
    def _log_probs(self) -> tuple[Tensor, Tensor]:
        gaussian = (-0.5 * self.noise**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return gaussian, gaussian - torch.log(torch.relu(1 - self.action**2) + 1e-6).sum(-1)


def squashed_gaussian(
    raw: Tensor, action_mask: Tensor, noise: Tensor | None, log_std_min: float, log_std_max: float
) -> Policy:
    """Turn the policy head's output into a policy.

    Args:
        raw: (..., 2 A) mean and raw log-std.
        action_mask: (B, A) 1 on real action dims; broadcasts against (..., A).
        noise: (..., A) standard normal draws; None for the mode.
        log_std_min: lower bound of log_std.
        log_std_max: upper bound of log_std.
    """
    mean, log_std = raw.chunk(2, dim=-1)
    mean = mean * action_mask
    log_std = (log_std_min + 0.5 * (log_std_max - log_std_min) * (log_std.tanh() + 1)) * action_mask
    if noise is None:
        noise, action = torch.zeros_like(mean), mean.tanh()
    else:
        noise = noise * action_mask
        action = torch.tanh(mean + noise * log_std.exp())
    return Policy(mean, log_std, noise, action, action_mask.sum(-1))
