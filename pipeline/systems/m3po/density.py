"""How likely an executed action was: under the policy, and under the plan that made it.

A plan adds Gaussian noise to one of its elites and clamps, so that part of its actions lies at -1 or 1 exactly. There a
policy squashed by tanh has no mass: with densities alone, the ratio of policy to plan would be 0, and nothing would be
learned at the bounds, where many tasks are solved. Both are therefore measured after the same rounding, per action dim:
everything beyond `EDGE` counts as one outcome, with the probability of all of it; between the edges it is the density.
The ratio of two such numbers is an exact importance weight for whatever does not tell apart actions beyond an edge.

Per action, a log-probability is the sum over the real action dims. What a plan searched before (which samples became
elites) is taken as given. Weights by that conditional density are unbiased too, since acting itself averages over
searches.

Source: M3PO (arXiv 2506.21782) for the clipped ratio; the density of a plan and the edges are our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.model.math import Policy

EDGE = 0.99  # beyond it, an action counts as one at the bound
_EDGE_BEFORE_TANH = math.atanh(EDGE)
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def policy_log_prob(policy: Policy, action: Tensor, action_mask: Tensor) -> Tensor:
    """Return the log-probability (...) of actions under the policy, differentiable by its mean and log_std.

    Args:
        policy: at (...) latents; its own action and noise do not matter.
        action: (..., A) in [-1, 1].
        action_mask: (..., A) 1 on real action dims.
    """
    inner = action.clamp(-EDGE, EDGE)
    squashing = torch.log1p(-inner.square())
    within = _gaussian(inner.atanh(), policy.mean, policy.log_std) - squashing
    beyond = _beyond(action.sign() * policy.mean, policy.log_std, _EDGE_BEFORE_TANH)
    return (torch.where(action.abs() < EDGE, within, beyond) * action_mask).sum(-1)


def plan_log_prob(elites: Tensor, weights: Tensor, std: Tensor, action: Tensor, action_mask: Tensor) -> Tensor:
    """Return the log-probability (N,) of a plan's actions: an elite, drawn by weight, plus noise, clamped.

    Args:
        elites: (E, N, A) first actions of the elites, in [-1, 1].
        weights: (E, N) that sum to 1 over E.
        std: (N, A) of the noise; 0 on padded dims.
        action: (N, A) what was executed.
        action_mask: (N, A) 1 on real action dims.
    """
    log_std = std.where(action_mask.bool(), 1.0).log()
    within = _gaussian(action, elites, log_std)
    beyond = _beyond(action.sign() * elites, log_std, EDGE)
    of_elite = (torch.where(action.abs() < EDGE, within, beyond) * action_mask).sum(-1)  # (E, N)
    return (weights.log() + of_elite).logsumexp(0)


def _gaussian(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) * (-log_std).exp()).square() - log_std - _LOG_SQRT_2PI


def _beyond(mean: Tensor, log_std: Tensor, edge: float) -> Tensor:
    """Return the log-probability that a Gaussian exceeds an edge."""
    # The derivative of torch's log_ndtr is wrong from about -1e3 on and then NaN; at -100 the probability is 0 anyway.
    return torch.special.log_ndtr(((mean - edge) * (-log_std).exp()).clamp(min=-100))
