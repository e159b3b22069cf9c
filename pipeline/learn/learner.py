"""One update, from top to bottom: TD targets, latent rollout, losses, step, target networks, policy, value scale.

Source: Newt (arXiv 2511.19584), building on TD-MPC2 (arXiv 2310.16828).
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import Learning
from pipeline.learn.extension import Extension, Extensions, Metrics
from pipeline.learn.finite import FiniteWatch
from pipeline.learn.optimizers import make_optimizers, rebuild_optimizers
from pipeline.model import math, products
from pipeline.model.device import to_device
from pipeline.model.graphs import Graphs
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import TaskContext, WorldModel, draw_members
from pipeline.run.ranks import Ranks
from pipeline.shapes import Batch

Mode = Literal["pretrain", "online"]
Loss = tuple[Tensor, Metrics]
_log = logging.getLogger(__name__)


class UpdateDraws(NamedTuple):
    """All random numbers of one update, so that a test can fix them."""

    phrasing: Tensor  # (B,) int64 in [0, P), which phrasing of its task's text each slice is conditioned on
    td_noise: Tensor  # (T, B, A) standard normal, for the policy's actions in the TD targets
    td_members: tuple[int, int] | Tensor  # target Q members whose minimum is taken; or an index (2,) of them
    policy_noise: Tensor  # (T + 1, B, A) standard normal, for the actions that the policy losses differentiate
    policy_members: tuple[int, int] | Tensor  # Q members whose mean the policy maximises; or an index (2,)

    @classmethod
    def sample(
        cls, batch: Batch, num_phrasings: int, num_q: int, generator: torch.Generator, members: Any = None
    ) -> UpdateDraws:
        """Draw for a batch, onto its device; Q members from `members`, on the CPU and alike on all ranks."""
        (horizon, size, action_dim), device = batch.action.shape, batch.action.device
        at = generator.device
        normal = to_device(torch.randn(2 * horizon + 1, size, action_dim, generator=generator, device=at), device)
        phrasing = to_device(torch.randint(num_phrasings, (size,), generator=generator, device=at), device)
        td_members, policy_members = (draw_members(num_q, members or generator) for _ in range(2))
        return cls(phrasing, normal[:horizon], td_members, normal[horizon:], policy_members)

    def indexed(self) -> UpdateDraws:
        """Return the same with the Q members as indices on the noise's device: which they are fixes no operation."""
        if isinstance(self.td_members, Tensor):
            return self
        both = to_device(torch.tensor([self.td_members, self.policy_members]), self.td_noise.device)
        return self._replace(td_members=both[0], policy_members=both[1])

    def take(self, which: slice) -> UpdateDraws:
        """Return the draws of some of the slices."""
        noise = self.td_noise[:, which], self.policy_noise[:, which]
        return UpdateDraws(self.phrasing[which], noise[0], self.td_members, noise[1], self.policy_members)


class RateSchedule(NamedTuple):
    """Trapezoidal schedule of the learning rate: linear warm-up by updates, linear cooldown at the end of the run."""

    lr: float  # Adam step size
    scale: float = 1.0  # factor of this phase
    warmup_updates: int = 0  # linear from 0
    cooldown: float = 0.0  # fraction of the run, at its end, over which the rate falls linearly to 0
    total: int = 1  # position at which the run ends


def learning_rate(rate: RateSchedule, updates: int, position: int, part: float = 1.0) -> float:
    """Return the learning rate of update number `updates` (from 0); `part` is the `lr_scale` of a parameter group.

    Source: the trapezoidal schedule, Hägele et al. (arXiv 2405.18392); its cooldown averages out the updates' noise.
    """
    warmth = min(1.0, (updates + 1) / rate.warmup_updates) if rate.warmup_updates else 1.0
    left = min(1.0, (rate.total - position) / (rate.cooldown * rate.total)) if rate.cooldown else 1.0
    return rate.lr * (rate.scale * left) * part * warmth


