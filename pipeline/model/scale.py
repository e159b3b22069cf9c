"""The running scale of values, by which the policy loss divides Q."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningScale:
    """Running estimate of the range between the 5th and the 95th percentile, at least 1.

    Source: TD-MPC2 (arXiv 2310.16828), appendix; percentiles interpolate linearly between order statistics.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu"):
        self.tau = tau
        self.value = torch.ones(1, device=device)
        self._percentiles = torch.tensor([0.05, 0.95], device=device)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Move the estimate the fraction tau towards the range of `values` (any shape)."""
        low, high = torch.quantile(values.to(self.value.dtype).flatten(), self._percentiles)
        self.value.lerp_((high - low).clamp(min=1).reshape(1), self.tau)
