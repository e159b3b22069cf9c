"""The formulas of the clipped policy step against examples computed by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.systems.m3po.ppo import clipped_loss, disagreement, generalised_advantages, with_bonus


def test_advantages_of_a_terminated_and_a_truncated_episode() -> None:
    gamma, lam = 0.5, 0.8
    # The first episode has 3 steps and ends for good: what stands behind its end must not matter. The second has 2,
    # was cut off and bootstraps from its last observation; its third row is padding.
    reward = torch.tensor([[1.0, 2.0], [0.0, 1.0], [4.0, 99.0]])
    value = torch.tensor([[2.0, 1.0], [1.0, 3.0], [0.0, 5.0], [77.0, 88.0]])
    first = [1 + 0.5 * 1 - 2, 0 + 0.5 * 0 - 1, 4 - 0]
    second = [2 + 0.5 * 3 - 1, 1 + 0.5 * 5 - 3]
    expected = torch.tensor(
        [
            [first[0] + 0.4 * first[1] + 0.16 * first[2], second[0] + 0.4 * second[1]],
            [first[1] + 0.4 * first[2], second[1]],
            [first[2], 0.0],
        ]
    )
    found = generalised_advantages(
        reward, value, torch.tensor([3, 2]), torch.tensor([True, False]), torch.tensor([gamma, gamma]), lam
    )
    assert torch.allclose(found, expected)
    cut_off = generalised_advantages(
        reward, value, torch.tensor([3, 2]), torch.tensor([False, False]), torch.tensor([gamma, gamma]), lam
    )
    assert float(cut_off[2, 0]) == pytest.approx(4 + 0.5 * 77)


def test_lambda_1_is_the_return_minus_the_value_and_0_looks_one_step_ahead() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, value = torch.randn(4, 1, generator=draw), torch.randn(5, 1, generator=draw)
    known = torch.tensor([4]), torch.tensor([True]), torch.tensor([0.9])
    returns = sum(0.9**t * reward[t, 0] for t in range(4))
    assert float(generalised_advantages(reward, value, *known, 1.0)[0, 0]) == pytest.approx(
        float(returns - value[0, 0])
    )
    one = generalised_advantages(reward, value, *known, 0.0)
    assert float(one[1, 0]) == pytest.approx(float(reward[1, 0] + 0.9 * value[2, 0] - value[1, 0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 2.0, -2.0),  # right after acting the gradient is that of the policy gradient
        (1.1, 2.0, -2.2),
        (1.3, 2.0, 0.0),  # good, and already likelier than the clip allows
        (0.7, 2.0, -1.4),  # good, and less likely than it was: brought back
        (0.7, -2.0, 0.0),  # bad, and already unlikelier than the clip allows
        (1.3, -2.0, 2.6),
    ],
)
def test_the_gradient_is_zero_beyond_the_clip_and_right_within(ratio: float, advantage: float, slope: float) -> None:
    acted = torch.tensor([-0.5])
    log_prob = (acted + torch.tensor(ratio).log()).requires_grad_()
    found = clipped_loss(log_prob, acted, torch.tensor([advantage]), 0.2)
    found.total.backward()
    assert log_prob.grad is not None
    assert float(log_prob.grad) == pytest.approx(slope, abs=1e-5)
    assert float(found.ratio) == pytest.approx(ratio)
    assert float(found.clip_fraction) == float(abs(ratio - 1) > 0.2)
    assert float(found.approx_kl) == pytest.approx(ratio - 1 - float(torch.tensor(ratio).log()), abs=1e-6)


def test_the_disagreement_is_the_gap_of_both_estimates() -> None:
    reward, value, own_reward, own_value = (torch.tensor([part]) for part in (1.0, 4.0, 0.5, 6.0))
    found = disagreement(reward, value, own_reward, own_value, torch.tensor([0.9]))
    assert float(found) == pytest.approx(abs((1 + 0.9 * 4) - (0.5 + 0.9 * 6)))
    assert float(disagreement(reward, value, reward, value, torch.tensor([0.9]))) == 0


def test_the_bonus_is_centred_weighted_and_limited() -> None:
    advantage, gap = torch.tensor([0.5, -0.1, 0.0]), torch.tensor([3.0, 1.0, 2.0])
    mean = gap.mean().expand(3)
    assert torch.allclose(with_bonus(advantage, gap, mean, 0.5), advantage + 0.5 * torch.tensor([1.0, -1.0, 0.0]))
    assert torch.equal(with_bonus(advantage, gap, mean, 0.0), advantage)
    limited = with_bonus(advantage, gap, mean, 1.0, limit=1.0)
    assert torch.allclose(limited, torch.tensor([1.0, -0.2, 0.0]))
