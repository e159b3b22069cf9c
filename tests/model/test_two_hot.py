"""Scalars as two-hot distributions."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.two_hot import decode, locate, soft_cross_entropy, symexp, symlog, two_hot

BINS = torch.linspace(-10, 10, 101)
scalars = st.lists(st.floats(-2e4, 2e4, width=32), min_size=1, max_size=8).map(torch.tensor)  # within the bins
any_scalars = st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=8).map(torch.tensor)


@given(scalars)
def test_symexp_undoes_symlog(x: torch.Tensor) -> None:
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-4, atol=1e-5)


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
