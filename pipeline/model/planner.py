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
from pipeline.model.compute import compiled_whole, let_vary
from pipeline.model.density import plan_log_prob
from pipeline.model.history import Memory
from pipeline.model.q_ensemble import draw_members
from pipeline.model.two_hot import decode
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.shapes import Plan
from pipeline.systems.history.past import Past


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
    past: Past | None = None,
    log_prob: bool = False,
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
        past: the steps of the N episodes before this one, for a model that sees them; None counts as no steps.
        log_prob: also say how likely that action was; only for one with noise, which has a density.

    Returns:
        the action of each environment, and mean and std of the action sequence.
    """
    num_envs, action_dim = action_mask.shape
    if isinstance(draws, torch.Generator):
        draws = PlanDraws.sample(planner, num_envs, action_dim, model.config.num_q, draws).to(obs.device)
    weight = torch.as_tensor(constraint_weight, dtype=obs.dtype, device=obs.device).reshape(-1, 1)  # (1 or N, 1)
    compiled = ctx.encoder.compute.compile
    begin, refine = (compiled_whole(_begin), compiled_whole(_refine)) if compiled else (_begin, _refine)
    if compiled:
        weight = weight.expand(num_envs, 1).contiguous()
        let_vary((obs, is_first, discount, action_mask, weight, *ctx.biases()), 0)
        let_vary((prev_mean,), 1)
        let_vary((draws.policy_noise,), 2)
    start = begin(
        model,
        ctx._replace(q=(), target_q=()),
        obs,
        planner,
        prev_mean,
        is_first,
        discount,
        action_mask,
        draws[0],
        weight,
        past,
    )
    if compiled:
        let_vary((start.z,), 0)
        let_vary((start.discounts, start.policy_return, start.policy_z), 1)
        let_vary(() if start.policy_alive is None else (start.policy_alive,), 1)
        let_vary((start.policy_actions,), 2)
    mean, std = start.mean, start.std
    for i in range(planner.iterations):
        # The two members go in as themselves and not as numbers, which a compiled function would be made anew for.
        pair = ctx._replace(q=tuple(ctx.q[member] for member in draws.members[i]), target_q=())
        sample_noise, value_noise = draws.sample_noise[i], draws.value_noise[i]
        if compiled:
            let_vary((mean, std, value_noise), 1)
            let_vary((sample_noise,), 2)
        mean, std, elites, weights = refine(
            model, pair, planner, start, mean, std, action_mask, sample_noise, value_noise
        )

    # argmax(ln w + G) with Gumbel G picks each elite with the probability of its weight.
    choice = (weights.log() - draws.elite_exponential.log()).argmax(0)
    action = elites[0, choice, torch.arange(num_envs, device=obs.device)]
    if explore:
        action = action + std[0] * draws.explore_noise
    action = action.clamp(-1, 1)
    if not (log_prob and explore):
        return Plan(action, mean, std)
    return Plan(action, mean, std, plan_log_prob(elites[0], weights, std[0], action, action_mask))


class _Start(NamedTuple):
    """What all refinements of a plan begin from."""

    z: Tensor  # (N, Z)
    memory: Memory | None  # of the real past, shared by all samples
    discounts: Tensor  # (T + 1, N)
    policy_actions: Tensor  # (T, R, N, A)
    policy_return: Tensor  # (R, N)
    policy_z: Tensor  # (R, N, Z), the last latents
    policy_alive: Tensor | None  # (R, N), where terminations are predicted: the chance of having gone on until then
    mean: Tensor  # (T, N, A)
    std: Tensor  # (T, N, A)


def _begin(
    model: WorldModel,
    ctx: TaskContext,
    obs: Tensor,
    planner: config.Planner,
    prev_mean: Tensor,
    is_first: Tensor,
    discount: Tensor,
    action_mask: Tensor,
    policy_noise: Tensor,
    constraint_weight: Tensor,
    past: Past | None,
) -> _Start:
    """Encode, read the past, roll the policy out and choose where the search starts."""
    memory = model.remember(past, ctx)
    z = model.state(obs, ctx, memory)
    discounts = discount ** torch.arange(planner.horizon + 1, device=obs.device).unsqueeze(1)
    actions, returns, last_z, alive = policy_rollouts(model, ctx, z, action_mask, discounts, policy_noise, memory)
    mean, std = _start(planner, prev_mean, is_first, actions, constraint_weight)
    return _Start(z, memory, discounts, actions, returns, last_z, alive, mean, std)


def _refine(
    model: WorldModel,
    ctx: TaskContext,
    planner: config.Planner,
    start: _Start,
    mean: Tensor,
    std: Tensor,
    action_mask: Tensor,
    sample_noise: Tensor,
    value_noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample around a mean, judge, and return the new mean and std (T, N, A), elites (T, E, N, A), weights (E, N).

    The Q members of `ctx` are the two whose mean is the final value.
    """
    samples = (mean.unsqueeze(1) + std.unsqueeze(1) * sample_noise).clamp_(-1, 1).mul_(action_mask)
    sample_return, sample_z, sample_alive = _rollouts(model, ctx, start.z, samples, start.discounts, start.memory)
    last_z = torch.cat([start.policy_z, sample_z])
    last_action = model.policy(last_z, ctx, action_mask, value_noise).action
    last_value = decode(model.q(last_z, last_action, ctx), model.bins).mean(0)
    if start.policy_alive is not None and sample_alive is not None:
        last_value = torch.cat([start.policy_alive, sample_alive]) * last_value
    value = torch.cat([start.policy_return, sample_return]) + start.discounts[-1] * last_value  # (P, N)
    elites, weights = _elites(torch.cat([start.policy_actions, samples], dim=1), value, planner)
    mean = (weights * elites).sum(1) * action_mask
    std = (weights * (elites - mean.unsqueeze(1)).square()).sum(1).sqrt()
    return mean, std.clamp(planner.min_std, planner.max_std) * action_mask, elites, weights.squeeze(-1)


