"""The method written in the most direct way: what our code is held against, and what its speed is measured against.

Nothing is shared with `pipeline.model` but the parameters: the task embedding is concatenated to every input, every
Q member is evaluated wherever two are used, two-hot targets are built in full, the policy's plan samples are rolled
out again in every iteration.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.learn.learner import UpdateDraws
from pipeline.model.planner import Plan, PlanDraws
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.shapes import Batch


class PlainModel:
    """The formulas of the model on the parameters of a `WorldModel`; `emb` is always as long as the input."""

    def __init__(self, model: WorldModel):
        self.model, self.config = model, model.config

    def encode(self, obs: Tensor, emb: Tensor) -> Tensor:
        """h: (..., O), (..., E) to (..., Z)."""
        return self._latent(self.model.encoder, torch.cat([obs, emb], -1))

    def next(self, z: Tensor, a: Tensor, emb: Tensor) -> Tensor:
        """d: (..., Z), (..., A), (..., E) to (..., Z)."""
        return self._latent(self.model.dynamics, torch.cat([z, emb, a], -1))

    def reward(self, z: Tensor, a: Tensor, emb: Tensor) -> Tensor:
        """R: logits (..., K)."""
        return _mlp(self.model.reward_head, torch.cat([z, emb, a], -1))

    def q(self, z: Tensor, a: Tensor, emb: Tensor, target: bool = False) -> Tensor:
        """All members: logits (M, ..., K)."""
        heads = self.model.target_q_heads if target else self.model.q_heads
        return torch.stack([_mlp(head, torch.cat([z, emb, a], -1)) for head in heads])

    def termination(self, z: Tensor, a: Tensor, emb: Tensor) -> Tensor:
        """Logits (...) of action a ending the episode for good at z; without a head it never does."""
        if self.model.termination_head is None:
            return torch.full(z.shape[:-1], -torch.inf, device=z.device)
        return _mlp(self.model.termination_head, torch.cat([z, emb, a], -1)).squeeze(-1)

    def policy(self, z: Tensor, emb: Tensor, mask: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """p: the sampled action (..., A) and its scaled entropy (...)."""
        mean, raw = _mlp(self.model.policy_head, torch.cat([z, emb], -1)).chunk(2, -1)
        low, high = self.config.log_std_min, self.config.log_std_max
        log_std = (low + 0.5 * (high - low) * (torch.tanh(raw) + 1)) * mask
        noise = noise * mask
        action = torch.tanh(mean * mask + noise * torch.exp(log_std))
        gaussian = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        squashed = gaussian - torch.log(F.relu(1 - action**2) + 1e-6).sum(-1)
        return action, -squashed * (gaussian * mask.sum(-1)) / (squashed + 1e-8)

    def decode(self, logits: Tensor) -> Tensor:
        """Two-hot logits (..., K) to scalars (...)."""
        x = (F.softmax(logits, -1) * self.model.bins).sum(-1)
        return torch.sign(x) * (torch.exp(x.abs()) - 1)

    def cross_entropy(self, logits: Tensor, x: Tensor) -> Tensor:
        """Soft cross-entropy (...) of logits (..., K) against scalars (...)."""
        return -(self._two_hot(x) * F.log_softmax(logits, -1)).sum(-1)

    def _two_hot(self, x: Tensor) -> Tensor:
        low, high, num_bins = self.config.bin_min, self.config.bin_max, self.config.num_bins
        x = torch.clamp(torch.sign(x) * torch.log(1 + x.abs()), low, high)
        position = (x - low) / ((high - low) / (num_bins - 1))
        lower = torch.floor(position).long()
        weight = (position - lower).unsqueeze(-1)
        return F.one_hot(lower, num_bins) * (1 - weight) + F.one_hot((lower + 1) % num_bins, num_bins) * weight

    def _latent(self, network: nn.Module, x: Tensor) -> Tensor:
        x = _mlp(network, x)
        return F.softmax(x.view(*x.shape[:-1], -1, self.config.simnorm_dim), -1).view(x.shape)


def _mlp(network: nn.Module, x: Tensor) -> Tensor:
    blocks: list[Any] = list(network.children())
    *hidden, last = blocks
    for block in hidden:
        x = F.mish(block.norm(block.linear(x)))
    x = last.linear(x)
    return x if last.norm is None else last.norm(x)


class PlainLosses(NamedTuple):
    """Each before its coefficient, and the latents (T + 1, B, Z)."""

    total: Tensor
    consistency: Tensor
    reward: Tensor
    value: Tensor
    bc: Tensor
    z: Tensor


def model_losses(
    model: WorldModel, table: TaskTable, batch: Batch, draws: UpdateDraws, learning: config.Learning, bc_coef: float
) -> PlainLosses:
    """Compute the model's losses on a batch, one step of the slice after the other."""
    plain = PlainModel(model)
    horizon = len(batch.action)
    rho = _rho(learning.rho, horizon)
    mask, emb = table.action_mask[batch.task], table.embeddings[batch.task, draws.phrasing]
    zs = [plain.encode(batch.obs[0], emb)]
    encoded = zs[0]
    consistency = reward = value = bc = termination = torch.zeros((), device=batch.obs.device)
    for t in range(horizon):
        z, action = zs[-1], batch.action[t]
        with torch.no_grad():
            ended = batch.terminated[t]
            if model.config.termination and t < horizon - 1:  # where a slice shows no end: how likely one was
                ended = torch.sigmoid(plain.termination(encoded, action, emb))
            encoded = plain.encode(batch.obs[t + 1], emb)
            next_action, _ = plain.policy(encoded, emb, mask, draws.td_noise[t])
            next_value = plain.decode(plain.q(encoded, next_action, emb, target=True))
            worst = torch.minimum(next_value[draws.td_members[0]], next_value[draws.td_members[1]])
            target = batch.reward[t] + table.discount[batch.task] * (1 - ended) * worst
        zs.append(plain.next(z, action, emb))
        consistency = consistency + rho[t] * F.mse_loss(zs[-1], encoded)
        reward = reward + rho[t] * plain.cross_entropy(plain.reward(z, action, emb), batch.reward[t]).mean()
        for logits in plain.q(z, action, emb):
            value = value + rho[t] * plain.cross_entropy(logits, target).mean() / model.config.num_q
        if model.config.termination and t == horizon - 1:
            logit = plain.termination(z, action, emb)
            likelihood = torch.where(batch.terminated[t] == 1, F.logsigmoid(logit), F.logsigmoid(-logit))
            termination = -likelihood.mean()
        if bc_coef:
            imitated, entropy = plain.policy(z, emb, mask, draws.policy_noise[t])
            error = ((imitated - batch.expert_action[t]) ** 2 * mask).sum(-1) / mask.sum(-1)
            bc = bc + rho[t] * (batch.imitation * error - learning.entropy_coef * entropy).mean() / horizon
    total = learning.consistency_coef * consistency + learning.reward_coef * reward + learning.value_coef * value
    total = total + bc_coef * bc + learning.termination_coef * termination
    return PlainLosses(total, consistency, reward, value, bc, torch.stack(zs).detach())


