"""Planning: model-predictive path integral control in latent space (MPPI).

The dim of plan samples P precedes that of environments N: actions are (T, P, N, A), latents (P, N, Z). The context of
the N environments then broadcasts, and each matrix product has P N rows.

Source: TD-MPC2 (arXiv 2310.16828), appendix; Newt (arXiv 2511.19584) for constrained planning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import config
from pipeline.model import products
from pipeline.model.device import to_device
from pipeline.model.math import decode
from pipeline.model.world_model import TaskContext, WorldModel, draw_members


class PlanDraws(NamedTuple):
    """All random numbers of one plan, so that a test can fix them. Of P samples, R are policy rollouts, S are not."""

    policy_noise: Tensor  # (T, R, N, A) standard normal, for the policy rollouts
    sample_noise: Tensor  # (iterations, T, S, N, A) standard normal, for the other samples
    value_noise: Tensor  # (iterations, P, N, A) standard normal, for the policy action at the last latent
    members: list[tuple[int, int]] | Tensor  # per iteration, the Q members that are averaged there; or (iterations, 2)
    elite_exponential: Tensor  # (elites, N) exponential, for the choice among elites
    explore_noise: Tensor  # (N, A) standard normal, added to the chosen action when exploring

    @classmethod
    def sample(
        cls,
        planner: config.Planner,
        num_envs: int,
        action_dim: int,
        num_q: int,
        generator: torch.Generator,
        members: torch.Generator | None = None,
    ) -> PlanDraws:
        """Draw for one plan; the tensors are on the generator's device.

        Q members are numbers: with a generator on a GPU they come from `members`, on the CPU.
        """

        def normal(*shape: int) -> Tensor:
            shape = *shape, num_envs, action_dim
            return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)

        horizon, total, own = planner.horizon, planner.num_samples, planner.num_policy_samples
        exponential = torch.empty(planner.num_elites, num_envs, device=generator.device, dtype=torch.float32)
        return cls(
            normal(horizon, own),
            normal(planner.iterations, horizon, total - own),
            normal(planner.iterations, total),
            [draw_members(num_q, members or generator) for _ in range(planner.iterations)],
            exponential.exponential_(generator=generator),
            normal(),
        )

    def indexed(self) -> PlanDraws:
        """Return the same with the Q members as an index on the noise's device: which they are fixes no operation."""
        if isinstance(self.members, Tensor):
            return self
        return self._replace(members=to_device(torch.tensor(self.members), self.value_noise.device))

    def to(self, device: torch.device | str) -> PlanDraws:
        """Return the draws on a device."""
        moved = {name: part.to(device) for name, part in self._asdict().items() if isinstance(part, Tensor)}
        return self._replace(**moved)


class Plan(NamedTuple):
    """A plan for N environments."""

    action: Tensor  # (N, A) in [-1, 1]
    mean: Tensor  # (T, N, A) mean of the action sequence: warm start of the next plan
    std: Tensor  # (T, N, A)
    elites: Tensor  # (E, N, A) first actions of the elites
    weights: Tensor  # (E, N) of the elites, summing to 1 over E


