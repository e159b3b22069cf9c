"""What an update minimises: the model's losses on a batch of slices, and the policy's loss on the latents they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import Experts, Learning
from pipeline.model import losses
from pipeline.model.compute import PLAIN, Compute, compiled_whole
from pipeline.model.experts import Routing, balance_loss
from pipeline.model.q_ensemble import draw_members
from pipeline.model.task_table import TaskTable
from pipeline.model.task_terms import TaskTerms
from pipeline.model.two_hot import decode
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.shapes import Batch


class UpdateDraws(NamedTuple):
    """Everything random in one update, so that a test can give it."""

    phrasing: Tensor  # (B,) int64 in [0, P), which phrasing of its task's text each slice is told
    td_noise: Tensor  # (T, B, A) standard normal, of the actions that TD targets evaluate
    td_members: tuple[int, int]  # target Q members whose minimum is taken
    policy_noise: Tensor  # (T + 1, B, A) standard normal, of the actions the policy is trained through
    policy_members: tuple[int, int]  # Q members whose mean the policy climbs

    @classmethod
    def sample(
        cls,
        batch: Batch,
        num_phrasings: int,
        num_q: int,
        generator: torch.Generator,
        members: torch.Generator | None = None,
    ) -> UpdateDraws:
        """Draw for a batch; the tensors end up on its device, wherever the generator lives.

        `members`, if given, draws the Q members: processes that share a batch must take the same.
        """
        (horizon, size, action_dim), device = batch.action.shape, batch.action.device
        normal = torch.randn(2 * horizon + 1, size, action_dim, generator=generator, device=generator.device).to(device)
        phrasing = torch.randint(num_phrasings, (size,), generator=generator, device=generator.device).to(device)
        td_members, policy_members = (draw_members(num_q, members or generator) for _ in range(2))
        return cls(phrasing, normal[:horizon], td_members, normal[horizon:], policy_members)

    def split(self, sizes: Sequence[int]) -> list[UpdateDraws]:
        """Split along the batch into parts of `sizes` slices."""
        tensors = zip(
            self.phrasing.split(sizes), self.td_noise.split(sizes, 1), self.policy_noise.split(sizes, 1), strict=True
        )
        return [
            UpdateDraws(phrasing, td_noise, self.td_members, policy_noise, self.policy_members)
            for phrasing, td_noise, policy_noise in tensors
        ]


class ModelLosses(NamedTuple):
    """Losses of the world model on a batch, each before its coefficient, and the latents they were taken at."""

    total: Tensor  # () weighted sum
    consistency: Tensor  # ()
    reward: Tensor  # ()
    value: Tensor  # ()
    bc: Tensor | None  # (), where it is part of the total
    imitation: Tensor | None  # (), likewise: mean square error of the policy's actions, part of `bc`
    z: Tensor  # (T + 1, B, Z) without gradient; states where the backbone is shared
    chosen: dict[str, Tensor]  # by layer of experts, (rows, k): where rows went; row i is of slice i modulo B
    termination: Tensor | None = None  # (), where the model predicts terminations
    task_id: Tensor | None = None  # (), where tasks are predicted
    task_id_accuracy: Tensor | None = None  # () in [0, 1], likewise
    balance: Tensor | None = None  # (), where the model has experts: how unevenly they are used


class PolicyLosses(NamedTuple):
    """Loss of the policy at the latents of a batch."""

    total: Tensor  # ()
    imitation: Tensor  # () mean square error, weighted over time, before its coefficient
    entropy: Tensor  # () mean, nats
    q: Tensor  # (B,) value of the policy's action at the first latent
    chosen: dict[str, Tensor]  # as in `ModelLosses`
    balance: Tensor | None = None  # (), where the policy has experts: how unevenly they are used


def batch_context(
    model: WorldModel,
    table: TaskTable,
    task: Tensor,
    phrasing: Tensor,
    compute: Compute = PLAIN,
    q: Sequence[int] | None = None,
    target_q: Sequence[int] | None = None,
) -> TaskContext:
    """Condition the model on the texts of a batch, each different text once.

    Args:
        model: its weights must not change while the context is in use.
        table: tasks.
        task: (B,) rows of the table.
        phrasing: (B,) in [0, P).
        compute: how the networks are to be computed.
        q: the Q members that will be asked; None for all.
        target_q: the target Q members that will be asked; None for all.

    Returns:
        a context of B rows.
    """
    texts, rows = torch.unique(task * table.num_phrasings + phrasing, return_inverse=True)
    cluster = table.cluster[texts // table.num_phrasings]
    return model.context(table.embeddings.flatten(0, 1)[texts], compute, q, target_q, cluster).take(rows)


def model_losses(
    model: WorldModel,
    table: TaskTable,
    batch: Batch,
    draws: UpdateDraws,
    learning: Learning,
    bc_coef: float,
    compute: Compute = PLAIN,
    terms: TaskTerms | None = None,
) -> ModelLosses:
    """Compute consistency, reward and value losses, and, where there are any, terminations and behaviour cloning.

    All losses are means over slices, so that those of pieces of a batch, weighted by their sizes, average to its own.

    Args:
        model: the world model.
        table: tasks that `batch.task` points into.
        batch: slices.
        draws: random numbers.
        learning: the other coefficients.
        bc_coef: weight of behaviour cloning in the total; 0 leaves it out.
        compute: how the networks are to be computed.
        terms: weighs the tasks' losses and predicts tasks, where `learning` asks for that.
    """
    # The two target members go in as themselves and not as numbers, which a compiled function would be made anew for.
    ctx = batch_context(model, table, batch.task, draws.phrasing, compute, target_q=draws.td_members)
    weights = losses.rho_weights(learning.rho, len(batch.action), batch.obs.device)
    mask, discount = table.action_mask[batch.task], table.discount[batch.task]
    found = compiled_whole(_model_losses) if compute.compile else _model_losses
    noise = draws.td_noise, draws.policy_noise[:-1]
    return found(model, ctx, batch, discount, mask, *noise, weights, learning, bc_coef, terms)


def _model_losses(
    model: WorldModel,
    ctx: TaskContext,
    batch: Batch,
    discount: Tensor,
    mask: Tensor,
    td_noise: Tensor,
    policy_noise: Tensor,
    weights: Tensor,
    learning: Learning,
    bc_coef: float,
    terms: TaskTerms | None,
) -> ModelLosses:
    memory = model.remember(batch.past, ctx)
    with torch.no_grad():
        next_z = model.observed(batch.obs, batch.action, ctx, memory)
        next_action = model.policy(next_z, ctx, mask, td_noise).action
        next_logits = model.q(next_z, next_action, ctx, target=True)
        next_value = decode(next_logits, model.bins).amin(0)
        target = losses.td_target(batch.reward, batch.terminated, discount, next_value)

    experts, notes = model.config.experts, {}
    if experts is not None:
        ctx, notes = ctx.noting()
    zs = [model.state(batch.obs[0], ctx, memory)]
    for action in batch.action:
        z, memory = model.advance(zs[-1], action, ctx, memory)
        zs.append(z)
    z, z_next = torch.stack(zs[:-1]), torch.stack(zs[1:])

    each = terms is not None and terms.log_scale is not None  # one loss per slice, to be weighed by its task
    consistency = losses.consistency_loss(model.latent(z_next), model.latent(next_z), weights[:-1], each)
    reward_logits = model.reward(z, batch.action, ctx)
    reward = losses.scalar_loss(reward_logits, batch.reward, model.bins, weights[:-1], each)
    q_logits = model.q(z, batch.action, ctx)
    value = losses.scalar_loss(q_logits, target, model.bins, weights[:-1], each)
    total = learning.consistency_coef * consistency + learning.reward_coef * reward + learning.value_coef * value
    bc = imitation = termination = task_id = accuracy = None
    if model.termination_head is not None:
        termination = losses.termination_loss(model.termination(z_next, ctx), batch.terminated, each)
        total = total + learning.termination_coef * termination
    if bc_coef:
        policy = model.policy(z, ctx, mask, policy_noise)
        bc, imitation = losses.bc_loss(
            policy, batch.expert_action, mask, weights[:-1], learning.entropy_coef, batch.imitation, each
        )
        total = total + bc_coef * bc
    if terms is not None and terms.log_scale is not None:
        total = losses.harmony_loss(total, terms.log_scale[batch.task])
        consistency, reward, value = consistency.mean(), reward.mean(), value.mean()
        termination, bc = (part if part is None else part.mean() for part in (termination, bc))
    # From here on the total is one number. What follows is no loss of a task, so no task's scale weighs it.
    if terms is not None and terms.identify is not None:
        # At what the dynamics predicted: its gradient reaches them and, through the first latent, the encoder.
        task_id, accuracy = losses.task_id_loss(terms.identify(model.latent(z_next)), batch.task, weights[:-1])
        total = total + learning.task_id_coef * task_id
    balance = None
    if experts is not None:
        balance = _balance(notes, experts, torch.zeros_like(total))
        total = total + experts.balance_coef * balance
    latents, chosen = torch.stack(zs).detach(), _chosen(notes)
    return ModelLosses(
        total, consistency, reward, value, bc, imitation, latents, chosen, termination, task_id, accuracy, balance
    )


def _balance(notes: dict[str, list[Routing]], experts: Experts, zero: Tensor) -> Tensor:
    """The balance losses of all layers that were called, added up: every router is to feel its own."""
    return sum((balance_loss(calls, experts) for calls in notes.values() if calls), start=zero)


def _chosen(notes: dict[str, list[Routing]]) -> dict[str, Tensor]:
    return {layer: torch.cat([call.chosen for call in calls]) for layer, calls in notes.items() if calls}


def policy_losses(
    model: WorldModel,
    table: TaskTable,
    batch: Batch,
    z: Tensor,
    draws: UpdateDraws,
    learning: Learning,
    scale: Tensor,
    compute: Compute = PLAIN,
    climb: Tensor | None = None,
) -> PolicyLosses:
    """Compute the online policy loss. Only the policy head is to be moved by it; Q is a judge here.

    Args:
        model: after the model's own step.
        table: tasks that `batch.task` points into.
        batch: slices.
        z: (T + 1, B, Z) latents from `model_losses`.
        draws: random numbers.
        learning: coefficients.
        scale: (1,) running scale of values.
        compute: how the networks are to be computed.
        climb: (B,) as of `losses.policy_loss`.
    """
    weights = losses.rho_weights(learning.rho, len(batch.action), z.device)
    mask = table.action_mask[batch.task]
    ctx = batch_context(model, table, batch.task, draws.phrasing, compute, q=draws.policy_members, target_q=())
    found = compiled_whole(_policy_losses) if compute.compile else _policy_losses
    return found(model, ctx, batch, z, mask, draws.policy_noise, weights, learning, scale, climb)


def _policy_losses(
    model: WorldModel,
    ctx: TaskContext,
    batch: Batch,
    z: Tensor,
    mask: Tensor,
    noise: Tensor,
    weights: Tensor,
    learning: Learning,
    scale: Tensor,
    climb: Tensor | None,
) -> PolicyLosses:
    experts, noting, notes = model.config.experts, ctx, {}
    if experts is not None:
        noting, notes = ctx.noting()
    policy = model.policy(z, noting, mask, noise)
    q_logits = model.q(z, policy.action, ctx)
    q_mean = decode(q_logits, model.bins).mean(0)
    loss = losses.policy_loss(
        policy,
        q_mean,
        batch.expert_action,
        mask,
        weights,
        scale,
        learning.entropy_coef,
        learning.prior_coef,
        batch.imitation,
        climb,
    )
    total, balance = loss.total, None
    if experts is not None and "policy" in notes:
        balance = _balance(notes, experts, torch.zeros_like(total))
        total = total + experts.balance_coef * balance
    entropy = policy.entropy.detach().mean()
    return PolicyLosses(total, loss.imitation, entropy, q_mean[0].detach(), _chosen(notes), balance)
