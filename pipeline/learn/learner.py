"""One update, from top to bottom: targets, latent rollout, losses, step, target networks, policy, value scale.

Source: Newt (arXiv 2511.19584), building on TD-MPC2 (arXiv 2310.16828).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import Learning
from pipeline.learn.diagnosis import describe_not_finite
from pipeline.learn.extension import Extension, Extensions, Metrics
from pipeline.learn.optimizers import make_optimizers, rebuild_optimizers
from pipeline.model import math, products
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel, draw_members
from pipeline.run.ranks import Ranks
from pipeline.shapes import Batch

Mode = Literal["pretrain", "online"]
Loss = tuple[Tensor, Metrics]


class UpdateDraws(NamedTuple):
    """Everything random in one update, so that a test can give it."""

    phrasing: Tensor  # (B,) int64 in [0, P), the phrasing of its task's text that each slice is given
    td_noise: Tensor  # (T, B, A) standard normal, of the actions that TD targets evaluate
    td_members: tuple[int, int]  # target Q members whose minimum is taken
    policy_noise: Tensor  # (T + 1, B, A) standard normal, of the actions the policy is trained through
    policy_members: tuple[int, int]  # Q members whose mean the policy maximises

    @classmethod
    def sample(
        cls, batch: Batch, num_phrasings: int, num_q: int, generator: torch.Generator, members: Any = None
    ) -> UpdateDraws:
        """Draw for a batch, onto its device; `members`, if given, is the generator that all ranks draw Q members by."""
        (horizon, size, action_dim), device = batch.action.shape, batch.action.device
        normal = torch.randn(2 * horizon + 1, size, action_dim, generator=generator, device=generator.device).to(device)
        phrasing = torch.randint(num_phrasings, (size,), generator=generator, device=generator.device).to(device)
        td_members, policy_members = (draw_members(num_q, members or generator) for _ in range(2))
        return cls(phrasing, normal[:horizon], td_members, normal[horizon:], policy_members)

    def take(self, which: slice) -> UpdateDraws:
        """Return the draws of some of the slices."""
        noise = self.td_noise[:, which], self.policy_noise[:, which]
        return UpdateDraws(self.phrasing[which], noise[0], self.td_members, noise[1], self.policy_members)


class RateSchedule(NamedTuple):
    """What the learning rate follows from: warmed up over the first updates, cooled down at the end of the run."""

    lr: float  # Adam step size
    scale: float = 1.0  # of this phase
    warmup_updates: int = 0  # linear from 0
    cooldown: float = 0.0  # part of the run, at its end, over which the rate falls linearly to 0
    total: int = 1  # position at which the run ends


def learning_rate(rate: RateSchedule, updates: int, position: int, part: float = 1.0) -> float:
    """Return the learning rate of update number `updates` (from 0) at `position` of the run, for a part of the model.

    Source: the trapezoidal schedule, Hägele et al. (arXiv 2405.18392): where the rate stays constant to the end, the
    weights that are kept are one point of a noisy walk.
    """
    warmth = min(1.0, (updates + 1) / rate.warmup_updates) if rate.warmup_updates else 1.0
    left = min(1.0, (rate.total - position) / (rate.cooldown * rate.total)) if rate.cooldown else 1.0
    return rate.lr * (rate.scale * left) * part * warmth


class Learner:
    """Owns what learning changes: the model, both optimisers, the value scale, the count of updates.

    Parameters with `requires_grad` are trained, all others stay as they are: with low-rank adapters injected and the
    base frozen, the adapters alone move. Put adapters in (and call `model.sync_target()`) before making a learner.

    Args:
        model: the world model, on its device.
        table: the tasks that batches point into, on the same device.
        learning: coefficients and optimiser settings.
        warmup_updates: linear warm-up of the learning rate.
        ranks: the processes that gradients are averaged over; None for one.
        mode: how products are computed.
        accumulate: pieces that a batch is computed in, one after the other, for one update in less memory.
        extensions: other systems' parts in learning.

    Attributes:
        rate, position: what the learning rate follows from; whoever runs the loop sets them.
        q_weight: (n,) weight of the value in each task's policy loss; None is 1 for all.
        value_scale: (1,) running range of values, by which the policy loss divides them.
    """

    def __init__(
        self,
        model: WorldModel,
        table: TaskTable,
        learning: Learning,
        warmup_updates: int = 0,
        ranks: Ranks | None = None,
        mode: products.Mode = "torch",
        accumulate: int = 1,
        extensions: Sequence[Extension] = (),
    ):
        sizes = (table.embeddings.shape[2], table.action_mask.shape[1])
        assert sizes == (model.config.task_dim, model.config.action_dim), f"the table is for {sizes}"
        self.model, self.table, self.learning = model, table, learning
        self.mode: products.Mode = mode
        self.ranks, self.accumulate, self.extensions = ranks or Ranks(), accumulate, Extensions(extensions)
        self.rate, self.position = RateSchedule(learning.lr, warmup_updates=warmup_updates), 0
        self.updates = 0
        self.q_weight: Tensor | None = None
        self.value_scale = torch.ones(1, device=model.bins.device)
        for extension in self.extensions:
            extension.attach(self)
        self.optimizers = make_optimizers(model, learning, self.extensions)

    # --- one update ---------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, mode: Mode, draws: UpdateDraws | torch.Generator) -> Metrics:
        """Learn from one batch of slices.

        Args:
            batch: slices, on the model's device; this process's share of the whole batch.
            mode: "pretrain" imitates the expert within the model's loss; "online" trains the policy on its own.
            draws: the update's random numbers, or the generator to draw them from.

        Returns:
            metrics, as detached tensors.

        Raises:
            FloatingPointError: a loss or gradient is not finite; nothing was changed.
        """
        outside = batch.task[(batch.task < 0) | (batch.task >= len(self.table.names))]
        assert not len(outside), f"rows {outside.tolist()} of a table of {len(self.table.names)} tasks"
        if isinstance(draws, torch.Generator):
            draws = UpdateDraws.sample(batch, self.table.embeddings.shape[1], self.model.config.num_q, draws)
        pieces = [(batch.take(which), draws.take(which)) for which in self._pieces(len(batch.task))]
        batches = [piece for piece, _ in pieces]

        # The model takes a step: encoder, dynamics, reward, Q, and in pretraining the policy.
        bc_coef = self.learning.bc_coef if mode == "pretrain" else self.learning.online_bc_coef
        latents: list[Tensor] = []
        losses = (self.model_loss(*piece, bc_coef, latents) for piece in pieces)
        metrics = self.step(self.optimizers.model, self.optimizers.trained[mode], losses, batches)

        # The target networks follow.
        self.model.update_target(self.learning.tau)

        # The policy takes a step on the latents that the model's loss was computed at.
        if mode == "online" and self.optimizers.trained["policy"] and not self.extensions.acts_on_policy:
            values: list[Tensor] = []
            losses = (self.policy_loss(*piece, z, values) for piece, z in zip(pieces, latents, strict=True))
            metrics |= self.step(self.optimizers.policy, self.optimizers.trained["policy"], losses, batches, "policy_")

            # The value scale follows the range of the values.
            math.update_value_scale(self.value_scale, self.ranks.gather(torch.cat(values)), self.learning.tau)
            metrics["value_scale"] = self.value_scale.clone()

        self.updates += 1
        return metrics

    def model_loss(self, batch: Batch, draws: UpdateDraws, bc_coef: float, latents: list[Tensor]) -> Loss:
        """Return the model's loss on slices and its metrics; the latents (T + 1, B, Z) are appended to `latents`."""
        model, learning = self.model, self.learning
        ctx = model.context(self.table, batch.task, draws.phrasing, target_q=draws.td_members)
        weights = math.step_weights(learning.rho, len(batch.action), batch.obs.device)[:-1]

        # Targets: the latents that were really reached, and r + gamma times the smaller of two target Q there.
        with torch.no_grad():
            next_z = model.observed(batch.obs, batch.action, ctx, batch.past)
            next_action = model.policy(next_z, ctx, draws.td_noise).action
            next_value = math.decode(model.q(next_z, next_action, ctx, target=True), model.bins).amin(0)
            target = math.td_target(batch.reward, batch.terminated, ctx.discount, next_value)

        with self.extensions.recording():
            # Latent rollout: from the first observation on, the model follows the actions by itself.
            state, carry = model.begin(batch.obs[0], ctx, batch.past)
            states = [state]
            for action in batch.action:
                state, carry = model.next(state, action, ctx, carry)
                states.append(state)
            z, z_next = torch.stack(states[:-1]), torch.stack(states[1:])
            latents.append(torch.stack(states).detach())

            # Losses: consistency, reward, value; terminations and imitation where they are on.
            each = self.extensions.weighs  # one per slice, so that slices can be weighed
            reward, q, metrics = model.reward(z, batch.action, ctx), model.q(z, batch.action, ctx), {}
            parts = {
                "consistency_loss": math.consistency_loss(model.latent(z_next), model.latent(next_z), weights, each),
                "reward_loss": math.scalar_loss(reward, batch.reward, model.bins, weights, each),
                "value_loss": math.scalar_loss(q, target, model.bins, weights, each),
            }
            coefs = [learning.consistency_coef, learning.reward_coef, learning.value_coef]
            if model.termination_head is not None:
                end = model.termination(z_next, ctx)
                parts["termination_loss"] = math.termination_loss(end, batch.terminated, each)
                coefs.append(learning.termination_coef)
            if bc_coef:
                policy = model.policy(z, ctx, draws.policy_noise[:-1])
                error = batch.imitation * math.imitation_error(policy.action, batch.expert_action, ctx.action_mask)
                parts["bc_loss"] = math.bc_loss(policy, error, weights, learning.entropy_coef, each)
                metrics["imitation_error"] = error.detach().mean()
                coefs.append(bc_coef)
            per_slice = sum((c * part for c, part in zip(coefs, parts.values(), strict=True)), torch.zeros(()))
            total = self.extensions.weigh(per_slice, batch) if each else per_slice
        total, more = self.extensions.losses(total, (one.model_loss(z_next, batch, weights) for one in self.extensions))
        metrics |= {name: part.detach().mean() for name, part in parts.items()}
        return total, metrics | more | {"total_loss": total.detach()}

    def policy_loss(self, batch: Batch, draws: UpdateDraws, z: Tensor, values: list[Tensor]) -> Loss:
        """Return the online loss of the policy at latents z (T + 1, B, Z): high value and entropy, near what was done.

        Q is a judge here and does not move. The values (B,) of the first actions are appended to `values`.
        """
        model, learning = self.model, self.learning
        ctx = model.context(self.table, batch.task, draws.phrasing, q=draws.policy_members, target_q=())
        weights = math.step_weights(learning.rho, len(batch.action), z.device)
        with self.extensions.recording():
            policy = model.policy(z, ctx, draws.policy_noise)
        q = math.decode(model.q(z, policy.action, ctx), model.bins).mean(0)  # (T + 1, B)
        values.append(q[0].detach())
        error = batch.imitation * math.imitation_error(policy.action[:-1], batch.expert_action, ctx.action_mask)
        prior = (weights[:-1] @ error).mean()
        weighed = q if self.q_weight is None else self.q_weight[batch.task] * q
        value = (weights @ (-learning.entropy_coef * policy.scaled_entropy - weighed / self.value_scale)).mean()
        total, more = self.extensions.losses(
            learning.prior_coef * prior + value, (one.policy_loss(batch) for one in self.extensions)
        )
        return total, more | {
            "policy_loss": total.detach(),
            "imitation_error": prior.detach(),
            "policy_entropy": policy.entropy.detach().mean(),
            "policy_q": values[-1].mean(),
        }

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        losses: Iterable[Loss],
        pieces: Sequence[Any],
        prefix: str = "",
    ) -> Metrics:
        """Take one step on exactly `parameters`; `losses` computes the mean loss of one piece after the other.

        `pieces` are the batch of each loss, or the tasks (n,) of what else it is a mean over. Returns the metrics,
        averaged over pieces; gradient norm before clipping, with `prefix`, and learning rate among them.
        """
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.rate, self.updates, self.position, group["lr_scale"])
        sizes = [len(piece.task if isinstance(piece, Batch) else piece) for piece in pieces]
        size, metrics, total = sum(sizes), {}, torch.zeros((), device=self.model.bins.device)
        losses = iter(losses)
        for rows in sizes:
            with products.use(self.mode), self.ranks.autocast(), self._others_frozen(parameters):
                loss, found = next(losses)
            part = rows / max(size, 1)
            total = total + part * loss.detach()
            metrics = {name: metrics.get(name, 0) + part * value for name, value in found.items()}
            if parameters:  # there are none with, e.g., adapters on the policy alone, in online learning
                (part * loss).backward()
        norm = torch.zeros_like(total)
        if parameters:
            total = self.ranks.average_gradients(parameters, total, size)
            norm = nn.utils.clip_grad_norm_(parameters, self.learning.grad_clip_norm, foreach=True)
            if not torch.isfinite(total + norm):
                raise FloatingPointError(describe_not_finite(self, pieces, metrics, norm))
            optimizer.step()
        metrics[f"{prefix}grad_norm"] = norm
        return metrics | {"lr": norm.new_tensor(learning_rate(self.rate, self.updates, self.position))}

    def rebuild_optimizers(self, origins: dict[nn.Parameter, nn.Parameter] | None = None) -> None:
        """Train what has `requires_grad` now; `origins` says which new parameter is a copy of which old one."""
        self.optimizers = rebuild_optimizers(self.optimizers, self.model, self.learning, self.extensions, origins)

    def _pieces(self, size: int) -> list[slice]:
        """Return the slices of a batch of `size` that are computed one after the other, as equal as possible."""
        count = min(self.accumulate, size)
        ends = list(itertools.accumulate(size // count + (number < size % count) for number in range(count)))
        return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]

    @contextmanager
    def _others_frozen(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Compute a loss whose gradient reaches `parameters` alone: in the policy's step, that of Q is spared."""
        moving = set(parameters)
        others = [parameter for parameter in self.optimizers.trained["pretrain"] if parameter not in moving]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
