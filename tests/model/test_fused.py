"""LayerNorm with what follows it, as one operation: against torch's own layers, and the kernels against plain torch."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from benchmarks.operations import as_launched
from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.learn.learner import Learner
from pipeline.model import fused
from pipeline.model.layers import Mish, SimNorm, normalised
from pipeline.model.planner import PlanDraws, plan
from tests.tiny import TINY_PLANNER

# (shape of x, tasks, width of a group): a network and stacked ones, with and without tasks, Mish (0) and SimNorm
CASES = [((6, 24), 3, 0), ((6, 24), None, 8), ((2, 6, 24), 3, 8), ((2, 6, 24), 2, 0), ((5, 40), None, 0)]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def inputs(shape: tuple[int, ...], tasks: int | None, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    draw, stack, hidden = torch.Generator().manual_seed(0), shape[:-2], shape[-1]

    def normal(*sizes: int) -> Tensor:
        return (2 * torch.randn(*sizes, generator=draw, dtype=dtype)).requires_grad_()

    of_tasks = None if tasks is None else normal(*stack, tasks, hidden)
    return [normal(*shape), of_tasks, normal(*stack, hidden), normal(*stack, hidden)]


@pytest.mark.parametrize("case", CASES)
def test_it_is_layer_norm_and_then_the_activation(case: tuple) -> None:
    shape, tasks, group = case
    x, of_tasks, weight, bias = inputs(shape, tasks)
    assert x is not None
    assert weight is not None
    assert bias is not None
    norm = (weight, bias) if x.ndim == 2 else (weight.unsqueeze(1), bias.unsqueeze(1))
    activation = SimNorm(group) if group else Mish()
    expected = normalised(x, norm, activation, of_tasks)
    with as_launched():
        found = normalised(x, norm, activation, of_tasks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    parts = [part for part in (x, of_tasks, weight, bias) if part is not None]
    given = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(torch.autograd.grad(found, parts, given), torch.autograd.grad(expected, parts, given), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_its_derivative_is_that_of_what_it_computes(case: tuple) -> None:
    shape, tasks, group = case
    x, of_tasks, weight, bias = inputs(shape, tasks, torch.float64)
    parts = [part for part in (x, of_tasks, weight, bias) if part is not None]

    def function(*parts: Tensor) -> Tensor:
        return fused.norm_activation(parts[0], parts[1] if tasks else None, parts[-2], parts[-1], group)

    assert torch.autograd.gradcheck(function, parts)


@pytest.mark.parametrize("case", [*CASES, ((3, 64, 1024), 4, 0), ((64, 512), None, 8)])
def test_the_kernels_compute_what_plain_torch_does(case: tuple) -> None:
    pytest.importorskip("triton")
    if not (torch.cuda.is_available() or INTERPRETED):
        pytest.skip("kernels run on a GPU, or with TRITON_INTERPRET=1")
    from pipeline.model import kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, tasks, group = case
    parts = [None if part is None else part.detach().to(device) for part in inputs(shape, tasks)]
    x, of_tasks, weight, bias = (
        None if part is None else part.reshape(-1, *part.shape[-2:]) if number < 2 else part.reshape(-1, shape[-1])
        for number, part in enumerate(parts)
    )
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)
    expected = fused.plain_forward(x, of_tasks, weight, bias, group)
    found = kernels.forward(x, of_tasks, weight, bias, group, 1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    back = kernels.backward(grad, x, of_tasks, weight, bias, *expected[1:], group)
    for one, other in zip(
        back, fused.plain_backward(grad, x, of_tasks, weight, bias, *expected[1:], group), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_mish_stays_so_and_simplices_are_float32() -> None:
    for group, expected in ((0, torch.bfloat16), (8, torch.float32)):
        x, tasks, weight, bias = (None if part is None else part.detach() for part in inputs((6, 24), 3))
        assert x is not None
        assert tasks is not None
        low = x.bfloat16().requires_grad_()
        found = fused.norm_activation(low, tasks, weight, bias, group)  # type: ignore[arg-type]
        assert found.dtype == expected
        exact = fused.norm_activation(low.detach().float(), tasks, weight, bias, group)  # type: ignore[arg-type]
        torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)
        found.float().sum().backward()
        assert low.grad is not None
        assert low.grad.dtype == torch.bfloat16


def test_whole_updates_and_plans_as_launched_are_those_of_the_cpu() -> None:
    """Stacked Q, one operation for normalisation and activation: what a GPU is given computes the same."""
    table = make_table()
    states, actions = [], []
    for launched in (False, True):
        learner = Learner(make_model(), table, LEARNING)
        draw, obs = (
            torch.Generator().manual_seed(0),
            torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(1)),
        )

        def work(learner: Learner = learner, draw: torch.Generator = draw, obs: Tensor = obs) -> None:
            for mode in ("pretrain", "online", "online"):
                learner.update(make_batch(table), mode, draw)
            with torch.no_grad():
                ctx = learner.model.context(table, torch.arange(3))
            draws = PlanDraws.sample(TINY_PLANNER, 3, TINY.action_dim, TINY.num_q, draw)
            mean, first = torch.zeros(TINY_PLANNER.horizon, 3, TINY.action_dim), torch.ones(3, dtype=torch.bool)
            actions.append(plan(learner.model, ctx, obs, TINY_PLANNER, mean, first, draws, 1.0).action)

        if launched:
            with as_launched():
                work()
        else:
            work()
        states.append(learner.model.state_dict())
    for name, value in states[0].items():
        assert (states[1][name] - value).abs().mean() < 1e-6, name
    torch.testing.assert_close(actions[1], actions[0], rtol=1e-3, atol=1e-3)
