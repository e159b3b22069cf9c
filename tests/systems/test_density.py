"""How likely an executed action was, against torch.distributions and against actions that were really made."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from benchmarks.problem import TINY, make_model, make_table
from pipeline.model.actor import Actor
from pipeline.model.math import Policy, squashed_gaussian
from pipeline.model.planner import Plan, PlanDraws, plan
from pipeline.systems.m3po.actor import M3poActor
from pipeline.systems.m3po.density import EDGE, plan_log_prob, policy_log_prob
from tests.tiny import TINY_PLANNER

TABLE = make_table()


def make_policy(num: int, dims: int, mask: Tensor, spread: float = 0.5, seed: int = 0) -> Policy:
    draw = torch.Generator().manual_seed(seed)
    raw, noise = spread * torch.randn(num, 2 * dims, generator=draw), torch.randn(num, dims, generator=draw)
    return squashed_gaussian(raw, mask, noise, -3.0, 1.0)


def test_between_the_edges_the_policy_s_is_that_of_torch_over_the_real_dims() -> None:
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    policy = make_policy(200, 4, mask)
    inside = (policy.action.abs() < EDGE).all(1)
    assert inside.sum() > 100
    reference = Independent(
        TransformedDistribution(Normal(policy.mean[:, :3], policy.log_std[:, :3].exp()), TanhTransform()), 1
    )
    expected = reference.log_prob(policy.action[:, :3])
    found = policy_log_prob(policy, policy.action, mask)
    assert torch.allclose(found[inside], expected[inside], atol=1e-3)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_beyond_an_edge_it_is_the_probability_of_all_that_lies_there(side: float) -> None:
    mask = torch.ones(1)
    policy = make_policy(50, 1, mask, spread=2.0)
    tail = Normal(side * policy.mean, policy.log_std.exp()).cdf(torch.tensor(-math.atanh(EDGE)))
    other = 1 - Normal(side * policy.mean, policy.log_std.exp()).cdf(torch.tensor(math.atanh(EDGE)))
    for action in (side * EDGE, side * 0.999, side):
        found = policy_log_prob(policy, torch.full((50, 1), action), mask).exp()
        assert torch.allclose(found, other.squeeze(1), atol=1e-5)
    assert torch.allclose(policy_log_prob(policy, torch.full((50, 1), -side), mask).exp(), tail.squeeze(1), atol=1e-5)


def test_it_stays_finite_and_so_does_its_gradient() -> None:
    mask = torch.ones(4)
    raw = (30 * torch.randn(100, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    policy = squashed_gaussian(raw, mask, None, -10.0, 2.0)
    action = torch.linspace(-1, 1, 400).view(100, 4)
    policy_log_prob(policy, action, mask).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def plan_many(num: int, explore_std: float) -> tuple[Plan, Tensor]:
    """One plan executed `num` times, and its mask: the search is the same, choice and noise at the end differ."""
    planner = replace(TINY_PLANNER, min_std=explore_std, max_std=explore_std + 1e-6)
    model, one = make_model(), torch.Generator().manual_seed(0)
    draws = PlanDraws.sample(planner, 1, TINY.action_dim, TINY.num_q, one)
    many = draws._replace(
        policy_noise=draws.policy_noise.expand(-1, -1, num, -1),
        sample_noise=draws.sample_noise.expand(-1, -1, -1, num, -1),
        value_noise=draws.value_noise.expand(-1, -1, num, -1),
        elite_exponential=torch.empty(planner.num_elites, num).exponential_(generator=one),
        explore_noise=torch.randn(num, TINY.action_dim, generator=one),
    )
    rows = torch.zeros(num, dtype=torch.long)
    obs = torch.randn(1, TINY.obs_dim, generator=torch.Generator().manual_seed(1)).expand(num, -1)
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(num, -1)  # one real dim: its density can be drawn
    ctx = model.context(TABLE, rows)._replace(action_mask=mask)
    prev_mean = torch.zeros(planner.horizon, num, TINY.action_dim)
    return plan(model, ctx, obs, planner, prev_mean, torch.ones(num).bool(), many, explore=True), mask


@pytest.mark.parametrize("explore_std", [0.2, 0.6])
def test_a_plan_s_is_that_of_the_actions_it_really_makes(explore_std: float) -> None:
    """The densities it reports, summed over the actions in their order, follow the share of actions up to there."""
    num = 1000
    made, mask = plan_many(num, explore_std)
    log_prob = plan_log_prob(made.elites, made.weights, made.std[0], made.action, mask)
    action, order = made.action[:, 0].sort()
    density = log_prob[order].exp()
    low, high = action <= -EDGE, action >= EDGE
    tails = [float(density[side].mean()) if side.any() else 0.0 for side in (low, high)]
    inside = ~low & ~high
    reported = tails[0] + torch.cumulative_trapezoid(density[inside], action[inside])
    happened = (low.sum() + torch.arange(1, int(inside.sum()))) / num
    assert (reported - happened).abs().max() < 1.63 / num**0.5  # Kolmogorov's bound for a chance of 1 %
    assert float(reported[-1]) + tails[1] == pytest.approx(1, abs=0.02)
    assert explore_std < 0.5 or tails[1] > 0.05, "clamping was not tested"


def test_a_plan_s_counts_every_elite_that_could_have_made_the_action() -> None:
    elites = torch.tensor([[[0.5, -0.2, 0.0]], [[-0.3, 0.4, 0.0]]])  # (E = 2, N = 1, A = 3)
    weights, std = torch.tensor([[0.7], [0.3]]), torch.tensor([[0.2, 0.5, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    action = torch.tensor([[0.1, 1.0, 0.0]])  # the second dim was clamped
    expected = torch.zeros(())
    for elite, weight in zip(elites[:, 0], weights[:, 0], strict=True):
        inner, outer = Normal(elite[0], std[0, 0]), Normal(elite[1], std[0, 1])
        expected = expected + weight * inner.log_prob(action[0, 0]).exp() * (1 - outer.cdf(torch.tensor(EDGE)))
    assert float(plan_log_prob(elites, weights, std, action, mask)) == pytest.approx(float(expected.log()), abs=1e-5)


@pytest.mark.parametrize("planned", [True, False, torch.tensor([True, False, True])])
def test_acting_says_how_likely_its_own_action_was(planned: bool | Tensor) -> None:
    model, rows = make_model(), torch.arange(3)
    obs = torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(1))
    actor, plain = M3poActor(model, TABLE, TINY_PLANNER), Actor(model, TABLE, TINY_PLANNER)
    actor.reset(3, seed=4)
    plain.reset(3, seed=4)
    action = actor.act(obs, rows, planned, True, 0.5)
    assert torch.equal(action, plain.act(obs, rows, planned, explore=True, constraint_weight=0.5))
    log_prob = actor.columns["log_prob"]
    assert log_prob.shape == (3,)
    with torch.no_grad():
        ctx = model.context(TABLE, rows)
        of_policy = policy_log_prob(model.policy(model.encode(obs, ctx), ctx), action, ctx.action_mask)
    same = (log_prob - of_policy).abs() < 1e-4
    assert torch.equal(same, ~torch.as_tensor(planned).expand(3)), "a plan must not be scored as if the policy acted"
    actor.act(obs, rows, planned, False, 0.5)
    assert actor.columns == {}, "without noise an action has no density"


@pytest.mark.parametrize("plan", [True, False, torch.tensor([False, True])])
def test_a_part_has_the_log_probabilities_it_has_alone(plan: bool | Tensor) -> None:
    actor, alone = (M3poActor(make_model(), TABLE, TINY_PLANNER) for _ in range(2))
    draw, part, weight = torch.Generator().manual_seed(3), torch.tensor([0, 2]), torch.tensor([0.5, 0.0])
    actor.reset(3, seed=1)
    alone.reset(2, seed=1)
    for _ in range(3):
        obs = torch.randn(2, TINY.obs_dim, generator=draw)
        assert torch.equal(actor.act(obs, part, plan, True, weight, part), alone.act(obs, part, plan, True, weight))
        assert torch.equal(actor.columns["log_prob"], alone.columns["log_prob"])