class Learner:
    """Trains a world model: holds it with both optimisers, the value scale and the count of updates.

    Parameters with `requires_grad` are trained, all others stay as they are: with low-rank adapters injected and the
    base frozen, only the adapters are trained. Inject them (and call `model.sync_target()`) before making a learner.

    Args:
        model: the world model, on its device.
        table: the tasks that batches point into, on the same device.
        learning: coefficients and optimiser settings.
        warmup_updates: linear warm-up of the learning rate.
        ranks: the processes that gradients are averaged over; None for one.
        mode: library and precision of matrix products.
        accumulate: micro-batches per update (gradient accumulation), to save memory.
        extensions: what other systems add to the update.
        graphs: runs whole updates, on a GPU by CUDA graphs; None runs them as they are. What extensions add may depend
            on the data, so with any the update runs as it is.

    Attributes:
        rate, position: schedule of the learning rate, and how far the run is; the loop sets both.
        value_scale: range of Q values (5th to 95th percentile), by which the policy loss divides Q: (1,) a running one
            for all tasks (published), or (n,) of each task's returns, where these are the targets of Q.
        finite: sees to it that nothing is learned from a loss or gradient that is not finite.
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
        graphs: Graphs | None = None,
    ):
        sizes = (table.embeddings.shape[2], table.action_mask.shape[1])
        assert sizes == (model.config.task_dim, model.config.action_dim), f"the table is for {sizes}"
        self.model, self.table, self.learning = model, table, learning
        self.mode: products.Mode = mode
        self.ranks, self.accumulate, self.extensions = ranks or Ranks(), accumulate, Extensions(extensions)
        self.rate, self.position = RateSchedule(learning.lr, warmup_updates=warmup_updates), 0
        self.updates = 0
        self._q_weight: Tensor | None = None
        self.graphs = graphs
        if graphs is not None and extensions:
            _log.warning("updates run without CUDA graphs, slower: other systems than Newt take part in them")
            self.graphs = None
        scales = 1 if learning.value_target == "td" else len(table.names)
        self.value_scale = torch.ones(scales, device=model.bins.device)
        self.finite = FiniteWatch(model.bins.device)
        self._weights: dict[int, Tensor] = {}  # by horizon
        self._lr, self._written = torch.zeros((), device=model.bins.device), 0.0  # of this update, for the log
        for extension in self.extensions:
            extension.attach(self)
        self.optimizers = make_optimizers(model, learning, self.extensions)

    # --- one update ---------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, mode: Mode, draws: UpdateDraws | torch.Generator) -> Metrics:
        """Learn from one batch of slices.

        Args:
            batch: slices, on the model's device; this process's share of the whole batch.
            mode: "pretrain" clones the expert within the model's loss; "online" has a policy loss of its own, on Q.
            draws: the update's random numbers, or the generator to draw them from.

        Returns:
            metrics, as detached tensors.

        Raises:
            FloatingPointError: a loss or gradient is not finite. Nothing was changed; where it is the policy's own
                loss online, the model's step has been taken. On a GPU it comes some updates later, in which nothing
                was learned, and at the latest from `finite.settle`.
        """
        self.table.check(batch.task)
        if isinstance(draws, torch.Generator):
            draws = UpdateDraws.sample(batch, self.table.embeddings.shape[1], self.model.config.num_q, draws)
        self.set_rates()
        if self.graphs is None:
            metrics = self._learn(batch, draws, mode)
        else:
            sizes = tuple(self.ranks.collect(len(batch.task)))
            learn = functools.partial(self._learn, mode=mode)
            metrics = self.graphs.run((mode, sizes), learn, (batch, draws.indexed()), self._reads())
            self.finite.note(self, [batch], metrics)
        self.updates += 1
        return metrics

    def _learn(self, batch: Batch, draws: UpdateDraws, mode: Mode) -> Metrics:
        """Make one update; all that decides about shapes and operations is `mode` and sizes."""
        pieces = [(batch.take(which), draws.take(which)) for which in self._pieces(len(batch.task))]
        batches = [piece for piece, _ in pieces]

        # World model: one step on encoder, dynamics, reward and Q; in pretraining on the policy too.
        bc_coef = self.learning.bc_coef if mode == "pretrain" else self.learning.online_bc_coef
        latents: list[Tensor] = []
        losses = (self.model_loss(*piece, bc_coef, latents) for piece in pieces)
        metrics = self.step(self.optimizers.model, self.optimizers.trained[mode], losses, batches)

        # Target networks: an exponential moving average of Q.
        self.model.update_target(self.learning.tau)

        # Policy: one step, on the latents of the rollout above, detached.
        if mode == "online" and self.optimizers.trained["policy"] and not self.extensions.acts_on_policy:
            values: list[Tensor] = []
            losses = (self.policy_loss(*piece, z, values) for piece, z in zip(pieces, latents, strict=True))
            metrics |= self.step(self.optimizers.policy, self.optimizers.trained["policy"], losses, batches, "policy_")

            # Value scale: a running range of Q, so that the policy loss is alike for tasks of large and small returns.
            if self.learning.value_target == "td":
                own = values[0] if len(values) == 1 else torch.cat(values)
                math.update_value_scale(self.value_scale, self.ranks.gather(own), self.learning.tau)
                metrics["value_scale"] = self.value_scale.clone()
        return metrics

    def model_loss(self, batch: Batch, draws: UpdateDraws, bc_coef: float, latents: list[Tensor]) -> Loss:
        """Return the model's loss on slices and its metrics; append the detached latents (T + 1, B, Z) to `latents`."""
        model, learning = self.model, self.learning
        ctx = model.context(self.table, batch.task, draws.phrasing, target_q=draws.td_members)
        weights = self._step_weights(len(batch.action))[:-1]

        # Targets: latents encoded from the real next observations; r + gamma times the smaller of two target Q there,
        # or the returns that the replay keeps.
        with torch.no_grad():
            next_z = model.observed(batch.obs, batch.action, ctx, batch.past)
            if (target := batch.value_target) is None:
                next_action = model.policy(next_z, ctx, draws.td_noise).action
                next_value = math.decode(model.q(next_z, next_action, ctx, target=True), model.bins).amin(0)
                target = math.td_target(batch.reward, self._ended(batch, next_z, ctx), ctx.discount, next_value)

        with self.extensions.recording():
            # Latent rollout: encode the first observation alone, then predict each latent from the one before.
            state, carry = model.begin(batch.obs[0], ctx, batch.past)
            states = [state]
            for action in batch.action:
                state, carry = model.next(state, action, ctx, carry)
                states.append(state)
            z, z_next = torch.stack(states[:-1]), torch.stack(states[1:])
            latents.append(torch.stack(states).detach())

            # Losses: consistency, reward, value; termination and behaviour cloning where they are on.
            each = self.extensions.weighs  # one loss per slice, for extensions that weigh slices
            known = batch.rewarded  # reward and value learn nothing from demonstrations without rewards
            logits, metrics = (model.reward(z, batch.action, ctx), model.q(z, batch.action, ctx)), {}
            scalars = math.scalar_losses(logits, (batch.reward, target), model.bins, weights, each, known)
            parts = {
                "consistency_loss": math.consistency_loss(model.latent(z_next), model.latent(next_z), weights, each),
                "reward_loss": scalars[0],
                "value_loss": scalars[1],
            }
            coefs = [learning.consistency_coef, learning.reward_coef, learning.value_coef]
            if model.termination_head is not None:
                end = model.termination(z[-1:], batch.action[-1:], ctx)
                parts["termination_loss"] = math.termination_loss(end, batch.terminated[-1:], each)
                coefs.append(learning.termination_coef)
            if bc_coef:
                policy = model.policy(z, ctx, draws.policy_noise[:-1])
                error = batch.imitation * math.imitation_error(policy.action, batch.expert_action, ctx.action_mask)
                parts["bc_loss"] = math.bc_loss(policy, error, weights, learning.entropy_coef, each)
                metrics["imitation_error"] = error.detach().mean()
                coefs.append(bc_coef)
            per_slice = functools.reduce(torch.add, (c * part for c, part in zip(coefs, parts.values(), strict=True)))
            total = self.extensions.weigh(per_slice, batch) if each else per_slice
        total, more = self.extensions.losses(total, (one.model_loss(z_next, batch, weights) for one in self.extensions))
        metrics |= {name: part.detach().mean() if each else part.detach() for name, part in parts.items()}
        return total, metrics | more | {"total_loss": total.detach()}

    def policy_loss(self, batch: Batch, draws: UpdateDraws, z: Tensor, values: list[Tensor]) -> Loss:
        """Return the online policy loss at latents z (T + 1, B, Z): maximise Q and entropy, with a behaviour prior.

        The prior is the square error to expert actions, times `batch.imitation`. Gradients pass through Q to the
        actions; Q's own weights are frozen. Q at the first latents is appended to `values`. Of slices without rewards
        Q says nothing: they count for prior and entropy alone, and what is appended is NaN.
        """
        model, learning = self.model, self.learning
        ctx = model.context(self.table, batch.task, draws.phrasing, draws.policy_members, (), ("policy", "q"))
        weights = self._step_weights(len(batch.action))
        with self.extensions.recording():
            policy = model.policy(z, ctx, draws.policy_noise)
        q = math.decode(model.q(z, policy.action, ctx), model.bins).mean(0)  # (T + 1, B)
        known = batch.rewarded
        values.append(q[0].detach().masked_fill(~known, float("nan")))
        error = batch.imitation * math.imitation_error(policy.action[:-1], batch.expert_action, ctx.action_mask)
        prior = (weights[:-1] @ error).mean()
        weighed = q if self.q_weight is None else self.q_weight[batch.task] * q
        scale = self.value_scale if len(self.value_scale) == 1 else self.value_scale[batch.task]
        weighed = known * weighed / scale
        value = (weights @ (-learning.entropy_coef * policy.scaled_entropy - weighed)).mean()
        total, more = self.extensions.losses(
            learning.prior_coef * prior + value, (one.policy_loss(batch) for one in self.extensions)
        )
        return total, more | {
            "policy_loss": total.detach(),
            "imitation_error": prior.detach(),
            "policy_entropy": policy.entropy.detach().mean(),
            "policy_q": q[0].detach().mean(),
        }

    def _ended(self, batch: Batch, next_z: Tensor, ctx: TaskContext) -> Tensor:
        """Return (T, B) with what probability each step ended its episode for good, for TD targets.

        A slice shows an end in its last step alone: whatever is risky would seem safer before that. There the
        termination head says how likely an end was; without one, as published, the earlier steps count as they are.
        """
        if self.model.termination_head is None or len(batch.action) == 1:
            return batch.terminated
        z = torch.cat([self.model.begin(batch.obs[0], ctx, batch.past)[0].unsqueeze(0), next_z])[: len(next_z) - 1]
        return torch.cat([self.model.termination(z, batch.action[:-1], ctx).sigmoid(), batch.terminated[-1:]])

    def value(self, z: Tensor, ctx: TaskContext) -> Tensor:
        """Return the value (...) of latents z (..., n, Z): target Q of the policy's mode, mean of the members."""
        action = self.model.policy(z, ctx).action
        return math.decode(self.model.q(z, action, ctx, target=True), self.model.bins).mean(0)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        losses: Iterable[Loss],
        pieces: Sequence[Any],
        prefix: str = "",
    ) -> Metrics:
        """Take one optimiser step on exactly `parameters`, with the gradient accumulated over `losses`.

        Each loss is the mean over the rows of one of `pieces`: a batch, or the tasks (n,) of its rows. Returns the
        metrics averaged over pieces, with the learning rate and, under `prefix`, the gradient norm before clipping.
        """
        optimizer.zero_grad(set_to_none=True)
        sizes = [len(piece.task if isinstance(piece, Batch) else piece) for piece in pieces]
        size, metrics, found_losses = sum(sizes), {}, []
        losses = iter(losses)
        for rows in sizes:
            with products.use(self.mode), self.ranks.autocast(), self._others_frozen(parameters):
                loss, found = next(losses)
            if len(sizes) > 1:
                part = rows / max(size, 1)
                loss, found = part * loss, {name: part * value for name, value in found.items()}
            found_losses.append(loss.detach())
            metrics = {name: metrics[name] + value if metrics else value for name, value in found.items()}
            if parameters:  # none where, e.g., adapters are on the policy alone and the model's step is online
                loss.backward()
        total = functools.reduce(torch.add, found_losses)
        norm = torch.zeros_like(total)
        if parameters:
            total = self.ranks.average_gradients(parameters, total, size)
            norm = nn.utils.clip_grad_norm_(parameters, self.learning.grad_clip_norm, foreach=True)
            self.finite.judge(total, norm)
            optimizer.found_inf = self.finite.found  # type: ignore[attr-defined]  # where 1, Adam leaves all as it is
            optimizer.step()
        metrics |= {f"{prefix}grad_norm": norm, "lr": self._lr.clone()}
        if parameters and self.graphs is None:  # by graphs, the whole update is noted
            self.finite.note(self, pieces, metrics)
        return metrics

    def rebuild_optimizers(self, origins: dict[nn.Parameter, nn.Parameter] | None = None) -> None:
        """Train what has `requires_grad` now; `origins` maps a new parameter to the old one whose moments it takes."""
        self.optimizers = rebuild_optimizers(self.optimizers, self.model, self.learning, self.extensions, origins)

    @property
    def q_weight(self) -> Tensor | None:
        """(n,) weight of Q in each task's policy loss; None is 1 for all."""
        return self._q_weight

    @q_weight.setter
    def q_weight(self, value: Tensor | None) -> None:
        if value is not None and self._q_weight is not None and value.shape == self._q_weight.shape:
            self._q_weight.copy_(value)  # where a graph reads it
        else:
            self._q_weight = value if value is None else value.clone()

    def _reads(self) -> Iterator[Tensor]:
        """Yield what an update reads and changes beside batch and draws."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for _, optimizer, parameter in self.optimizers.parameters():
            yield from optimizer.state.get(parameter, {}).values()
        yield from (group["lr"] for optimizer in self.optimizers[:2] for group in optimizer.param_groups)
        more = (self.value_scale, self._q_weight, self._lr, self.finite.found)
        yield from self.table.network_inputs()
        yield from (tensor for tensor in more if tensor is not None)

    def set_rates(self) -> None:
        """Write the learning rates of this update where the optimisers read them: on the device, where they changed."""
        groups = [group for optimizer in self.optimizers[:2] for group in optimizer.param_groups]
        for group in groups:
            rate = learning_rate(self.rate, self.updates, self.position, group["lr_scale"])
            if group.get("written") != rate:
                group["lr"].fill_(rate)
                group["written"] = rate
        rate = learning_rate(self.rate, self.updates, self.position)
        if self._written != rate:
            self._lr.fill_(rate)
            self._written = rate

    def _step_weights(self, horizon: int) -> Tensor:
        """Return the weights (T + 1,) of a slice's steps."""
        if horizon not in self._weights:
            self._weights[horizon] = math.step_weights(self.learning.rho, horizon, self.model.bins.device)
        return self._weights[horizon]

    def _pieces(self, size: int) -> list[slice]:
        """Split a batch of `size` into `accumulate` micro-batches, as equal as possible."""
        count = min(self.accumulate, size)
        ends = list(itertools.accumulate(size // count + (number < size % count) for number in range(count)))
        return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]

    @contextmanager
    def _others_frozen(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Freeze all other parameters while a loss is computed: the policy's step then computes no gradients of Q."""
        moving = set(parameters)
        others = [parameter for parameter in self.optimizers.trained["pretrain"] if parameter not in moving]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
