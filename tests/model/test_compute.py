"""Every way to compute a model says the same: by oneDNN, in bfloat16 nearly, compiled in one piece and once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.model import compute
from pipeline.model.actor import Actor
from pipeline.model.compute import PLAIN, Compute, choose, product, ready
from pipeline.shapes import Plan
from pipeline.train.step import Learner
from tests.tiny import TINY_PLANNER

ONEDNN = Compute("onednn")
TABLE = make_table()


@pytest.fixture
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_MIN_ONEDNN_WORK", 0)


@pytest.fixture
def _traced_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace as compiling does, and run what was traced without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    forget_what_was_compiled()
    yield
    forget_what_was_compiled()


def forget_what_was_compiled() -> None:
    compute.compiled_whole.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("amd", "expected"), [(True, "onednn"), (False, "torch")])
def test_the_library_follows_the_processor(monkeypatch: pytest.MonkeyPatch, amd: bool, expected: str) -> None:
    monkeypatch.setattr(compute, "_mkl_is_held_back", lambda: amd)
    assert choose("auto", False, "cpu").matmul == expected
    assert choose("torch", False, "cpu").matmul == "torch"
    assert choose("onednn", False, "cpu").matmul == "onednn"
    assert choose("auto", False, "cuda").matmul == "torch"


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="apt install g\\+\\+"):
        choose("auto", True, "cpu")
    choose("auto", False, "cpu")


@pytest.mark.usefixtures("_small_products_too")
@pytest.mark.parametrize("biased", [True, False])
def test_products_and_their_gradients_by_onednn(biased: bool) -> None:
    torch.manual_seed(0)
    x, whole, bias, direction = torch.randn(9, 5), torch.randn(7, 12), torch.randn(7), torch.randn(9, 7)
    found = []
    for way in (ONEDNN, PLAIN):
        parts = [part.clone().requires_grad_() for part in (x, whole, bias)]
        out = product(parts[0], ready(parts[1][:, :5], way), parts[2] if biased else None, way)
        (out * direction).sum().backward()
        found.append([out.detach(), *(part.grad for part in parts if part.grad is not None)])
    assert len(found[0]) == 3 + biased
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_onednn_does_not_take_is_left_to_torch() -> None:
    x, weight = torch.randn(4096, 512, dtype=torch.float64), torch.randn(16, 512, dtype=torch.float64)
    assert torch.equal(product(x, ready(weight, ONEDNN), None, ONEDNN), F.linear(x, weight))


def plan_with(way: Compute, num_envs: int, horizon: int = 3) -> Plan:
    actor = Actor(make_model(), TABLE, replace(TINY_PLANNER, horizon=horizon), way)
    actor.reset(num_envs, seed=1)
    obs = torch.randn(num_envs, TINY.obs_dim, generator=torch.Generator().manual_seed(2))
    rows = torch.arange(num_envs) % len(TABLE.names)
    action = actor.act(obs, rows, plan=True)
    return Plan(action, actor.state_tensors()["prev_mean"], action)


@pytest.mark.usefixtures("_small_products_too")
def test_a_plan_by_onednn() -> None:
    ours, theirs = plan_with(ONEDNN, 3), plan_with(PLAIN, 3)
    assert torch.allclose(ours.action, theirs.action, atol=1e-5)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-5)


def test_values_in_bfloat16_are_near() -> None:
    model = make_model()
    obs, action = torch.randn(50, 3, TINY.obs_dim), torch.rand(50, 3, TINY.action_dim) * TABLE.action_mask
    found = []
    with torch.no_grad():
        for way in (PLAIN, Compute(bfloat16=True)):
            ctx = model.context(TABLE.embeddings[:, 0], way)
            logits = model.q(model.next(model.encode(obs, ctx), action, ctx), action, ctx)
            assert logits.dtype == torch.float32
            found.append(logits.softmax(-1))
    assert 0 < (found[1] - found[0]).abs().max() < 0.1
    assert plan_with(Compute(bfloat16=True), 3).action.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.usefixtures("_traced_alone")
def test_planning_is_traced_in_one_piece_and_once_for_all_numbers_of_environments() -> None:
    compiled = PLAIN._replace(compile=True)
    for num_envs in (2, 5, 3):
        ours, theirs = plan_with(compiled, num_envs, 2), plan_with(PLAIN, num_envs, 2)
        assert torch.allclose(ours.action, theirs.action, atol=1e-5)
        assert torch.allclose(ours.mean, theirs.mean, atol=1e-5)
    assert num_graphs() == 2  # the beginning of a plan, and a refinement


def weights_after(way: Compute, num_updates: int) -> dict[str, torch.Tensor]:
    learner, generator = Learner(make_model(), TABLE, LEARNING, compute=way), torch.Generator().manual_seed(3)
    for seed in range(num_updates):
        learner.update(make_batch(TABLE, seed=seed), "online", generator)
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.usefixtures("_traced_alone")
def test_an_update_is_traced_in_one_piece_and_once() -> None:
    ours, theirs = weights_after(PLAIN._replace(compile=True), 4), weights_after(PLAIN, 4)
    assert num_graphs() == 2  # the model's losses and the policy's
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


@pytest.mark.usefixtures("_small_products_too")
def test_an_update_by_onednn() -> None:
    ours, theirs = weights_after(ONEDNN, 3), weights_after(PLAIN, 3)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-5) for name in theirs)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.usefixtures("_small_products_too")
def test_compiled_planning_says_the_same() -> None:
    forget_what_was_compiled()
    compiled = ONEDNN._replace(compile=True)
    for num_envs in (2, 3):
        ours, theirs = plan_with(compiled, num_envs, 1), plan_with(PLAIN, num_envs, 1)
        assert torch.allclose(ours.action, theirs.action, atol=1e-5)
    assert num_graphs() == 2
    forget_what_was_compiled()