def policy_loss(
    model: WorldModel,
    table: TaskTable,
    batch: Batch,
    z: Tensor,
    draws: UpdateDraws,
    learning: config.Learning,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute the online policy loss at latents (T + 1, B, Z), and the value (B,) of the action at the first."""
    plain = PlainModel(model)
    horizon = len(batch.action)
    rho = _rho(learning.rho, horizon)
    mask, emb = table.action_mask[batch.task], table.embeddings[batch.task, draws.phrasing]
    loss, values = torch.zeros((), device=z.device), []
    for t in range(horizon + 1):
        action, entropy = plain.policy(z[t], emb, mask, draws.policy_noise[t])
        q = plain.decode(plain.q(z[t], action, emb))
        values.append((q[draws.policy_members[0]] + q[draws.policy_members[1]]) / 2)
        step = -learning.entropy_coef * entropy - values[-1] / scale
        if t < horizon:
            error = ((action - batch.expert_action[t]) ** 2 * mask).sum(-1) / mask.sum(-1)
            step = step + learning.prior_coef * batch.imitation * error
        loss = loss + rho[t] * step.mean()
    return loss, values[0].detach()


class PlainLearner:
    """The whole update with torch's plain Adam."""

    def __init__(self, model: WorldModel, table: TaskTable, learning: config.Learning):
        self.model, self.table, self.learning = model, table, learning
        self.scale = torch.ones(1, device=model.bins.device)
        world = [model.dynamics, model.reward_head, model.q_heads, model.policy_head, model.termination_head]
        self.world = [parameter for network in world if network for parameter in network.parameters()]
        encoder = list(model.encoder.parameters())
        groups = [{"params": encoder, "lr": learning.lr * learning.encoder_lr_scale}, {"params": self.world}]
        self.model_optimizer = torch.optim.Adam(groups, lr=learning.lr)
        self.policy_optimizer = torch.optim.Adam(model.policy_head.parameters(), lr=learning.lr, eps=1e-5)

    def update(self, batch: Batch, pretrain: bool, draws: UpdateDraws) -> None:
        """Learn from one batch."""
        bc_coef = self.learning.bc_coef if pretrain else self.learning.online_bc_coef
        found = model_losses(self.model, self.table, batch, draws, self.learning, bc_coef)
        self.model_optimizer.zero_grad()
        found.total.backward()
        if not pretrain:
            self.model.policy_head.zero_grad()  # its own optimiser moves it below
        nn.utils.clip_grad_norm_([*self.model.encoder.parameters(), *self.world], self.learning.grad_clip_norm)
        self.model_optimizer.step()
        with torch.no_grad():
            pairs = zip(self.model.target_q_heads.parameters(), self.model.q_heads.parameters(), strict=True)
            for target, online in pairs:
                target += self.learning.tau * (online - target)
        if pretrain:
            return
        for parameter in self.model.q_heads.parameters():
            parameter.requires_grad_(False)
        self.policy_optimizer.zero_grad()
        loss, q = policy_loss(self.model, self.table, batch, found.z, draws, self.learning, self.scale)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.policy_head.parameters(), self.learning.grad_clip_norm)
        self.policy_optimizer.step()
        for parameter in self.model.q_heads.parameters():
            parameter.requires_grad_(True)
        spread = torch.quantile(q, 0.95) - torch.quantile(q, 0.05)
        self.scale += self.learning.tau * (spread.clamp(min=1) - self.scale)