@torch.no_grad()
def plan(
    model: WorldModel,
    ctx: TaskContext,
    obs: Tensor,
    planner: config.Planner,
    prev_mean: Tensor,
    is_first: Tensor,
    draws: PlanDraws | torch.Generator,
    constraint_weight: float | Tensor = 0.0,
    explore: bool = False,
    past: Any = None,
) -> Plan:
    """Plan for N environments at once, each with its own task.

    Args:
        model: the world model.
        ctx: context of N rows, made with the model's present weights.
        obs: (N, O)
        prev_mean: (T, N, A) `mean` of the previous plan; ignored where `is_first`.
        is_first: (N,) bool, whether this is an episode's first step.
        draws: the plan's random numbers, or the generator to draw them from.
        constraint_weight: in [0, 1], a number or (N,): weight of the policy rollouts in the first mean and std.
        explore: add noise of the plan's std to the action, as in training.
        past: earlier steps of the N episodes, for a model that reads them.
    """
    num_envs, action_dim = ctx.action_mask.shape
    if isinstance(draws, torch.Generator):
        draws = PlanDraws.sample(planner, num_envs, action_dim, model.config.num_q, draws).to(obs.device)
    with products.fixed_weights():
        # Start: encode, and roll the policy out in the model once; these are candidates in every iteration.
        z, carry = model.begin(obs, ctx, past)
        discounts = ctx.discount ** torch.arange(planner.horizon + 1, device=obs.device).unsqueeze(1)  # (T + 1, N)
        first, envs = model.at(z, ctx), torch.arange(num_envs, device=obs.device)
        policy = policy_rollouts(model, ctx, z, discounts, draws.policy_noise, carry, first)
        policy_actions = torch.stack(policy.actions)
        mean, std = _first_mean_std(planner, prev_mean, is_first, policy_actions, constraint_weight, ctx.action_mask)

        for i, members in enumerate(model.q_heads.pick(ctx.q, draws.members)):
            # Sample action sequences around the mean (0 in padded action dims), and roll them out in the model.
            actions = torch.addcmul(mean.unsqueeze(1), std.unsqueeze(1), draws.sample_noise[i]).clamp_(-1, 1)
            samples = _rollout(model, ctx, z, discounts, lambda t, _, actions=actions: actions[t], carry, first)

            # Value: the discounted rewards plus, at the last latent, Q of the policy's action (mean of two members).
            last_value = _last_value(model, ctx._replace(q=members), policy, samples, draws.value_noise[i])
            value = torch.addcmul(torch.cat([policy.returns, samples.returns]), discounts[-1], last_value)  # (P, N)
            value = value.nan_to_num(0.0)  # as published: top-k would take a NaN for the best

            # Refit: the elites, with softmax weights of their values, give the next mean and std.
            elites, weights = _elites(torch.cat([policy_actions, actions], dim=1), value, envs, planner)
            mean = (weights * elites).sum(1)
            std = (weights * (elites - mean.unsqueeze(1)).square()).sum(1).sqrt()
            std = std.clamp(planner.min_std, planner.max_std) * ctx.action_mask

    # Execute the plan's mean or one elite's first action; when exploring an elite's, with noise.
    weights = weights.squeeze(-1)
    action = _drawn(elites[0], weights, envs, draws) if explore or planner.execute == "elite" else mean[0]
    action = action + std[0] * draws.explore_noise if explore else action
    return Plan(action.clamp(-1, 1), mean, std, elites[0], weights)


def _drawn(actions: Tensor, weights: Tensor, envs: Tensor, draws: PlanDraws) -> Tensor:
    """Draw one of the elites' actions (E, N, A) by their weights w (E, N): the one with the largest ln w + G.

    G is Gumbel noise, -ln of exponential noise.
    """
    choice = (weights.log() - draws.elite_exponential.log()).argmax(0)
    return actions[choice, envs]


class Rollout(NamedTuple):
    """Sequences of actions, their predicted returns and last latents."""

    actions: list[Tensor]  # T of (P', N, A)
    returns: Tensor  # (P', N) discounted reward
    last_z: Tensor  # (P', N, Z)
    alive: Tensor | None  # (P', N) probability that the episode has not ended by then; None without termination head


def policy_rollouts(
    model: WorldModel,
    ctx: TaskContext,
    z: Tensor,
    discounts: Tensor,
    noise: Tensor,
    carry: Any = None,
    first: TaskContext | None = None,
) -> Rollout:
    """Roll the policy out from z (N, Z), R times, with noise (T, R, N, A); `first` is `model.at(z, ctx)`."""
    z = z.expand(noise.shape[1], *z.shape)
    return _rollout(model, ctx, z, discounts, lambda t, z: model.policy(z, ctx, noise[t]).action, carry, first or ctx)


