"""One function per loss, on slices of T steps; time first, then the batch.

Source: Newt (arXiv 2511.19584), building on TD-MPC2 (arXiv 2310.16828).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.policy import Policy
from pipeline.model.two_hot import locate, soft_cross_entropy


def rho_weights(rho: float, horizon: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the weights (T + 1,) of a slice's steps: rho^t, summing to 1 over all T + 1 of them.

    Losses over T steps use the first T as they are: these then sum to a little less than 1.
    """
    weights = torch.tensor([rho**t for t in range(horizon + 1)], device=device)
    return weights / weights.sum()


def td_target(reward: Tensor, terminated: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Return r + gamma (1 - terminated) V(next).

    Args:
        reward: (T, B)
        terminated: (T, B), 1 where no value follows.
        discount: (B,)
        next_value: (T, B)
    """
    return reward + discount * (1 - terminated) * next_value


def consistency_loss(z: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean square distance of predicted latents (T, B, Z) from encoded ones, weighted over time by `weights` (T,)."""
    return weights @ (z - target).square().mean((1, 2))


def scalar_loss(logits: Tensor, target: Tensor, bins: Tensor, weights: Tensor) -> Tensor:
    """Soft cross-entropy of two-hot scalars: the reward's loss, and the value's as a mean over Q members.

    Args:
        logits: (T, B, K), or (M, T, B, K) for M heads with the same targets.
        target: (T, B) scalars.
        bins: (K,)
        weights: (T,)
    """
    entropies = soft_cross_entropy(logits, locate(target, bins)).mean(-1)  # (T,) or (M, T)
    return (entropies @ weights).mean()


def termination_loss(logits: Tensor, terminated: Tensor) -> Tensor:
    """Binary cross-entropy of predicted terminations (T, B), all steps alike; terminated is 1 at an episode's end.

    Source: TD-MPC2 (arXiv 2310.16828), the option `episodic` of its later release.
    """
    return F.binary_cross_entropy_with_logits(logits, terminated)


def imitation_error(action: Tensor, expert_action: Tensor, action_mask: Tensor) -> Tensor:
    """Mean square error (T, B) over the real action dims; action and expert_action (T, B, A), action_mask (B, A)."""
    return ((action - expert_action).square() * action_mask).sum(-1) / action_mask.sum(-1)


class PolicyLoss(NamedTuple):
    """A loss of the policy and how far it is from what it imitates."""

    total: Tensor  # ()
    imitation: Tensor  # () mean square error, for the log


def bc_loss(
    policy: Policy,
    expert_action: Tensor,
    action_mask: Tensor,
    weights: Tensor,
    entropy_coef: float,
    imitation: Tensor,
) -> PolicyLoss:
    """Behaviour cloning with an entropy bonus; its gradient flows into the latents.

    Args:
        policy: at latents 0 to T - 1, (T, B, ...).
        expert_action: (T, B, A)
        action_mask: (B, A)
        weights: (T,)
        entropy_coef: weight of the bonus.
        imitation: (B,) weight of each slice; 1 everywhere is the published loss.
    """
    error = imitation * imitation_error(policy.action, expert_action, action_mask)
    loss = (weights @ (error - entropy_coef * policy.scaled_entropy)).mean() / len(weights)
    return PolicyLoss(loss, error.mean())


def policy_loss(
    policy: Policy,
    q_mean: Tensor,
    expert_action: Tensor,
    action_mask: Tensor,
    weights: Tensor,
    scale: Tensor,
    entropy_coef: float,
    prior_coef: float,
    imitation: Tensor,
) -> PolicyLoss:
    """Online policy loss: high value and entropy, near the actions that were taken.

    Args:
        policy: at latents 0 to T, (T + 1, B, ...).
        q_mean: (T + 1, B) value of the policy's actions.
        expert_action: (T, B, A)
        action_mask: (B, A)
        weights: (T + 1,)
        scale: (1,) running scale of values.
        entropy_coef: weight of the entropy.
        prior_coef: weight of the imitation.
        imitation: (B,) weight of each slice in it; 1 everywhere is the published loss.
    """
    error = imitation * imitation_error(policy.action[:-1], expert_action, action_mask)
    prior = (weights[:-1] @ error).mean()
    value = (weights @ (-entropy_coef * policy.scaled_entropy - q_mean / scale)).mean()
    return PolicyLoss(prior_coef * prior + value, prior)
