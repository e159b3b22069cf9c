"""Every way to compute products says the same: by oneDNN, in bfloat16 nearly, with what weights give computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.learn.learner import Learner
from pipeline.model import products
from pipeline.model.actor import Actor
from pipeline.model.layers import MLP, effective_weight
from pipeline.model.products import Mode, choose, derived, fixed_weights, product, ready, use
from tests.tiny import TINY_PLANNER

TABLE = make_table()


@pytest.fixture
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_MIN_ONEDNN_WORK", 0)


@pytest.mark.parametrize(("amd", "expected"), [(True, "onednn"), (False, "torch")])
def test_the_library_follows_the_processor(monkeypatch: pytest.MonkeyPatch, amd: bool, expected: str) -> None:
    monkeypatch.setattr(products, "_mkl_lacks_avx512", lambda: amd)
    assert choose("auto", "cpu") == expected
    assert choose("torch", "cpu") == "torch"
    assert choose("onednn", "cpu") == "onednn"
    assert choose("auto", "cuda") == "torch"


def test_a_torch_without_onednn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_mkl_lacks_avx512", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="runtime.matmul is `onednn`, but this torch was built without it"):
        choose("onednn", "cpu")
    assert choose("auto", "cpu") == "torch"


@pytest.mark.usefixtures("_small_products_too")
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_their_gradients_by_onednn(biased: bool) -> None:
    torch.manual_seed(0)
    x, whole, bias, direction = torch.randn(9, 5), torch.randn(7, 12), torch.randn(7), torch.randn(9, 7)
    found = []
    for mode in ("onednn", "torch"):
        parts = [part.clone().requires_grad_() for part in (x, whole, bias)]
        with use(mode):
            out = product(parts[0], ready(parts[1][:, :5]), parts[2] if biased else None)
        (out * direction).sum().backward()
        found.append([out.detach(), *(part.grad for part in parts if part.grad is not None)])
    assert len(found[0]) == 3 + biased
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that oneDNN has multiplied, one by one."""
    shapes, own = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda x, *rest: shapes.append(tuple(x.shape)) or own(x, *rest))
    return shapes


def test_what_onednn_does_not_take_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted(monkeypatch)
    x, weight = torch.randn(4096, 512), torch.randn(32, 512)  # 2^26 multiplications
    with use("onednn"):
        assert torch.allclose(product(x, ready(weight), None), F.linear(x, weight), rtol=1e-4, atol=1e-3)
        assert taken == [(4096, 512)]
        for few, kind in ((x[1:], torch.float32), (x, torch.float64)):
            one, other = few.to(kind), weight.to(kind)
            assert torch.equal(product(one, ready(other), None), F.linear(one, other))
    assert torch.equal(product(x, ready(weight), None), F.linear(x, weight))
    assert taken == [(4096, 512)]


def test_a_mode_holds_within_its_context_alone() -> None:
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    with use("bfloat16"):
        with use("torch"):
            assert product(x, weight, None).dtype == torch.float32
        assert product(x, weight, None).dtype == torch.bfloat16
        with pytest.raises(RuntimeError), use("torch"):
            raise RuntimeError
        assert product(x, weight, None).dtype == torch.bfloat16
    assert product(x, weight, None).dtype == torch.float32


def test_what_is_derived_from_weights_is_computed_once_while_they_are_fixed() -> None:
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.zeros(1)

    for _ in range(2):
        derived("a", compute)
    assert len(calls) == 2
    for _ in range(2):  # each context begins anew
        with fixed_weights():
            assert derived("a", compute) is derived("a", compute)
            derived("b", compute)
    assert len(calls) == 2 + 2 * 2
    derived("a", compute)
    assert len(calls) == 7


def test_an_adapter_s_sum_is_computed_once_while_weights_are_fixed_and_never_kept() -> None:
    torch.manual_seed(0)
    mlp = MLP(5, 6, 3, [8], 16)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=r".*linear", init_lora_weights=False), mlp)
    linear = mlp.blocks[0].linear
    with fixed_weights():
        first = effective_weight(linear)
        assert effective_weight(linear) is first
        assert effective_weight(mlp.blocks[1].linear) is not first
    with torch.no_grad():
        linear.lora_B["default"].weight.add_(1)
    assert not torch.equal(effective_weight(linear), first)


def plan_with(mode: Mode, num_envs: int) -> list[torch.Tensor]:
    """The action and the mean of a plan."""
    actor = Actor(make_model(), TABLE, replace(TINY_PLANNER, horizon=3), mode)
    actor.reset(num_envs, seed=1)
    obs = torch.randn(num_envs, TINY.obs_dim, generator=torch.Generator().manual_seed(2))
    action = actor.act(obs, torch.arange(num_envs) % len(TABLE.names), plan=True)
    return [action, actor.state_tensors()["prev_mean"]]


@pytest.mark.usefixtures("_small_products_too")
def test_a_plan_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted(monkeypatch)
    for ours, theirs in zip(plan_with("onednn", 3), plan_with("torch", 3), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert taken, "oneDNN computed nothing"


def test_values_in_bfloat16_are_near() -> None:
    model, rows = make_model(), torch.arange(3)
    obs, action = torch.randn(50, 3, TINY.obs_dim), torch.rand(50, 3, TINY.action_dim) * TABLE.action_mask
    found = []
    with torch.no_grad():
        for mode in ("torch", "bfloat16"):
            with use(mode), fixed_weights():
                ctx = model.context(TABLE, rows)
                logits = model.q(model.next(model.encode(obs, ctx), action, ctx)[0], action, ctx)
            assert logits.dtype == torch.float32
            found.append(logits.softmax(-1))
    assert 0 < (found[1] - found[0]).abs().max() < 0.1
    assert plan_with("bfloat16", 3)[0].dtype == torch.float32


def weights_after(mode: Mode, num_updates: int) -> dict[str, torch.Tensor]:
    learner, generator = Learner(make_model(), TABLE, LEARNING, mode=mode), torch.Generator().manual_seed(3)
    for seed in range(num_updates):
        learner.update(make_batch(TABLE, seed=seed), "online", generator)
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


@pytest.mark.usefixtures("_small_products_too")
def test_an_update_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = counted(monkeypatch)
    ours, theirs = weights_after("onednn", 3), weights_after("torch", 3)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)
    assert taken, "oneDNN computed nothing"
