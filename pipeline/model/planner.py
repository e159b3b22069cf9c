"""Planning: model-predictive path integral control in latent space (MPPI).

Every tensor here has its plan samples in front of the environments: actions are (T, P, N, A), latents (P, N, Z), so
that the context of the N environments broadcasts and a product sees P N rows.

Source: TD-MPC2 (arXiv 2310.16828), appendix; Newt (arXiv 2511.19584) for constrained planning.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import config
from pipeline.model.q_ensemble import draw_members
from pipeline.model.two_hot import decode
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.shapes import Plan


class PlanDraws(NamedTuple):
    """Everything random in one plan, so that a test can give it. S = P - the policy's samples."""

    policy_noise: Tensor  # (T, P - S, N, A) standard normal, of the policy's samples
    sample_noise: Tensor  # (iterations, T, S, N, A) standard normal, of the other samples
    value_noise: Tensor  # (iterations, P, N, A) standard normal, of the action the final value is read at
    members: list[tuple[int, int]]  # per iteration, the Q members whose mean is that value
    elite_exponential: Tensor  # (elites, N) exponential draws, of the choice among elites
    explore_noise: Tensor  # (N, A) standard normal, added to the chosen action when exploring

    @classmethod
    def sample(
        cls, planner: config.Planner, num_envs: int, action_dim: int, num_q: int, generator: torch.Generator
    ) -> PlanDraws:
        """Draw for one plan; the tensors live where the generator does."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, num_envs, action_dim, generator=generator, device=generator.device)

        horizon, total, own = planner.horizon, planner.num_samples, planner.num_policy_samples
        exponential = torch.empty(planner.num_elites, num_envs, device=generator.device)
        return cls(
            normal(horizon, own),
            normal(planner.iterations, horizon, total - own),
            normal(planner.iterations, total),
            [draw_members(num_q, generator) for _ in range(planner.iterations)],
            exponential.exponential_(generator=generator),
            normal(),
        )

    def to(self, device: torch.device | str) -> PlanDraws:
        """Return the draws on a device."""
        return PlanDraws(
            self.policy_noise.to(device),
            self.sample_noise.to(device),
            self.value_noise.to(device),
            self.members,
            self.elite_exponential.to(device),
            self.explore_noise.to(device),
        )


@torch.no_grad()
def plan(
    model: WorldModel,
    ctx: TaskContext,
    obs: Tensor,
    planner: config.Planner,
    prev_mean: Tensor,
    is_first: Tensor,
    discount: Tensor,
    action_mask: Tensor,
    draws: PlanDraws | torch.Generator,
    constraint_weight: float | Tensor = 0.0,
    explore: bool = False,
) -> Plan:
    """Plan for N environments at once, each with its own task.

    Args:
        model: the world model.
        ctx: context of N rows, made with the model's present weights.
        obs: (N, O)
        planner: settings.
        prev_mean: (T, N, A) `mean` of the previous plan; ignored where `is_first`.
        is_first: (N,) bool, whether this is an episode's first step.
        discount: (N,)
        action_mask: (N, A) 1 on real action dims.
        draws: the plan's random numbers, or the generator to draw them from.
        constraint_weight: in [0, 1], a number or (N,): how far the plan starts from the policy's own rollouts.
        explore: add the plan's own noise to the action, as in training.

    Returns:
        the action of each environment, and mean and std of the action sequence.
    """
    num_envs, action_dim = action_mask.shape
    if isinstance(draws, torch.Generator):
        draws = PlanDraws.sample(planner, num_envs, action_dim, model.config.num_q, draws).to(obs.device)
    z = model.encode(obs, ctx)
    discounts = discount ** torch.arange(planner.horizon + 1, device=obs.device).unsqueeze(1)  # (T + 1, N)

    policy_actions, policy_return, policy_z, policy_alive = policy_rollouts(
        model, ctx, z, action_mask, discounts, draws.policy_noise
    )
    mean, std = _start(planner, prev_mean, is_first, policy_actions, constraint_weight)
    for i in range(planner.iterations):
        samples = (mean.unsqueeze(1) + std.unsqueeze(1) * draws.sample_noise[i]).clamp_(-1, 1).mul_(action_mask)
        sample_return, sample_z, sample_alive = _rollouts(model, ctx, z, samples, discounts)
        last_z = torch.cat([policy_z, sample_z])
        last_action = model.policy(last_z, ctx, action_mask, draws.value_noise[i]).action
        last_value = decode(model.q(last_z, last_action, ctx, members=draws.members[i]), model.bins).mean(0)
        if policy_alive is not None and sample_alive is not None:
            last_value = torch.cat([policy_alive, sample_alive]) * last_value
        value = torch.cat([policy_return, sample_return]) + discounts[-1] * last_value  # (P, N)
        elites, weights = _elites(torch.cat([policy_actions, samples], dim=1), value, planner)
        mean = (weights * elites).sum(1) * action_mask
        std = (weights * (elites - mean.unsqueeze(1)).square()).sum(1).sqrt()
        std = std.clamp(planner.min_std, planner.max_std) * action_mask

    # argmax(ln w + G) with Gumbel G picks each elite with the probability of its weight.
    choice = (weights.squeeze(-1).log() - draws.elite_exponential.log()).argmax(0)
    action = elites[0, choice, torch.arange(num_envs, device=obs.device)]
    if explore:
        action = action + std[0] * draws.explore_noise
    return Plan(action.clamp(-1, 1), mean, std)


def policy_rollouts(
    model: WorldModel, ctx: TaskContext, z: Tensor, action_mask: Tensor, discounts: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Follow the policy from z (N, Z), once per row of its noise (T, R, N, A).

    Returns:
        actions (T, R, N, A), their discounted return (R, N) by `discounts` (T + 1, N), the last latents (R, N, Z), and
        who is still `alive` there.
    """
    z, alive = z.expand(noise.shape[1], *z.shape), None
    actions, total = [], torch.zeros(z.shape[:-1], device=z.device)
    for step_noise, weight in zip(noise, discounts, strict=False):
        action = model.policy(z, ctx, action_mask, step_noise).action
        reward = decode(model.reward(z, action, ctx), model.bins)
        total = total + weight * (reward if alive is None else alive * reward)
        z = model.next(z, action, ctx)
        alive = _still_alive(model, ctx, z, alive)
        actions.append(action)
    return torch.stack(actions), total, z, alive


