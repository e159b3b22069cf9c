"""M3PO's policy step: from time to time, the policy learns from the episodes that ended since the last time.

The ratio of the policy to what acted is a small correction only while the two are alike. So the policy learns from each
episode once, soon after it ended, and never from demonstrations, whose log-probabilities are unknown. The model's
updates wait until then, because they move the latents that the policy reads. They learn from everything that was ever
stored, since their losses do not depend on what acted.

Source: M3PO (arXiv 2506.21782).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.extension import Extension, Metrics
from pipeline.model import products
from pipeline.model.math import decode
from pipeline.model.world_model import TaskContext
from pipeline.systems.m3po.density import policy_log_prob
from pipeline.systems.m3po.ppo import clipped_loss, disagreement, generalised_advantages, with_bonus

if TYPE_CHECKING:
    from pipeline.learn.learner import Learner
    from pipeline.learn.replay import ReplayBuffer

COLUMN = "log_prob"  # of the replay: the log-probability of each action under what acted
_NUM_VALUE_ACTIONS = 8  # policy actions that a value is averaged over
_ROWS_AT_ONCE = 4096  # observations whose values are computed together
_SMALLEST_STD = 1e-2  # of a task's advantages: where they hardly differ, noise is not scaled up
_LOGGED = ("policy_loss", "policy_entropy", "ratio", "clip_fraction", "approx_kl", "policy_grad_norm")


class Steps(NamedTuple):
    """S steps that the policy learns from. Latents and advantages are computed once, before the policy moves."""

    z: Tensor  # (S, Z)
    action: Tensor  # (S, A)
    log_prob: Tensor  # (S,) of the action under what acted
    advantage: Tensor  # (S,) with the bonus, centred and scaled within each task
    task: Tensor  # (S,) rows of the task table


class Judged(NamedTuple):
    """What the model says of R stored observations and the actions taken there."""

    z: Tensor  # (R, Z)
    value: Tensor  # (R,) of the observation
    reward: Tensor  # (R,) predicted
    next_value: Tensor  # (R,) predicted, of the observation that follows


class ClippedPolicy(Extension):
    """Trains the policy by a clipped ratio (PPO), with a bonus where model and experience disagree.

    Args:
        clipped: settings.
    """

    name = "m3po"
    acts_on_policy = True

    def __init__(self, clipped: config.Clipped):
        self._clipped, self.plans = clipped, clipped.plan
        self._generator = torch.Generator()
        self._learned = 0  # episodes of this rank's replay that the policy has learned from, by `num_added`
        self._metrics: dict[str, float] = {}  # of the last phase, over all ranks

    def start(self, generator: torch.Generator) -> None:
        """Draw from the run's generator, which the run saves."""
        self._generator = generator

    def attach(self, learner: Learner) -> None:
        """Take the learner whose policy is trained."""
        self._learner = learner

    def phase(self, replay: ReplayBuffer, before: int, now: int, total: int) -> bool:
        """Learn from the episodes stored since the last phase if one is due: every so many env_steps, and at the end.

        Args:
            replay: of this rank, with the column `COLUMN`.
            before: env_steps at the last call.
            now: env_steps.
            total: env_steps of the run, over which the bonus falls to 0.
        """
        every = self._clipped.every
        if before // every == now // every and now < total:
            return False
        self._learn(replay, self._clipped.bonus * max(0.0, 1 - now / total))
        return True

    def _learn(self, replay: ReplayBuffer, bonus_weight: float) -> None:
        """Improve the policy; every rank takes part, also one without new episodes."""
        learner, clipped, ranks = self._learner, self._clipped, self._learner.ranks
        since, self._learned = self._learned, replay.num_added
        if not any(ranks.collect(replay.num_added - since)) or not learner.optimizers.trained["policy"]:
            return

        # Latents and advantages, as they are before the policy moves.
        with products.use(learner.mode):
            steps, metrics = self._steps(replay, since, bonus_weight)
        count = len(steps.task)

        # Gradient steps on minibatches, in a new order in every pass; all ranks take equally many.
        num_parts = math.ceil(sum(ranks.collect(count)) / clipped.batch_size)
        sums: Metrics = {}
        for _ in range(clipped.passes):
            order = torch.randperm(count, generator=self._generator).to(steps.task.device)
            for rows in order.tensor_split(num_parts):
                found = self._gradient_step(Steps(*(part[rows] for part in steps)))
                if not sums:
                    metrics["start_kl"] = found["approx_kl"]
                sums = {name: sums.get(name, 0) + len(rows) * found[name] for name in _LOGGED}

        # Metrics are averaged over passes, steps and ranks.
        means = {name: value / max(clipped.passes * count, 1) for name, value in sums.items()} | metrics
        mean = ranks.weighted_mean(torch.stack([value.reshape(()) for value in means.values()]), count).tolist()
        self._metrics = {f"train/{name}": value for name, value in zip(means, mean, strict=True)}
        self._metrics["train/bonus_weight"] = bonus_weight

    @torch.no_grad()
    def _steps(self, replay: ReplayBuffer, since: int, bonus_weight: float) -> tuple[Steps, Metrics]:
        """Return the steps of the episodes numbered `since` and higher, and metrics of their bonus and advantages."""
        table, device = self._learner.table, self._learner.value_scale.device

        # An episode of L steps has L + 1 rows; `acted` are all but the last one of each.
        stored = {name: part.to(device) for name, part in replay.state_tensors(since=since).items()}
        _, length, task, terminated = stored["episodes"]
        episode = torch.arange(len(length), device=device).repeat_interleave(length + 1)
        first_row = (length + 1).cumsum(0) - (length + 1)
        step = torch.arange(len(episode), device=device) - first_row[episode]
        acted = (step < length[episode]).nonzero().squeeze(1)
        of, when, acting_task = episode[acted], step[acted], task[episode][acted]

        # Advantages, of whole episodes side by side.
        judged = self._judge(stored["obs"], stored["action"], task[episode])
        shape = (int(length.max()) + 1 if len(length) else 2, len(length))
        reward, value = judged.value.new_zeros(shape), judged.value.new_zeros(shape)
        reward[step, episode], value[step, episode] = stored["reward"], judged.value
        ended, gae_lambda = terminated.bool(), self._clipped.gae_lambda
        advantage = generalised_advantages(reward[:-1], value, length, ended, table.discount[task], gae_lambda)
        advantage = advantage[when, of]

        # The bonus: how far the model's prediction of each step is from what happened, centred within each task.
        goes_on = 1 - (ended[of] & (when == length[of] - 1)).to(advantage.dtype)
        real = stored["reward"][acted], goes_on * judged.value[acted + 1]
        predicted = judged.reward[acted], goes_on * judged.next_value[acted]
        bonus = disagreement(*real, *predicted, table.discount[acting_task])
        mean, _ = self._per_task(bonus, acting_task)
        total = with_bonus(advantage, bonus, mean[acting_task], bonus_weight, self._clipped.bonus_limit)

        # Tasks have rewards of different sizes: the advantages are centred and scaled within each.
        mean, std = self._per_task(total, acting_task)
        scaled = (total - mean[acting_task]) / std.clamp(min=_SMALLEST_STD)[acting_task]
        count = max(len(acted), 1)
        variance = advantage.square().sum() / count - (advantage.sum() / count).square()
        metrics = {"bonus": bonus.sum() / count, "advantage_std": variance.clamp(min=0).sqrt()}
        return Steps(judged.z[acted], stored["action"][acted], stored[COLUMN][acted], scaled, acting_task), metrics

    def _judge(self, obs: Tensor, action: Tensor, task: Tensor) -> Judged:
        """Evaluate the model at rows: obs (R, O), action (R, A) and task (R,)."""
        model = self._learner.model
        if not len(task):
            nothing = obs.new_zeros(0)
            return Judged(obs.new_zeros(0, model.config.latent_dim), nothing, nothing, nothing)
        tasks, inverse = torch.unique(task, return_inverse=True)
        of_tasks = model.context(self._learner.table, tasks, target_q=())
        # The value predicted for the next row and that row's own value are read at actions of the same noise, so that
        # they differ only where the latents do.
        shape = (_NUM_VALUE_ACTIONS, len(task) + 1, action.shape[-1])
        noise = torch.randn(shape, generator=self._generator).to(obs.device)
        parts = []
        for start in range(0, len(task), _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, len(task)))
            ctx = of_tasks.take(inverse[rows])
            z, carry = model.begin(obs[rows], ctx)
            reward = decode(model.reward(z, action[rows], ctx), model.bins)
            next_z, _ = model.next(z, action[rows], ctx, carry)
            next_value = self._value(next_z, ctx, noise[:, rows.start + 1 : rows.stop + 1])
            parts.append((z, self._value(z, ctx, noise[:, rows]), reward, next_value))
        return Judged(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _value(self, z: Tensor, ctx: TaskContext, noise: Tensor) -> Tensor:
        """Return the values (R,) at latents (R, Z): means over Q members and over policy actions of noise (D, R, A)."""
        model = self._learner.model
        logits = model.q(z, model.policy(z, ctx, noise).action, ctx)  # (M, D, R, K)
        return decode(logits, model.bins).mean((0, 1))

    def _per_task(self, values: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std (n,) of values (S,) by row of the task table, over the steps of all ranks."""
        sums = torch.zeros(3, len(self._learner.table.names), dtype=torch.float64, device=values.device)
        wide = values.double()
        sums.index_add_(1, task, torch.stack([torch.ones_like(wide), wide, wide.square()]))
        everyone = sum(torch.from_numpy(part) for part in self._learner.ranks.collect(sums.cpu().numpy()))
        count, total, squares = torch.as_tensor(everyone, device=values.device)
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        return mean.to(values.dtype), std.to(values.dtype)

    def _gradient_step(self, steps: Steps) -> Metrics:
        """Take one gradient step on this rank's share of a minibatch, which may be empty."""
        optimizers = self._learner.optimizers
        self._learner.set_rates()
        noise = torch.randn(steps.action.shape, generator=self._generator).to(steps.action.device)
        losses = map(self._loss, [steps], [noise])  # computed within `step`
        return self._learner.step(optimizers.policy, optimizers.trained["policy"], losses, [steps.task], "policy_")

    def _loss(self, steps: Steps, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Return the clipped loss, a mean over steps, with entropy and what other extensions add; and its metrics."""
        learner = self._learner
        if not len(steps.task):
            zero = 0 * torch.stack([parameter.sum() for parameter in learner.optimizers.trained["policy"]]).sum()
            return zero, dict.fromkeys(_LOGGED[:-1], zero.detach())
        # In float32 and with the canonical phrasing, as in acting: else the ratio would compare something else.
        with torch.autocast(steps.z.device.type, enabled=False), learner.extensions.recording():
            ctx = learner.model.context(learner.table, steps.task, q=(), target_q=())
            policy = learner.model.policy(steps.z, ctx, noise)
            log_prob = policy_log_prob(policy, steps.action, ctx.action_mask)
        found = clipped_loss(log_prob, steps.log_prob, steps.advantage, self._clipped.ratio)
        total = found.total - learner.learning.entropy_coef * policy.scaled_entropy.mean()
        total, _ = learner.extensions.losses(total, (one.policy_loss(steps) for one in learner.extensions))
        logged = total.detach(), policy.entropy.detach().mean(), *found[1:]
        return total, dict(zip(_LOGGED[:-1], logged, strict=True))

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the last phase; none before the first."""
        return dict(self._metrics)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the metrics of the last phase, which are logged until the next one."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._metrics.items()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._metrics = {name: float(value) for name, value in state.items()}

    def rank_state_tensors(self) -> dict[str, Tensor]:
        """Return how many episodes of this rank's replay were learned from."""
        return {"learned": torch.tensor([self._learned])}

    def load_rank_state_tensors(self, state: dict[str, Tensor] | None, replay: ReplayBuffer) -> None:
        """Take over what `rank_state_tensors` returned; with other ranks than before, skip what is stored by now."""
        self._learned = replay.num_added if state is None else int(state["learned"])
