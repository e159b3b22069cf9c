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


def consistency_loss(z: Tensor, target: Tensor, weights: Tensor, each: bool = False) -> Tensor:
    """Mean square distance of predicted latents (T, B, Z) from encoded ones, weighted over time by `weights` (T,).

    With `each`, as in the losses below, one per slice (B,) instead of their mean.
    """
    square = (z - target).square()
    return weights @ (square.mean(2) if each else square.mean((1, 2)))


def scalar_loss(logits: Tensor, target: Tensor, bins: Tensor, weights: Tensor, each: bool = False) -> Tensor:
    """Soft cross-entropy of two-hot scalars: the reward's loss, and the value's as a mean over Q members.

    Args:
        logits: (T, B, K), or (M, T, B, K) for M heads with the same targets.
        target: (T, B) scalars.
        bins: (K,)
        weights: (T,)
        each: one per slice.
    """
    entropies = soft_cross_entropy(logits, locate(target, bins))  # (T, B) or (M, T, B)
    if each:
        return (weights @ entropies).view(-1, target.shape[1]).mean(0)
    return (entropies.mean(-1) @ weights).mean()


def termination_loss(logits: Tensor, terminated: Tensor, each: bool = False) -> Tensor:
    """Binary cross-entropy of predicted terminations (T, B), all steps alike; terminated is 1 at an episode's end.

    Source: TD-MPC2 (arXiv 2310.16828), the option `episodic` of its later release.
    """
    if each:
        return F.binary_cross_entropy_with_logits(logits, terminated, reduction="none").mean(0)
    return F.binary_cross_entropy_with_logits(logits, terminated)


def harmony_loss(each: Tensor, log_scale: Tensor) -> Tensor:
    """Weigh slices' losses by the learned scales s of their tasks: the mean of l / s + ln(1 + s), s = exp(log_scale).

    Every slice brings the term of its own task, so that the loss is a mean over slices like any other: it does not
    depend on how a batch is cut, a task counts by its share of the slices, and one without slices is left as it is.
    The scale of a task whose mean loss is L settles at -L / s^2 + 1 / (1 + s) = 0.

    Args:
        each: (B,) losses, positive.
        log_scale: (B,) of their tasks.

    Source: MoW (arXiv 2602.01270), sum_k L_k / s_k + ln(1 + s_k), there over tasks that are drawn alike.
    """
    return (each * (-log_scale).exp() + F.softplus(log_scale)).mean()


def task_id_loss(logits: Tensor, task: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of predicted task rows, and how often they are right.

    Args:
        logits: (T, B, n) over n tasks.
        task: (B,) the right rows.
        weights: (T,)

    Source: MoW (arXiv 2602.01270), task prediction.
    """
    entropies = F.cross_entropy(logits.movedim(-1, 1), task.expand(logits.shape[:2]), reduction="none")  # (T, B)
    return weights @ entropies.mean(1), (logits.argmax(-1) == task).float().mean()


def imitation_error(action: Tensor, expert_action: Tensor, action_mask: Tensor) -> Tensor:
    """Mean square error (T, B) over the real action dims; action and expert_action (T, B, A), action_mask (B, A)."""
    return ((action - expert_action).square() * action_mask).sum(-1) / action_mask.sum(-1)


class PolicyLoss(NamedTuple):
    """A loss of the policy and how far it is from what it imitates."""

    total: Tensor  # (), or (B,) where one per slice was asked for
    imitation: Tensor  # () mean square error, for the log


def bc_loss(
    policy: Policy,
    expert_action: Tensor,
    action_mask: Tensor,
    weights: Tensor,
    entropy_coef: float,
    imitation: Tensor,
    each: bool = False,
) -> PolicyLoss:
    """Behaviour cloning with an entropy bonus; its gradient flows into the latents.

    Args:
        policy: at latents 0 to T - 1, (T, B, ...).
        expert_action: (T, B, A)
        action_mask: (B, A)
        weights: (T,)
        entropy_coef: weight of the bonus.
        imitation: (B,) weight of each slice; 1 everywhere is the published loss.
        each: one per slice.
    """
    error = imitation * imitation_error(policy.action, expert_action, action_mask)
    loss = weights @ (error - entropy_coef * policy.scaled_entropy)
    return PolicyLoss((loss if each else loss.mean()) / len(weights), error.mean())


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
    climb: Tensor | None = None,
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
        climb: (B,) weight of the value in each slice; None, the published loss, is 1 everywhere.
    """
    error = imitation * imitation_error(policy.action[:-1], expert_action, action_mask)
    prior = (weights[:-1] @ error).mean()
    q_mean = q_mean if climb is None else climb * q_mean
    value = (weights @ (-entropy_coef * policy.scaled_entropy - q_mean / scale)).mean()
    return PolicyLoss(prior_coef * prior + value, prior)
