"""The layers: SimNorm, Mish, and an MLP whose first layer is computed in parts, adapters included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from pipeline.model import layers
from pipeline.model.layers import MLP, Mish, SimNorm, effective_weight


@given(groups=st.integers(1, 6), group=st.integers(1, 9), scale=st.sampled_from([1.0, 30.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_each_group_of_simnorm_is_a_softmax(groups: int, group: int, scale: float) -> None:
    x = scale * torch.randn(2, 3, groups * group)
    out = SimNorm(group)(x)
    expected = torch.cat([part.softmax(-1) for part in x.split(group, -1)], -1)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(out.unflatten(-1, (groups, group)).sum(-1), torch.ones(2, 3, groups), atol=1e-5)


def test_simnorm_refuses_a_width_that_does_not_divide() -> None:
    with pytest.raises(AssertionError, match="a width of 12 is no multiple of 8"):
        SimNorm(8)(torch.zeros(12))


def test_mish_and_its_gradient() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -100.0, 0.0, 88.0, 100.0, 1e4])])
    ours, theirs = x.clone().requires_grad_(), x.clone().double().requires_grad_()
    value, expected = Mish()(ours), F.mish(theirs)
    weight = torch.randn(len(x))
    (value * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(Mish()(x).double(), expected, rtol=1e-6, atol=1e-5)


def concatenated(mlp: MLP, x: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """What an MLP is: its blocks one after the other on [x; e; a]."""
    out = torch.cat([x, e.expand(*x.shape[:-1], -1), a], -1)
    for block in mlp.blocks:
        out = block(out)
    return out


def make_mlp() -> tuple[MLP, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    mlp = MLP(5, 6, 3, [8, 8], 16, SimNorm(8))
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mlp, (torch.randn(2, 4, 5), torch.randn(4, 6), torch.randn(2, 4, 3))


def test_first_layer_in_parts_equals_the_concatenated_one() -> None:
    mlp, (x, e, a) = make_mlp()
    assert torch.allclose(mlp(mlp.condition(e), x, a), concatenated(mlp, x, e, a), atol=1e-6)


def test_x_may_lack_the_leading_dims_of_a() -> None:
    mlp, (x, e, a) = make_mlp()
    first = mlp.condition(e)
    assert torch.allclose(mlp(first, x[0], a), mlp(first, x[:1].expand(2, -1, -1), a), atol=1e-6)


@pytest.mark.parametrize("rows", [2, 7])
def test_in_pieces_that_fit_the_cache_it_says_the_same(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    mlp, (_, e, _) = make_mlp()
    x, a = torch.randn(7, 4, 5), torch.randn(7, 4, 3)
    seen = []
    with torch.no_grad():
        first = mlp.condition(e)
        whole, same_x = mlp(first, x, a), mlp(first, x[0], a)
        monkeypatch.setattr(layers, "_CACHED_BYTES", rows * 4 * mlp.hidden_dim * 4)
        monkeypatch.setattr(MLP, "_whole", lambda *of, own=MLP._whole: seen.append(1) or own(*of))
        assert torch.allclose(mlp(first, x, a), whole, atol=1e-6)
        assert torch.allclose(mlp(first, x[0], a), same_x, atol=1e-6)
    assert len(seen) == 2 * -(-7 // rows)


def test_evaluating_does_not_change_the_context() -> None:
    mlp, (x, e, a) = make_mlp()
    with torch.no_grad():
        first = mlp.condition(e)
        before = first.bias.clone()
        mlp(first, x[0], a[0])
    assert torch.equal(first.bias, before)


def with_lora() -> tuple[MLP, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    mlp, inputs = make_mlp()
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=r".*linear", init_lora_weights=False)
    inject_adapter_in_model(lora, mlp)
    assert all(isinstance(block.linear, LoraLinear) for block in mlp.blocks)
    return mlp, inputs


def test_first_layer_in_parts_keeps_its_adapter() -> None:
    plain, inputs = make_mlp()
    mlp, (x, e, a) = with_lora()
    wrapped = mlp(mlp.condition(e), x, a)
    assert torch.allclose(wrapped, concatenated(mlp, x, e, a), atol=1e-6)
    assert not torch.allclose(wrapped, concatenated(plain, *inputs), atol=1e-2)


def test_merged_adapter_gives_the_same_output() -> None:
    mlp, (x, e, a) = with_lora()
    with torch.no_grad():
        wrapped = mlp(mlp.condition(e), x, a)
        for block in mlp.blocks:
            block.linear.merge()
        assert torch.allclose(mlp(mlp.condition(e), x, a), wrapped, atol=1e-5)


def test_disabled_adapter_gives_the_base_output() -> None:
    plain, _ = make_mlp()
    mlp, (x, e, a) = with_lora()
    for block in mlp.blocks:
        block.linear.enable_adapters(False)
    with torch.no_grad():
        assert torch.equal(mlp(mlp.condition(e), x, a), plain(plain.condition(e), x, a))


def test_gradients_reach_the_adapter_of_the_first_layer() -> None:
    mlp, (x, e, a) = with_lora()
    weight = torch.randn(16)
    (mlp(mlp.condition(e), x, a) @ weight).sum().backward()
    linear = mlp.blocks[0].linear
    found = [linear.lora_A["default"].weight.grad, linear.lora_B["default"].weight.grad]
    mlp.zero_grad()
    (concatenated(mlp, x, e, a) @ weight).sum().backward()
    expected = [linear.lora_A["default"].weight.grad, linear.lora_B["default"].weight.grad]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-3
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_layer_that_is_no_single_product_is_refused() -> None:
    with pytest.raises(AssertionError, match="expected nn.Linear or a PEFT LoRA layer"):
        effective_weight(nn.Sequential(nn.Linear(2, 2)))
