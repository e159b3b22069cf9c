"""The formulas of M3PO's policy step: generalised advantages, the bonus of disagreement, the clipped ratio.

Source: M3PO (arXiv 2506.21782), building on PPO (arXiv 1707.06347), GAE (arXiv 1506.02438) and POME (arXiv 1811.07350).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A plan may take actions that the policy almost never takes, and the other way round: no ratio above e^10.
_MAX_LOG_RATIO = 10.0


def generalised_advantages(
    reward: Tensor, value: Tensor, length: Tensor, terminated: Tensor, discount: Tensor, gae_lambda: float
) -> Tensor:
    """Return the advantages (L, n) of n whole episodes that are padded at their ends to L steps; 0 on the padding.

    With delta_t = r_t + gamma V_{t+1} - V_t, they are the sums of (gamma lambda)^k delta_{t+k} up to the episode's end.
    After the last step of an episode that terminated, the value is 0. An episode that was truncated bootstraps from the
    value of its last observation.

    Args:
        reward: (L, n)
        value: (L + 1, n) of every observation.
        length: (n,) int64, steps of each episode.
        terminated: (n,) bool, whether it ended for good.
        discount: (n,) gamma.
        gae_lambda: in [0, 1]; 0 looks one step ahead, 1 to the end.
    """
    steps = torch.arange(len(reward), device=reward.device).unsqueeze(1)
    goes_on = 1 - ((steps == length - 1) & terminated).to(value.dtype)
    delta = (reward + discount * goes_on * value[1:] - value[:-1]).where(steps < length, 0.0)
    advantage, following = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        following = delta[t] + discount * gae_lambda * following
        advantage[t] = following
    return advantage


def disagreement(
    reward: Tensor, next_value: Tensor, predicted_reward: Tensor, predicted_value: Tensor, discount: Tensor
) -> Tensor:
    """Return b = |(r + gamma V(h(s'))) - (r_hat + gamma V(d(z, a)))|, in units of reward; all are (S,).

    Where an episode ended for good, give both values as 0: only the rewards can disagree there.
    """
    return (reward - predicted_reward + discount * (next_value - predicted_value)).abs()


def with_bonus(
    advantage: Tensor, disagreement: Tensor, mean: Tensor, weight: float, limit: float | None = None
) -> Tensor:
    """Add the centred disagreement (S,) to advantages (S,).

    It is added to the advantage and not to the reward, because the values are learned from the tasks' rewards alone: no
    baseline would account for a bonus in the reward.

    Args:
        advantage: (S,)
        disagreement: (S,)
        mean: (S,) its mean, over the steps it is centred by.
        weight: beta.
        limit: largest centred disagreement, in units of each advantage's size; POME takes 1. None for no limit.
    """
    centred = disagreement - mean
    if limit is not None:
        widest = limit * advantage.abs()
        centred = torch.minimum(torch.maximum(centred, -widest), widest)
    return advantage + weight * centred


class ClippedLoss(NamedTuple):
    """PPO's clipped surrogate loss and its diagnostics."""

    total: Tensor  # (), a mean over steps
    ratio: Tensor  # () mean
    clip_fraction: Tensor  # () share of the steps whose ratio lies outside the clip
    approx_kl: Tensor  # () estimate of KL(what acted || policy), nats, at least 0


def clipped_loss(log_prob: Tensor, acted_log_prob: Tensor, advantage: Tensor, ratio: float) -> ClippedLoss:
    """Return -mean(min(w A, clip(w, 1 - ratio, 1 + ratio) A)), w the probability ratio of the policy to what acted.

    Args:
        log_prob: (S,) of the actions under the present policy; differentiable.
        acted_log_prob: (S,) under the plan or policy that acted.
        advantage: (S,) A
        ratio: how far w may lie from 1 before it is clipped.

    Source: PPO (arXiv 1707.06347); the KL divergence is estimated by w - 1 - ln w.
    """
    log_ratio = (log_prob - acted_log_prob).clamp(max=_MAX_LOG_RATIO)
    w = log_ratio.exp()
    loss = -torch.minimum(w * advantage, w.clamp(1 - ratio, 1 + ratio) * advantage).mean()
    w, log_ratio = w.detach(), log_ratio.detach()
    outside = ((w - 1).abs() > ratio).to(w.dtype)
    return ClippedLoss(loss, w.mean(), outside.mean(), (w - 1 - log_ratio).mean())
