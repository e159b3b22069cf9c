"""The policy phase of the clipped policy step: every so often the policy learns from the episodes that have just ended.

The ratio of the policy to what acted is a small correction only while the two are alike, so the policy learns from
each episode once, soon after it ended, and never from demonstrations, of which nobody knows how likely they were. The
model's updates wait until then, since the policy reads latents that they move, and then learn from all that was ever
stored: their losses do not ask who acted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import Clipped
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.clipped import clipped_loss, disagreement, generalised_advantages, with_bonus
from pipeline.model.density import policy_log_prob
from pipeline.model.experts import balance_loss
from pipeline.model.two_hot import decode
from pipeline.model.world_model import TaskContext
from pipeline.train.objective import batch_context
from pipeline.train.ranks import Ranks
from pipeline.train.step import Learner

_NUM_VALUE_ACTIONS = 8  # policy actions that a value is the mean of
_ROWS_AT_ONCE = 4096  # observations whose values are computed together
_SMALLEST_STD = 1e-2  # of a task's advantages: where nothing differs, noise is not blown up
_LOGGED = ("policy_loss", "policy_entropy", "ratio", "clip_fraction", "approx_kl")


class Steps(NamedTuple):
    """S steps that the policy learns from. All but the advantages are as they were when the phase began."""

    z: Tensor  # (S, Z)
    action: Tensor  # (S, A)
    log_prob: Tensor  # (S,) of the action under what acted
    advantage: Tensor  # (S,) with the bonus, centred and scaled within each task
    task: Tensor  # (S,) rows of the task table


class PolicyPhase:
    """Improves the policy from time to time, and remembers which episodes it has learned from.

    Args:
        learner: owns model and optimiser.
        clipped: settings.
        generator: of everything drawn.
        ranks: the processes of the run, each of which brings its own episodes.
        total: env_steps of the run, over which the bonus fades; a run that is prolonged fades over its new length.

    Attributes:
        metrics: of the last phase, over all ranks, by name; empty before the first.

    Raises:
        ValueError: the model's dynamics see past steps, which the episodes of a phase do not bring along.
    """

    def __init__(self, learner: Learner, clipped: Clipped, generator: torch.Generator, ranks: Ranks, total: int):
        if learner.model.config.history is not None:
            raise ValueError(
                "learning.clipped values single steps, and model.history makes dynamics that see past ones: "
                "set one of the two to null"
            )
        self._learner, self._clipped, self._generator, self._ranks = learner, clipped, generator, ranks
        self._total, self._learned = total, 0
        self.metrics: dict[str, float] = {}

    def run(self, replay: ReplayBuffer, env_steps: int) -> None:
        """Learn from the episodes stored since the last phase; every rank calls this.

        Args:
            replay: of this rank, with log-probabilities.
            env_steps: made so far.
        """
        clipped, ranks = self._clipped, self._ranks
        since, self._learned = self._learned, replay.num_added
        num = sum(ranks.collect(replay.num_added - since))
        if not num or not self._learner.trains_policy:
            return
        weight = clipped.bonus * max(0.0, 1 - env_steps / self._total)
        steps, told = self._steps(replay, since, weight)
        count = len(steps.task)
        num_parts = math.ceil(sum(ranks.collect(count)) / clipped.batch_size)
        sums: dict[str, Tensor] = {}
        for _ in range(clipped.passes):
            order = torch.randperm(count, generator=self._generator).to(steps.task.device)
            for rows in order.tensor_split(num_parts):
                found = self._improve(Steps(*(part[rows] for part in steps)))
                if not sums:
                    told["start_kl"] = found["approx_kl"]
                sums = {name: sums.get(name, 0) + len(rows) * value for name, value in found.items()}
        shares = {name: value / max(clipped.passes * count, 1) for name, value in sums.items()} | told
        mean = ranks.weighted_mean(torch.stack([value.reshape(()) for value in shares.values()]), count).tolist()
        self.metrics = dict(zip((f"train/{name}" for name in shares), mean, strict=True))
        self.metrics["train/bonus_weight"] = weight

    def state_tensors(self) -> dict[str, Tensor]:
        """Return which episodes were learned from."""
        return {"learned": torch.tensor([self._learned])}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._learned = int(state["learned"])

    def skip(self, replay: ReplayBuffer) -> None:
        """Learn from nothing that is stored by now."""
        self._learned = replay.num_added

    @torch.no_grad()
    def _steps(self, replay: ReplayBuffer, since: int, weight: float) -> tuple[Steps, dict[str, Tensor]]:
        """Return the steps of the episodes numbered `since` and higher, and what is to be logged of them."""
        learner = self._learner
        table, device = learner.table, learner.scale.value.device
        stored = {name: part.to(device) for name, part in replay.state_tensors(since=since).items()}
        _, length, task, terminated = stored["episodes"]
        episode = torch.arange(len(length), device=device).repeat_interleave(length + 1)
        first_row = (length + 1).cumsum(0) - (length + 1)
        step = torch.arange(len(episode), device=device) - first_row[episode]
        row_task = task[episode]
        z, value, predicted_reward, predicted_value = self._judge(
            table.normalize(stored["obs"], row_task), stored["action"], row_task
        )
        acted = (step < length[episode]).nonzero().squeeze(1)  # every row but the last of an episode
        of, when = episode[acted], step[acted]

        shape = (int(length.max()) + 1 if len(length) else 2, len(length))
        padded_reward, padded_value = value.new_zeros(shape), value.new_zeros(shape)
        padded_reward[step, episode], padded_value[step, episode] = stored["reward"], value
        advantage = generalised_advantages(
            padded_reward[:-1],
            padded_value,
            length,
            terminated.bool(),
            table.discount[task],
            self._clipped.gae_lambda,
        )[when, of]

        goes_on = 1 - (terminated.bool()[of] & (when == length[of] - 1)).to(value.dtype)
        bonus = disagreement(
            stored["reward"][acted],
            goes_on * value[acted + 1],
            predicted_reward[acted],
            goes_on * predicted_value[acted],
            table.discount[row_task[acted]],
        )
        acting_task = row_task[acted]
        mean, _ = self._per_task(bonus, acting_task)
        encouraged = with_bonus(advantage, bonus, mean[acting_task], weight, self._clipped.bonus_limit)
        mean, std = self._per_task(encouraged, acting_task)
        scaled = (encouraged - mean[acting_task]) / std.clamp(min=_SMALLEST_STD)[acting_task]
        count = max(len(acted), 1)
        variance = advantage.square().sum() / count - (advantage.sum() / count).square()
        told = {"bonus": bonus.sum() / count, "advantage_std": variance.clamp(min=0).sqrt()}
        return Steps(z[acted], stored["action"][acted], stored["log_prob"][acted], scaled, acting_task), told

    def _judge(self, obs: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents (R, Z) and values (R,) of rows, and the reward and next value (R,) predicted of their actions.

        A value is the mean of all Q members at some actions of the policy. The value predicted for the next row and
        that row's own are read at actions of the same noise: they differ where the latents do, and only there.
        """
        model, table = self._learner.model, self._learner.table
        if not len(task):
            nothing = obs.new_zeros(0)
            return obs.new_zeros(0, model.config.latent_dim), nothing, nothing, nothing
        tasks, inverse = torch.unique(task, return_inverse=True)
        ctx = model.context(table.embeddings[tasks, 0], self._learner.compute, target_q=())
        shape = (_NUM_VALUE_ACTIONS, len(task) + 1, action.shape[-1])
        noise = torch.randn(shape, generator=self._generator).to(obs.device)
        parts = []
        for start in range(0, len(task), _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, len(task)))
            own, mask = ctx.take(inverse[rows]), table.action_mask[task[rows]]
            z = model.encode(obs[rows], own)
            reward = decode(model.reward(z, action[rows], own), model.bins)
            next_z = model.next(z, action[rows], own)
            next_noise = noise[:, rows.start + 1 : rows.stop + 1]
            value = self._value(z, own, mask, noise[:, rows])
            parts.append((z, value, reward, self._value(next_z, own, mask, next_noise)))
        z, value, reward, predicted = (torch.cat(part) for part in zip(*parts, strict=True))
        return z, value, reward, predicted

    def _value(self, z: Tensor, ctx: TaskContext, mask: Tensor, noise: Tensor) -> Tensor:
        model = self._learner.model
        logits = model.q(z, model.policy(z, ctx, mask, noise).action, ctx)  # (M, draws, rows, K)
        return decode(logits, model.bins).mean((0, 1))

    def _per_task(self, values: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (n,) of values (S,) by row of the task table, over the steps of all ranks."""
        sums = torch.zeros(3, len(self._learner.table.names), dtype=torch.float64, device=values.device)
        wide = values.double()
        sums.index_add_(1, task, torch.stack([torch.ones_like(wide), wide, wide.square()]))
        everyone = sum(torch.from_numpy(part) for part in self._ranks.collect(sums.cpu().numpy()))
        count, total, squares = torch.as_tensor(everyone, device=values.device)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        return mean.to(values.dtype), std.to(values.dtype)

    def _improve(self, steps: Steps) -> dict[str, Tensor]:
        """Take one gradient step on this rank's share of a minibatch."""
        learner = self._learner
        model, table, learning = learner.model, learner.table, learner.learning
        mask = table.action_mask[steps.task]
        noise = torch.randn(steps.action.shape, generator=self._generator).to(steps.action.device)

        def loss_of() -> tuple[Tensor, dict[str, Tensor]]:
            # The phrasing that acting is told, and float32 as acting computes: else the ratio would compare others.
            with torch.autocast(steps.z.device.type, enabled=False):
                phrasing = torch.zeros_like(steps.task)
                ctx = batch_context(model, table, steps.task, phrasing, learner.compute, q=(), target_q=())
                ctx, notes = ctx.noting()
                policy = model.policy(steps.z, ctx, mask, noise)
                log_prob = policy_log_prob(policy, steps.action, mask)
            found = clipped_loss(log_prob, steps.log_prob, steps.advantage, self._clipped.ratio)
            total = found.total - learning.entropy_coef * policy.scaled_entropy.mean()
            if model.config.experts is not None:
                balance = sum(balance_loss(calls, model.config.experts) for calls in notes.values() if calls)
                total = total + model.config.experts.balance_coef * balance
            entropy = policy.entropy.detach().mean()
            return total, dict(zip(_LOGGED, (total.detach(), entropy, *found[1:]), strict=True))

        def nothing() -> tuple[Tensor, dict[str, Tensor]]:
            zero = 0 * torch.stack([parameter.sum() for parameter in model.policy_head.parameters()]).sum()
            return zero, dict.fromkeys(_LOGGED, zero.detach())

        return learner.improve_policy(loss_of if len(steps.task) else nothing, steps.task)