def _rollouts(
    model: WorldModel, ctx: TaskContext, z: Tensor, actions: Tensor, discounts: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Follow actions (T, S, N, A) from z (N, Z): discounted return (S, N), last latents (S, N, Z), who is `alive`."""
    total, alive = torch.zeros(actions.shape[1:3], device=z.device), None
    for action, weight in zip(actions, discounts, strict=False):
        reward = decode(model.reward(z, action, ctx), model.bins)
        total = total + weight * (reward if alive is None else alive * reward)
        z = model.next(z, action, ctx)
        alive = _still_alive(model, ctx, z, alive)
    return total, z, alive


def _still_alive(model: WorldModel, ctx: TaskContext, z: Tensor, alive: Tensor | None) -> Tensor | None:
    """Return 1 where the episode goes on at latents z (..., N, Z) and did before, else 0; None: it always does.

    What is more likely than not to have ended counts as ended.

    Source: TD-MPC2 (arXiv 2310.16828), the option `episodic` of its later release.
    """
    if model.termination_head is None:
        return None
    goes_on = (model.termination(z, ctx) <= 0).to(z.dtype)
    return goes_on if alive is None else alive * goes_on


def _start(
    planner: config.Planner, prev_mean: Tensor, is_first: Tensor, policy_actions: Tensor, weight: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the first mean and std (T, N, A): the previous plan moved on by one step, mixed with the policy's."""
    mean = torch.zeros_like(prev_mean)
    mean[:-1] = prev_mean[1:]
    mean = mean.masked_fill(is_first.bool().unsqueeze(-1), 0.0)
    std = torch.full_like(mean, planner.max_std)
    weight = torch.as_tensor(weight, dtype=mean.dtype, device=mean.device).reshape(-1, 1)  # (1, 1) or (N, 1)
    policy_std = policy_actions.std(1, correction=min(1, planner.num_policy_samples - 1))
    std = torch.lerp(std, policy_std, weight).clamp(planner.min_std, planner.max_std)
    return torch.lerp(mean, policy_actions.mean(1), weight), std


def _elites(actions: Tensor, value: Tensor, planner: config.Planner) -> tuple[Tensor, Tensor]:
    """Pick the best of P sequences (T, P, N, A): elites (T, E, N, A), weights (E, N, 1) that sum to 1 over E."""
    best, index = value.topk(planner.num_elites, dim=0)
    elites = actions[:, index, torch.arange(value.shape[1], device=value.device)]
    weights = torch.exp(planner.temperature * (best - best[0]))
    return elites, (weights / weights.sum(0)).unsqueeze(-1)