def _rollout(
    model: WorldModel,
    ctx: TaskContext,
    z: Tensor,
    discounts: Tensor,
    act: Callable[[int, Tensor], Tensor],
    carry: Any,
    first: TaskContext,
) -> Rollout:
    """Roll out T steps of actions `act(t, z)` (P', N, A), summing rewards by the first T of `discounts` (T + 1, N).

    The first step is computed with the context `first`, all others with `ctx`.
    """
    actions, rewards, goes_on, alive = [], [], [], None
    for t in range(len(discounts) - 1):
        action = act(t, z)
        actions.append(action)
        here = ctx if t else first
        rewards.append(model.reward(z, action, here))
        goes_on.append(alive)  # until this step
        alive = still_alive(model, here, z, action, alive)
        z, carry = model.next(z, action, here, carry)
    reward = decode(torch.stack(rewards), model.bins)  # (T, P', N)
    if alive is not None:
        reward = reward * torch.stack([torch.ones_like(alive), *goes_on[1:]])
    return Rollout(actions, (discounts[:-1].unsqueeze(1) * reward).sum(0), z, alive)


def _last_value(model: WorldModel, ctx: TaskContext, policy: Rollout, samples: Rollout, noise: Tensor) -> Tensor:
    """Return the value (P, N) at the last latents, a mean of the Q members in `ctx`, if the episode gets so far."""
    z = torch.cat([policy.last_z, samples.last_z])
    action = model.policy(z, ctx, noise).action
    value = decode(model.q(z, action, ctx), model.bins).mean(0)
    if policy.alive is None or samples.alive is None:
        return value
    return torch.cat([policy.alive, samples.alive]) * value


def still_alive(model: WorldModel, ctx: TaskContext, z: Tensor, action: Tensor, alive: Tensor | None) -> Tensor | None:
    """Return the probability (..., N) that the episode goes on after actions (..., N, A) at z (..., N, Z).

    Args:
        model, ctx, z, action: as in `WorldModel.termination`.
        alive: (..., N) the probability before these actions; None for 1.

    Returns:
        None without termination head.
    """
    if model.termination_head is None:
        return None
    goes_on = (-model.termination(z, action, ctx)).sigmoid()
    return goes_on if alive is None else alive * goes_on


def _first_mean_std(
    planner: config.Planner,
    prev_mean: Tensor,
    is_first: Tensor,
    policy_actions: Tensor,
    constraint_weight: float | Tensor,
    action_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the first mean and std (T, N, A): the last plan shifted by one step, mixed with the policy rollouts."""
    mean = torch.zeros_like(prev_mean)
    mean[:-1] = prev_mean[1:]
    mean = mean.masked_fill(is_first.bool().unsqueeze(-1), 0.0)
    std = torch.full_like(mean, planner.max_std)
    if not isinstance(constraint_weight, Tensor):
        constraint_weight = mean.new_full((1,), constraint_weight)
    weight = constraint_weight.to(mean.dtype).reshape(-1, 1)  # (1 or N, 1)
    policy_std = policy_actions.std(1, correction=min(1, planner.num_policy_samples - 1))
    std = torch.lerp(std, policy_std, weight).clamp(planner.min_std, planner.max_std)
    return torch.lerp(mean, policy_actions.mean(1), weight) * action_mask, std * action_mask


def _elites(actions: Tensor, value: Tensor, envs: Tensor, planner: config.Planner) -> tuple[Tensor, Tensor]:
    """Pick the best of P sequences (T, P, N, A): elites (T, E, N, A), weights (E, N, 1) that sum to 1 over E."""
    best, index = value.topk(planner.num_elites, dim=0)
    return actions[:, index, envs], torch.softmax(planner.temperature * best, dim=0).unsqueeze(-1)
