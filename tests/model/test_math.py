"""The formulas: two-hot scalars, the squashed Gaussian policy, losses against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from pipeline.model.math import (
    Policy,
    bc_loss,
    consistency_loss,
    decode,
    imitation_error,
    locate,
    scalar_losses,
    soft_cross_entropy,
    squashed_gaussian,
    step_weights,
    symexp,
    symlog,
    td_target,
    termination_loss,
    two_hot,
    update_value_scale,
)

BINS = torch.linspace(-10, 10, 101)
scalars = st.lists(st.floats(-2e4, 2e4, width=32), min_size=1, max_size=8).map(torch.tensor)  # within the bins
any_scalars = st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=8).map(torch.tensor)


@given(scalars)
def test_symexp_undoes_symlog(x: torch.Tensor) -> None:
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-4, atol=1e-5)


def test_the_derivative_of_symexp_is_that_of_its_parts() -> None:
    x = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(symexp, (x + 0.1,))


def test_scalars_of_several_heads_are_as_each_by_itself() -> None:
    draw = torch.Generator().manual_seed(0)
    bins = torch.linspace(-5.0, 5.0, 11)
    reward, q = torch.randn(2, 3, 11, generator=draw), torch.randn(4, 2, 3, 11, generator=draw)
    targets = 5 * torch.randn(2, 2, 3, generator=draw)
    known = torch.tensor([True, False, True])
    for each in (False, True):
        both = scalar_losses([reward, q], list(targets), bins, WEIGHTS, each, known)
        alone = [
            scalar_losses([one], [target], bins, WEIGHTS, each, known)[0]
            for one, target in zip((reward, q), targets, strict=True)
        ]
        for found, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(found, expected)


@given(any_scalars)
def test_two_hot_is_a_distribution_on_two_neighbours(x: torch.Tensor) -> None:
    target = two_hot(x, BINS)
    assert torch.allclose(target.sum(-1), torch.ones(len(x)), atol=1e-5)
    assert target.min() >= 0
    for row in target:
        indices = row.nonzero().flatten().tolist()
        assert indices[-1] - indices[0] <= 1


@given(scalars)
def test_decode_undoes_two_hot(x: torch.Tensor) -> None:
    logits = two_hot(x, BINS).log()  # softmax gives the distribution back
    assert torch.allclose(decode(logits, BINS), x, rtol=1e-3, atol=1e-3)


def test_scalars_beyond_the_bins_count_as_the_outermost() -> None:
    target = two_hot(torch.tensor([-math.inf, -1e9, 1e9, math.inf]), BINS)
    assert target[:2, 0].tolist() == [1, 1]
    assert target[2:, -1].tolist() == [1, 1]


@given(scalars)
def test_soft_cross_entropy_is_that_of_the_full_target(x: torch.Tensor) -> None:
    logits = torch.randn(3, len(x), len(BINS), generator=torch.Generator().manual_seed(0))
    expected = -(two_hot(x, BINS) * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(soft_cross_entropy(logits, locate(x, BINS)), expected, rtol=1e-5, atol=1e-5)


def test_a_scalar_that_is_no_number_shows_in_the_loss() -> None:
    loss = soft_cross_entropy(torch.zeros(2, len(BINS)), locate(torch.tensor([1.0, math.nan]), BINS))
    assert loss.isnan().tolist() == [False, True]


# --- the policy ------------------------------------------------------------------------------------------------------

TWO_REAL_DIMS = torch.tensor([1.0, 1.0, 0.0])
LN_2PI = math.log(2 * math.pi)


def raw_of(mean: list[float], log_std: list[float]) -> torch.Tensor:
    """What a policy head must give for these, within the bounds -4 and 2."""
    inner = torch.atanh((torch.tensor(log_std) + 4) / 3 - 1)
    return torch.cat([torch.tensor(mean), inner])


def test_a_policy_s_action_and_entropies_are_those_computed_by_hand() -> None:
    raw = raw_of([0.5, 0.0, 9.0], [math.log(0.5), 0.0, 1.0])  # what stands in the padded dim must not matter
    policy = squashed_gaussian(raw, TWO_REAL_DIMS, torch.tensor([1.0, 0.0, 5.0]), -4.0, 2.0)
    assert policy.mean.tolist() == [0.5, 0, 0]
    assert policy.log_std.tolist() == pytest.approx([math.log(0.5), 0, 0], abs=1e-5)
    assert policy.action.tolist() == pytest.approx([math.tanh(0.5 + 1 * 0.5), 0, 0])
    assert policy.num_dims == 2
    # log N(noise) - log_std of each dim, a padded one with its constant as published, and the slope of tanh.
    gaussian = (-0.5 - math.log(0.5) - LN_2PI / 2) - LN_2PI / 2 - LN_2PI / 2
    squashed = gaussian - math.log(1 - math.tanh(1) ** 2 + 1e-6)
    assert float(policy.entropy) == pytest.approx(-squashed, abs=1e-4)
    assert float(policy.scaled_entropy) == pytest.approx(-gaussian * 2, abs=1e-4)


def test_without_padding_the_entropy_is_that_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    raw, noise = torch.randn(50, 4, generator=draw), torch.randn(50, 2, generator=draw)
    policy = squashed_gaussian(raw, torch.ones(1, 2), noise, -3.0, 0.0)
    own = TransformedDistribution(Normal(policy.mean, policy.log_std.exp()), TanhTransform(cache_size=1))
    expected = -own.log_prob(policy.action.clamp(-1 + 1e-6, 1 - 1e-6)).sum(-1)
    inside = policy.action.abs().amax(-1) < 0.99
    assert inside.sum() > 30
    assert torch.allclose(policy.entropy[inside], expected[inside], atol=1e-3)


def test_padded_dims_get_no_gradient_and_change_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    raw, noise = torch.randn(5, 6, generator=draw), torch.randn(5, 3, generator=draw)
    other, other_noise = raw.clone(), noise.clone()
    other[:, [2, 5]], other_noise[:, 2] = 3.0, -2.0
    policies = [
        squashed_gaussian(one.requires_grad_(), TWO_REAL_DIMS, some, -4.0, 2.0)
        for one, some in ((raw, noise), (other, other_noise))
    ]
    for part in ("mean", "log_std", "noise", "action", "entropy", "scaled_entropy"):
        first, second = (getattr(policy, part) for policy in policies)
        assert torch.equal(first, second), part
    (policies[0].action.sum() + policies[0].scaled_entropy.sum()).backward()
    assert raw.grad is not None
    assert not raw.grad[:, [2, 5]].any()
    assert raw.grad[:, [0, 1, 3, 4]].all()


def test_without_noise_it_is_the_mode_and_log_std_stays_within_its_bounds() -> None:
    raw = torch.tensor([0.3, -0.7, 0.0, 1e4, -1e4, 0.0])
    policy = squashed_gaussian(raw, TWO_REAL_DIMS, None, -4.0, 2.0)
    assert torch.equal(policy.action, policy.mean.tanh())
    assert not policy.noise.any()
    assert policy.log_std.tolist() == [2, -4, 0]


# --- the losses ------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.75, 0.25])


def test_the_weights_of_steps_fall_by_rho_and_sum_to_1() -> None:
    assert step_weights(0.5, 2).tolist() == pytest.approx([1 / 1.75, 0.5 / 1.75, 0.25 / 1.75])


def test_a_td_target_looks_beyond_a_step_unless_it_was_the_last() -> None:
    reward, terminated = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    value, discount = torch.tensor([[10.0, 20.0], [30.0, 40.0]]), torch.tensor([0.5, 0.9])
    assert td_target(reward, terminated, discount, value).tolist() == [[6, 20], [18, 4]]


def test_consistency_is_the_mean_square_weighted_over_time() -> None:
    z = torch.zeros(2, 2, 2)
    target = torch.tensor([[[1.0, 1.0], [3.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])  # mean squares 1, 5 and 2, 0
    each = [0.75 * 1 + 0.25 * 2, 0.75 * 5]
    assert consistency_loss(z, target, WEIGHTS, each=True).tolist() == each
    assert float(consistency_loss(z, target, WEIGHTS)) == sum(each) / 2


def test_a_scalar_s_loss_is_the_cross_entropy_of_its_two_bins() -> None:
    bins = torch.tensor([-1.0, 0.0, 1.0])
    half = math.exp(0.5) - 1  # lies in the middle of the upper two bins
    target = torch.tensor([[half, 0.0], [-half, 5.0]])  # 5 is beyond the highest
    likely = torch.tensor([1.0, 2.0, 1.0]).log()  # shares 1/4, 1/2, 1/4
    logits = torch.stack([likely.expand(2, -1), torch.zeros(2, 3)])  # at the second step all bins alike
    ln2, ln3 = math.log(2), math.log(3)
    each = [0.75 * (0.5 * ln2 + 0.5 * 2 * ln2) + 0.25 * ln3, 0.75 * ln2 + 0.25 * ln3]
    assert scalar_losses([logits], [target], bins, WEIGHTS, each=True)[0].tolist() == pytest.approx(each)
    assert float(scalar_losses([logits], [target], bins, WEIGHTS)[0]) == pytest.approx(sum(each) / 2)
    # A second member, which finds all bins alike at both steps: the mean of the two.
    both = torch.stack([logits, torch.zeros(2, 2, 3)])
    alike = ln3 * (0.75 + 0.25)
    expected = [(one + alike) / 2 for one in each]
    assert scalar_losses([both], [target], bins, WEIGHTS, each=True)[0].tolist() == pytest.approx(expected)
    assert float(scalar_losses([both], [target], bins, WEIGHTS)[0]) == pytest.approx(sum(expected) / 2)


def test_the_loss_of_terminations_is_their_binary_cross_entropy() -> None:
    logits, terminated = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    each = [math.log(2), (math.log(4 / 3) + math.log(4)) / 2]
    assert termination_loss(logits, terminated, each=True).tolist() == pytest.approx(each)
    assert float(termination_loss(logits, terminated)) == pytest.approx(sum(each) / 2)


def test_the_imitation_error_is_the_mean_over_real_dims() -> None:
    action, expert = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 3.0, 9.0], [1.0, 2.0, 3.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert imitation_error(action, expert, mask).tolist() == [[(1 + 9) / 2, pytest.approx((1 + 4 + 9) / 3)]]


def test_behaviour_cloning_is_the_error_less_the_entropy_over_the_number_of_steps() -> None:
    error = torch.tensor([[4.0, 8.0], [2.0, 0.0]])
    zeros = torch.zeros(2, 2, 1)
    policy = Policy(zeros, zeros, zeros, zeros, torch.tensor([1.0, 1.0]))
    entropy = LN_2PI / 2  # of a standard normal at its mode, in one dim
    each = [(0.75 * 4 + 0.25 * 2 - 0.1 * entropy) / 2, (0.75 * 8 - 0.1 * entropy) / 2]
    assert bc_loss(policy, error, WEIGHTS, 0.1, each=True).tolist() == pytest.approx(each, abs=1e-5)
    assert float(bc_loss(policy, error, WEIGHTS, 0.1)) == pytest.approx(sum(each) / 2, abs=1e-5)


def test_the_value_scale_follows_the_range_of_values_with_a_floor() -> None:
    scale = torch.ones(1)
    update_value_scale(scale, torch.zeros(10), 0.5)
    assert scale.item() == 1
    update_value_scale(scale, torch.arange(101.0), 0.5)  # 5th to 95th percentile: 90
    assert scale.item() == pytest.approx(1 + 0.5 * 89)
    update_value_scale(scale, torch.arange(101.0).view(1, 101) - 1000, 1.0)  # of any shape, and wherever it lies
    assert scale.item() == pytest.approx(90)
    update_value_scale(scale, torch.tensor([0.0, 0.1]), 0.1)
    assert scale.item() == pytest.approx(90 - 0.1 * 89)