@torch.no_grad()
def plan(
    model: WorldModel,
    emb: Tensor,
    obs: Tensor,
    planner: config.Planner,
    prev_mean: Tensor,
    is_first: Tensor,
    discount: Tensor,
    action_mask: Tensor,
    draws: PlanDraws,
    constraint_weight: float = 0.0,
    explore: bool = False,
) -> Plan:
    """Plan for N environments; `emb` is (N, E), all else as in `pipeline.model.planner.plan`."""
    plain = PlainModel(model)
    num_policy, num_envs = planner.num_policy_samples, len(obs)
    emb = emb.expand(planner.num_samples, *emb.shape)
    mask = action_mask.expand(planner.num_samples, *action_mask.shape)
    z0 = plain.encode(obs, emb[0]).expand(planner.num_samples, -1, -1)

    z, policy_actions = z0[:num_policy], []
    for t in range(planner.horizon):
        action, _ = plain.policy(z, emb[:num_policy], mask[:num_policy], draws.policy_noise[t])
        policy_actions.append(action)
        z = plain.next(z, action, emb[:num_policy])
    policy_actions = torch.stack(policy_actions)

    mean = torch.cat([prev_mean[1:], torch.zeros_like(prev_mean[:1])])
    mean[:, is_first] = 0
    std = torch.full_like(mean, planner.max_std)
    if constraint_weight:
        mean = (1 - constraint_weight) * mean + constraint_weight * policy_actions.mean(1)
        std = (1 - constraint_weight) * std + constraint_weight * policy_actions.std(1)
        std = std.clamp(planner.min_std, planner.max_std)
    for i in range(planner.iterations):
        samples = (mean.unsqueeze(1) + std.unsqueeze(1) * draws.sample_noise[i]).clamp(-1, 1)
        actions = torch.cat([policy_actions, samples], 1) * mask
        z, value = z0, torch.zeros(planner.num_samples, num_envs, device=z0.device)
        weight = torch.ones_like(value)
        for action in actions:
            value = value + weight * plain.decode(plain.reward(z, action, emb))
            weight = weight * discount * (1 - torch.sigmoid(plain.termination(z, action, emb)))
            z = plain.next(z, action, emb)
        action, _ = plain.policy(z, emb, mask, draws.value_noise[i])
        q = plain.decode(plain.q(z, action, emb))
        value = value + weight * (q[draws.members[i][0]] + q[draws.members[i][1]]) / 2
        best, index = torch.topk(value, planner.num_elites, 0)
        elites = torch.stack([actions[:, index[:, n], n] for n in range(num_envs)], 2)
        score = torch.exp(planner.temperature * (best - best.max(0).values))
        score = score / score.sum(0)
        mean = (score[..., None] * elites).sum(1)
        std = torch.sqrt((score[..., None] * (elites - mean.unsqueeze(1)) ** 2).sum(1))
        mean, std = mean * action_mask, std.clamp(planner.min_std, planner.max_std) * action_mask
    gumbel = -torch.log(draws.elite_exponential)
    choice = ((torch.log(score) + gumbel) / planner.temperature).argmax(0)
    action = elites[0, choice, torch.arange(num_envs, device=choice.device)]
    if explore:
        action = action + std[0] * draws.explore_noise
    return Plan(action.clamp(-1, 1), mean, std, elites[0], score)


def _rho(rho: float, horizon: int) -> Tensor:
    weights = torch.tensor([rho**t for t in range(horizon + 1)])
    return weights / weights.sum()
