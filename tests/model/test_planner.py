"""Planning: bounds, masks, the warm start, and that it finds what the model promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.model.planner import Plan, PlanDraws, plan
from tests.tiny import TINY_PLANNER

N = 3


def plan_with(
    planner: config.Planner = TINY_PLANNER,
    seed: int = 0,
    rows: Tensor | None = None,
    draws: PlanDraws | None = None,
    prev_mean: Tensor | None = None,
    first: bool = True,
    **options: object,
) -> Plan:
    """Plan for one environment per task of a small table, or for the tasks in `rows`."""
    table, model = make_table(num_tasks=N), make_model()
    rows = torch.arange(N) if rows is None else rows
    obs = torch.randn(N, TINY.obs_dim, generator=torch.Generator().manual_seed(1))[rows]
    if prev_mean is None:
        prev_mean = torch.zeros(planner.horizon, len(rows), TINY.action_dim)
    with torch.no_grad():
        ctx = model.context(table, rows)
    return plan(
        model, ctx, obs, planner, prev_mean, torch.full((len(rows),), first),
        draws or torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


def draw(num_envs: int = N, planner: config.Planner = TINY_PLANNER) -> PlanDraws:
    return PlanDraws.sample(planner, num_envs, TINY.action_dim, TINY.num_q, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, torch.tensor([0.0, 0.5, 1.0])])
@pytest.mark.parametrize("explore", [False, True])
def test_bounds_and_masks(weight: float | Tensor, explore: bool) -> None:
    found = plan_with(constraint_weight=weight, explore=explore)
    mask = make_table(num_tasks=N).action_mask
    assert found.action.shape == (N, TINY.action_dim)
    assert found.mean.shape == found.std.shape == (TINY_PLANNER.horizon, N, TINY.action_dim)
    assert found.action.abs().max() <= 1
    for part in found[:3]:
        assert not (part * (1 - mask)).any()
    real = found.std[:, mask.bool()]
    assert real.min() >= TINY_PLANNER.min_std
    assert real.max() <= TINY_PLANNER.max_std


def test_the_same_generator_gives_the_same_plan() -> None:
    assert torch.equal(plan_with(seed=4).action, plan_with(seed=4).action)
    assert not torch.equal(plan_with(seed=4).action, plan_with(seed=5).action)


def test_environments_do_not_influence_each_other() -> None:
    together = draw()
    found = plan_with(draws=together)
    for row in range(N):
        alone = PlanDraws(
            together.policy_noise[..., row : row + 1, :],
            together.sample_noise[..., row : row + 1, :],
            together.value_noise[..., row : row + 1, :],
            together.members,
            together.elite_exponential[:, row : row + 1],
            together.explore_noise[row : row + 1],
        )
        single = plan_with(rows=torch.tensor([row]), draws=alone)
        assert torch.allclose(single.action[0], found.action[row], atol=1e-4)
        assert torch.allclose(single.mean[:, 0], found.mean[:, row], atol=1e-4)


def test_previous_plan_counts_only_within_an_episode() -> None:
    prev_mean = torch.full((TINY_PLANNER.horizon, N, TINY.action_dim), 0.9)
    cold = plan_with(draws=draw())
    assert torch.equal(plan_with(draws=draw(), prev_mean=prev_mean).mean, cold.mean)
    assert not torch.equal(plan_with(draws=draw(), prev_mean=prev_mean, first=False).mean, cold.mean)


def test_full_constraint_starts_from_the_policy_alone() -> None:
    prev_mean = torch.full((TINY_PLANNER.horizon, N, TINY.action_dim), 0.9)
    with_previous = plan_with(draws=draw(), prev_mean=prev_mean, first=False, constraint_weight=1.0)
    assert torch.equal(plan_with(draws=draw(), constraint_weight=1.0).mean, with_previous.mean)


def test_the_action_is_that_of_an_elite_and_the_weights_sum_to_1() -> None:
    found = plan_with()
    assert found.elites.shape == (TINY_PLANNER.num_elites, N, TINY.action_dim)
    assert torch.allclose(found.weights.sum(0), torch.ones(N))
    assert (found.elites == found.action).all(-1).any(0).all()
    assert torch.equal(found.weights, found.weights.sort(0, descending=True).values)  # the best first


def test_one_policy_sample_is_enough() -> None:
    planner = replace(TINY_PLANNER, num_policy_samples=1)
    found = plan_with(planner, constraint_weight=1.0)
    assert all(part.isfinite().all() for part in found[:3])


def test_exploring_adds_the_plan_s_own_noise() -> None:
    draws = draw()
    calm, bold = plan_with(draws=draws), plan_with(draws=draws, explore=True)
    assert torch.equal(bold.mean, calm.mean)
    expected = (calm.action + calm.std[0] * draws.explore_noise).clamp(-1, 1)
    assert torch.allclose(bold.action, expected, atol=1e-6)


def test_planning_finds_the_rewarded_action() -> None:
    """With a reward head that pays for the first action dim, and nothing else, the plan drives it to its bound."""
    table, model = make_table(num_tasks=1), make_model()
    with torch.no_grad():
        for head in (model.reward_head, *model.q_heads):
            for value in head.parameters():
                value.zero_()
        first, middle, last = model.reward_head.blocks
        first.linear.weight[0, TINY.latent_dim + TINY.task_dim] = 1.0  # the action's first dim ...
        for block in (first, middle):
            block.norm.weight.fill_(1.0)
        middle.linear.weight[0, 0] = 1.0
        last.linear.weight[-1, 0] = 8.0  # ... raises the highest bin
        ctx = model.context(table, torch.tensor([0]))
    planner = replace(TINY_PLANNER, num_samples=256, num_elites=32, iterations=6)
    found = plan(
        model, ctx, torch.zeros(1, TINY.obs_dim), planner, torch.zeros(planner.horizon, 1, TINY.action_dim),
        torch.tensor([True]), torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.mean[0, 0, 0] > 0.5