def policy_rollouts(
    model: WorldModel,
    ctx: TaskContext,
    z: Tensor,
    action_mask: Tensor,
    discounts: Tensor,
    noise: Tensor,
    memory: Memory | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Follow the policy from z (N, Z) and the memory of what came before, once per row of its noise (T, R, N, A).

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
        z, memory = model.advance(z, action, ctx, memory)
        alive = _still_alive(model, ctx, z, alive)
        actions.append(action)
    return torch.stack(actions), total, z, alive


def _rollouts(
    model: WorldModel, ctx: TaskContext, z: Tensor, actions: Tensor, discounts: Tensor, memory: Memory | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Follow actions (T, S, N, A) from z (N, Z): discounted return (S, N), last latents (S, N, Z), who is `alive`."""
    total, alive = torch.zeros(actions.shape[1:3], device=z.device), None
    for action, weight in zip(actions, discounts, strict=False):
        reward = decode(model.reward(z, action, ctx), model.bins)
        total = total + weight * (reward if alive is None else alive * reward)
        z, memory = model.advance(z, action, ctx, memory)
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
    planner: config.Planner, prev_mean: Tensor, is_first: Tensor, policy_actions: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the first mean and std (T, N, A): the previous plan moved on by one step, mixed with the policy's."""
    mean = torch.zeros_like(prev_mean)
    mean[:-1] = prev_mean[1:]
    mean = mean.masked_fill(is_first.bool().unsqueeze(-1), 0.0)
    std = torch.full_like(mean, planner.max_std)
    policy_std = policy_actions.std(1, correction=min(1, planner.num_policy_samples - 1))
    std = torch.lerp(std, policy_std, weight).clamp(planner.min_std, planner.max_std)
    return torch.lerp(mean, policy_actions.mean(1), weight), std


def _elites(actions: Tensor, value: Tensor, planner: config.Planner) -> tuple[Tensor, Tensor]:
    """Pick the best of P sequences (T, P, N, A): elites (T, E, N, A), weights (E, N, 1) that sum to 1 over E."""
    best, index = value.topk(planner.num_elites, dim=0)
    elites = actions[:, index, torch.arange(value.shape[1], device=value.device)]
    weights = torch.exp(planner.temperature * (best - best[0]))
    return elites, (weights / weights.sum(0)).unsqueeze(-1)
