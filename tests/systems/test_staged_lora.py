"""Scaled matrices: the formula, stages that begin without a jump, merging, stacks of matrices, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.adapters import Adapters
from pipeline.model import products
from pipeline.model.world_model import PARTS, WorldModel
from pipeline.systems.build import build_model, make_actor
from pipeline.systems.scalezero.staged_lora import ScaledMatrix, StagedLora, merged
from tests.tiny import TINY_PLANNER

SCALING = config.Scaling(
    parts=("dynamics",), adapters=3, rank=2, alpha=4.0, target=0.9, targets={}, slack=0.0, first_stage_updates=3,
    stage_updates=2,
)  # fmt: skip


def fill(lora: StagedLora) -> None:
    """Give every adapter and scale a value, as training does."""
    draw = torch.Generator().manual_seed(5)
    for module in lora.model.modules():
        if isinstance(module, ScaledMatrix):
            for parameter in module.parameters():
                parameter.data = torch.randn(parameter.shape, generator=draw)
    lora.model.sync_target()


def outputs(model: WorldModel) -> list[torch.Tensor]:
    """What every network says of the same latents, with gradients on and off, and what a plan comes to."""
    table, draw = make_table(), torch.Generator().manual_seed(3)
    n = len(table.names)
    table = replace(table, columns={"cluster": torch.arange(n) % 2})
    obs, action = torch.randn(n, TINY.obs_dim, generator=draw), torch.rand(n, TINY.action_dim, generator=draw)
    found = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            ctx = model.context(table, torch.arange(n))
            z = model.encode(obs, ctx)
            found += [z, model.next(z, action, ctx)[0], model.reward(z, action, ctx), model.policy(z, ctx).action]
            found += [model.q(z, action, ctx), model.q(z, action, ctx, target=True)]
    actor = make_actor(model, table, TINY_PLANNER)
    actor.reset(n, seed=1)
    return [*(tensor.detach() for tensor in found), actor.act(obs, torch.arange(n), plan=True)]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("stack", [(), (3,)])
def test_the_matrix_is_the_published_sum(stack: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(*stack, 5, 7, generator=draw)
    matrix = ScaledMatrix(weight, 3, 2, 6.0, draw)
    for parameter in matrix.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    assert torch.equal(matrix(weight), weight)
    matrix.stage = 2
    a = [1 + 0.2 * torch.tanh(logit) for logit in matrix.logits]
    terms = [6.0 / 2 * torch.einsum("...mr,...rn->...mn", matrix.B[j], matrix.A[j]) for j in range(2)]
    expected = a[0] * weight + a[1] * terms[0] + terms[1]
    torch.testing.assert_close(matrix(weight), expected)


def test_adapters_begin_as_published() -> None:
    matrix = ScaledMatrix(torch.zeros(200, 300), 2, 50, 50.0, torch.Generator().manual_seed(0))
    assert matrix.A[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(matrix.A[0], matrix.A[1])
    assert not any(matrix.B[j].any() or matrix.logits[j] for j in range(2))


def test_putting_adapters_in_and_every_new_stage_leave_the_outputs_to_the_bit() -> None:
    model = make_model()
    before = outputs(model)
    lora = StagedLora(model, replace(SCALING, parts=tuple(PARTS)), seed=1)
    assert equal(outputs(model), before)
    for stage in (1, 2, 3):
        for matrix in (module for module in model.modules() if isinstance(module, ScaledMatrix)):
            for parameter in matrix.trained():  # what the stage before has learned
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(stage))
        before = outputs(model)
        lora.enter(stage)
        assert equal(outputs(model), before), stage


def test_merged_it_is_a_plain_model_that_computes_the_same_and_the_other_trains_on() -> None:
    model = make_model()
    plain_names = list(model.state_dict())
    assert merged(model, build_model) is model
    lora = StagedLora(model, replace(SCALING, parts=("dynamics", "q")), seed=1)
    fill(lora)
    lora.enter(2)
    plain = merged(model, build_model)
    assert list(plain.state_dict()) == plain_names
    assert type(plain.dynamics.blocks[0].linear) is nn.Linear
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert equal(outputs(plain), outputs(model))
    assert parametrize.is_parametrized(model.dynamics.blocks[0].linear)
    Adapters(plain).create("task", ["dynamics"], rank=2, alpha=4.0)  # as adapting does


@pytest.mark.parametrize("router", ["latent", "task"])
def test_experts_are_adapted_each_and_their_router_is_left_alone(router: Literal["latent", "task"]) -> None:
    experts = config.Experts(
        parts=("dynamics",), num=4, top_k=1, hidden=8, shared=True, router=router, temperature=1.0, balance_coef=0.01
    )
    model = make_model(replace(TINY, mlp_dim=24, experts=experts))
    before = outputs(model)
    lora = StagedLora(model, SCALING, seed=1)
    scaled = {name: module for name, module in model.named_modules() if isinstance(module, ScaledMatrix)}
    assert not any("router" in name for name in scaled)
    stacks = [tuple(matrix.A[0].shape) for matrix in scaled.values() if matrix.A[0].ndim == 3]
    assert stacks == [(4, 2, 16), (4, 2, 24)]
    assert equal(outputs(model), before)
    fill(lora)
    lora.enter(1)
    assert not any(value.requires_grad for name, value in model.named_parameters() if "router" in name)
    assert not equal(outputs(model), before)
    assert equal(outputs(merged(model, build_model)), outputs(model))


def test_networks_per_cluster_of_tasks_are_adapted_each() -> None:
    clusters = config.Clusters(
        parts=("encoder", "policy", "q"), num=2, max_num=2, warmup_updates=1, batches=1, points=1
    )
    model = make_model(replace(TINY, clusters=clusters))
    before = outputs(model)
    lora = StagedLora(model, replace(SCALING, parts=tuple(PARTS)), seed=1)
    scaled = [name for name, part in model.named_modules() if isinstance(part, ScaledMatrix)]
    assert {name.split(".")[1] for name in scaled if name.startswith("encoder.")} == {"0", "1"}
    assert equal(outputs(model), before)
    fill(lora)
    lora.enter(2)
    assert not equal(outputs(model), before)
    assert equal(outputs(merged(model, build_model)), outputs(model))


@pytest.mark.parametrize("backbone", ["dynamics", "shared"])
def test_dynamics_that_see_the_past_are_adapted_but_for_what_distance_adds(
    backbone: Literal["dynamics", "shared"],
) -> None:
    history = config.History(context=3, layers=2, heads=2, dim=16, mlp_dim=24, backbone=backbone)
    model = make_model(replace(TINY, history=history))

    def played(model: WorldModel) -> torch.Tensor:
        actor = make_actor(model, make_table(), TINY_PLANNER)
        actor.reset(3, seed=1)
        draw = torch.Generator().manual_seed(3)
        seen = [torch.randn(3, TINY.obs_dim, generator=draw) for _ in range(3)]
        return torch.stack([actor.act(obs, torch.arange(3), plan=True, constraint_weight=0.0) for obs in seen])

    before = played(model)
    lora = StagedLora(model, SCALING, seed=1)
    scaled = {
        name.split(".parametrizations")[0] for name, part in model.named_modules() if isinstance(part, ScaledMatrix)
    }
    layers = {f"dynamics.layers.{i}.{part}" for i in range(2) for part in ("qkv", "out", "feed.0", "feed.1")}
    assert scaled == {f"{part}.linear" for part in layers | {"dynamics.embed.0", "dynamics.head"}}
    assert torch.equal(played(model), before)
    fill(lora)
    lora.enter(1)
    trained = {name for name, value in model.named_parameters() if value.requires_grad and name.startswith("dynamics.")}
    assert all("parametrizations" in name for name in trained)
    assert not torch.equal(played(model), before)
    assert torch.equal(played(merged(model, build_model)), played(model))


def test_plans_in_bfloat16_read_every_matrix_as_it_is_now() -> None:
    model = make_model()
    lora = StagedLora(model, replace(SCALING, parts=tuple(PARTS)), seed=1)
    fill(lora)
    lora.enter(2)
    table, obs = make_table(), torch.randn(3, TINY.obs_dim, generator=torch.Generator().manual_seed(3))
    found = []
    for one in (model, merged(model, build_model)):  # the sums are temporary tensors, the merged matrices are not
        actor = make_actor(one, table, TINY_PLANNER, "bfloat16")
        actor.reset(3, seed=1)
        found.append(actor.act(obs, torch.arange(3), plan=True))
    assert torch.equal(*found)


def test_each_sum_is_computed_once_per_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    lora = StagedLora(model, SCALING, seed=1)
    lora.enter(1)
    calls, forward = [], ScaledMatrix.forward

    def count(self: ScaledMatrix, weight: torch.Tensor) -> torch.Tensor:
        calls.append(id(self))
        return forward(self, weight)

    monkeypatch.setattr(ScaledMatrix, "forward", count)
    with products.fixed_weights(), torch.no_grad():
        ctx = model.context(make_table(), torch.arange(3))
        z = torch.rand(3, TINY.latent_dim)
        for _ in range(4):
            z, _ = model.next(z, torch.rand(3, TINY.action_dim), ctx)
    assert len(calls) == len(set(calls)) == 3


def test_two_models_of_a_seed_have_the_same_adapters() -> None:
    models = [make_model(), make_model()]
    for model in models:
        StagedLora(model, SCALING, seed=4)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_refused() -> None:
    model = make_model()
    lora = StagedLora(model, SCALING, seed=1)
    with pytest.raises(ValueError, match="in stages already"):
        StagedLora(model, SCALING, seed=1)
    with pytest.raises(ValueError, match=r"stages 0 to 3 \(finetune.scaling.adapters\), not 4"):
        lora.enter(4)


def test_a_copy_of_a_scaled_model_computes_the_same() -> None:
    model = make_model()
    lora = StagedLora(model, SCALING, seed=1)
    fill(lora)
    lora.enter(1)
    assert equal(outputs(copy.deepcopy(model)), outputs(model))
