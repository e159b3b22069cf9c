"""Routed experts: against a plain loop over rows, in every way a model is computed, trained, saved and grown."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.adapters import Adapters
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.model import products
from pipeline.model.grow import grow
from pipeline.model.planner import plan
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.systems.build import build_model, online_extensions
from pipeline.systems.scalezero.experts import ExpertLayer, Routing, balance_loss, record_routing
from tests.tiny import TINY_PLANNER

ALL = ("dynamics", "reward", "policy", "q")


def experts(router: str = "latent", num: int = 4, top_k: int = 1, **changes) -> config.Experts:
    values = {"parts": ALL, "num": num, "top_k": top_k, "hidden": 8, "shared": True, "router": router}
    return config.Experts(**{**values, "temperature": 1.0, "balance_coef": 0.1, **changes})


def sizes(router: str = "latent", **changes) -> config.Model:
    return dataclasses.replace(TINY, mlp_dim=24, experts=experts(router, **changes))


def make_learner(model: WorldModel, table: TaskTable, **options) -> Learner:
    return Learner(model, table, LEARNING, extensions=online_extensions(model, table, LEARNING), **options)


def call(layer: ExpertLayer, x: Tensor, task: Tensor | None = None) -> tuple[Tensor, Routing]:
    """What a layer makes of rows, and where they went; a task router gets the task of each row."""
    layer.calls = []
    y = layer(x, None if task is None else layer.condition(task))
    (routing,), layer.calls = layer.calls, None
    return y, routing


def row_by_row(layer: ExpertLayer, x: Tensor, task: Tensor | None) -> Tensor:
    """The same, one row and one expert at a time."""

    def feed_forward(row: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, value = (row @ up).chunk(2)
        return (F.silu(gate) * value) @ down

    out = []
    for i, row in enumerate(x):
        logits = layer.router(row if task is None else task[i])
        probs = (logits / layer.experts.temperature).softmax(0)
        y = torch.zeros_like(row)
        for j in probs.argsort(descending=True)[: layer.experts.top_k].tolist():
            y = y + probs[j] * feed_forward(row, layer.up[j], layer.down[j])
        if layer.shared_up is not None and layer.shared_down is not None:
            y = y + feed_forward(row, layer.shared_up.weight.t(), layer.shared_down.weight.t())
        out.append(y)
    return torch.stack(out)


def filled(layer: ExpertLayer) -> ExpertLayer:
    torch.manual_seed(3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("router", ["latent", "task"])
@pytest.mark.parametrize(("top_k", "shared"), [(1, True), (1, False), (3, True)])
def test_outputs_and_gradients_are_those_of_a_loop_over_rows(router, top_k, shared):
    settings = experts(router, top_k=top_k, shared=shared, temperature=0.7)
    layer = filled(ExpertLayer(16, 8, settings, task_dim=5))
    x = torch.randn(30, 16, requires_grad=True)
    task = torch.randn(30, 5) if router == "task" else None
    weight = torch.randn(30, 16)
    ours, _ = call(layer, x, task)
    plain = row_by_row(layer, x, task)
    torch.testing.assert_close(ours, plain)
    inputs = [x, *layer.parameters()]
    found, expected = (torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, plain))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("router", ["latent", "task"])
def test_a_router_learns_from_the_losses_alone_with_one_expert_per_row(router):
    model = make_model(sizes(router, balance_coef=0.0))
    table = make_table(model.config)
    learner = make_learner(model, table)
    before = {name: value.clone() for name, value in model.named_parameters() if ".router" in name}
    generator = torch.Generator().manual_seed(0)
    for seed in range(2):
        learner.update(make_batch(table, model.config, 16, seed=seed), "pretrain", generator)
    moved = {name for name, value in model.named_parameters() if name in before and not value.equal(before[name])}
    assert moved == set(before)
    assert any(name.startswith("target_q_heads") for name in moved)


def test_experts_without_rows_get_a_gradient_of_zero_and_uneven_rows_are_computed_alike():
    layer = filled(ExpertLayer(16, 8, experts(), task_dim=5))
    with torch.no_grad():
        layer.router.weight[2] = 50.0  # pyright: ignore  # every positive row goes to expert 2
    x = torch.rand(9, 16)
    y, routing = call(layer, x)
    assert (routing.chosen == 2).all()
    torch.testing.assert_close(y, row_by_row(layer, x, None))
    y.sum().backward()
    assert layer.up.grad is not None
    assert [bool(grad.any()) for grad in layer.up.grad] == [False, False, True, False]


def test_balance_of_a_latent_router_is_that_of_switch_transformers():
    settings = experts(num=4)
    even = Routing(torch.full((8, 4), 0.25), torch.arange(8).remainder(4).unsqueeze(1))
    assert balance_loss([even, even], settings) == pytest.approx(1)
    one = Routing(F.one_hot(torch.zeros(8, dtype=torch.long), 4).float(), torch.zeros(8, 1, dtype=torch.long))
    assert balance_loss([one], settings) == pytest.approx(4)
    # Two calls count as one: shares 0.625 and 0.125 three times, mean probabilities alike.
    assert balance_loss([even, one], settings) == pytest.approx(4 * (0.625**2 + 3 * 0.125**2))


def test_balance_of_a_task_router_is_that_of_mow():
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    routing = Routing(probs, torch.zeros(6, 2, dtype=torch.long))
    sums = 2 * probs.sum(0)  # w = K p
    expected = (sums - 2 * 2 / 3).square().sum()
    assert balance_loss([routing, routing], experts("task", num=3, top_k=2)) == pytest.approx(float(expected))
    assert balance_loss([Routing(torch.full((5, 4), 0.25), routing.chosen)], experts("task")) == pytest.approx(0)


@pytest.mark.parametrize("router", ["latent", "task"])
def test_balance_loss_spreads_the_rows(router):
    torch.manual_seed(0)
    layer = ExpertLayer(16, 8, experts(router), task_dim=16)
    x = torch.rand(200, 16)
    with torch.no_grad():
        if router == "latent":
            layer.router.weight[0] = 1.0  # pyright: ignore
        else:
            layer.router[-1].bias[0] = 1.0  # pyright: ignore
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
    largest = []  # mean probability of an expert
    for _ in range(60):
        _, routing = call(layer, x, x if router == "task" else None)
        largest.append(float(routing.probs.detach().mean(0).max()))
        optimizer.zero_grad()
        balance_loss([routing], layer.experts).backward()
        optimizer.step()
    assert largest[0] > 0.4
    assert largest[-1] < 0.7 * largest[0]


def test_routing_is_recorded_of_every_network_but_the_targets_and_only_within_the_context():
    model = make_model(sizes(parts=("dynamics", "q")))
    table = make_table(model.config, num_tasks=3)
    ctx = model.context(table, torch.tensor([0, 2, 1, 2]))
    z, a = torch.rand(5, 4, 16), torch.rand(5, 4, 4)
    plain, _ = model.next(z, a, ctx)
    with record_routing(model) as calls:
        torch.testing.assert_close(model.next(z, a, ctx)[0], plain, rtol=0, atol=0)
        model.q(z, a, ctx)
        model.reward(z, a, ctx)
        model.q(z, a, ctx, target=True)
    model.next(z, a, ctx)
    assert {name: [tuple(call.chosen.shape) for call in found] for name, found in calls.items()} == {
        "dynamics": [(20, 1)], "q.0": [(20, 1)], "q.1": [(20, 1)], "q.2": [(20, 1)],
    }  # fmt: skip
    with record_routing(make_model()) as calls:
        assert calls == {}


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_an_update_records_what_the_losses_call_and_neither_targets_nor_the_judging_q(mode):
    model = make_model(sizes())
    table = make_table(model.config)
    learner = make_learner(model, table)
    batch = make_batch(table, model.config)
    (extension,) = learner.extensions
    seen = []
    balance = extension._loss

    def spy(name, task):
        seen.append({layer: [len(call.chosen) for call in calls] for layer, calls in extension._calls.items()})
        return balance(name, task)

    extension._loss = spy
    learner.update(batch, mode, torch.Generator().manual_seed(0))
    of_model = {"dynamics": [6, 6, 6], "reward": [18], "policy": [18], **{f"q.{m}": [18] for m in range(3)}}
    of_policy = {name: [24] if name == "policy" else [] for name in of_model}
    assert seen == ([of_model] if mode == "pretrain" else [of_model, of_policy])


def test_a_task_router_gives_all_rows_of_a_task_the_experts_of_its_text():
    model = make_model(sizes("task", top_k=2))
    table = make_table(model.config, num_tasks=5)
    task = torch.tensor([4, 0, 3, 0])
    ctx = model.context(table, task, torch.ones(4, dtype=torch.long))
    with record_routing(model) as calls:
        model.next(torch.rand(6, 4, 16), torch.rand(6, 4, 4), ctx)
    (routing,) = calls["dynamics"]
    assert routing.probs.shape == (10, 4)  # one row per text of the table ...
    assert routing.present is not None
    here = routing.present.bool()
    assert here.nonzero().flatten().tolist() == [1, 7, 9]  # ... of which three are met, and alone are balanced
    alone = routing._replace(probs=routing.probs[here], present=None)
    settings = experts("task", num=4, top_k=2)
    torch.testing.assert_close(balance_loss([routing], settings), balance_loss([alone], settings))
    layer = model.dynamics[1].experts  # pyright: ignore
    expected = layer.router(table.embeddings[task, 1]).topk(2).indices  # pyright: ignore
    torch.testing.assert_close(routing.chosen.view(6, 4, 2), expected.expand(6, 4, 2))


@pytest.mark.parametrize("router", ["latent", "task"])
def test_plans_are_made_in_float32_and_bfloat16_alike(router):
    model = make_model(sizes(router))
    table = make_table(model.config, num_tasks=2)
    rows = torch.tensor([1, 0, 1])
    obs, mean = torch.randn(3, 9), torch.zeros(3, 3, 4)
    found = []
    for mode in ("torch", "bfloat16"):
        with products.use(mode):
            ctx = model.context(table, rows, target_q=())
            first, draws = torch.ones(3, dtype=torch.bool), torch.Generator().manual_seed(0)
            made = plan(model, ctx, obs, TINY_PLANNER, mean, first, draws)
            found.append(model.next(model.encode(obs, ctx), made.action, ctx)[0].detach())
        assert made.action.isfinite().all()
    torch.testing.assert_close(found[0], found[1].float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("router", ["latent", "task"])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(router):
    table, made = make_table(sizes(router)), []
    batch = make_batch(table, sizes(router), 8)
    draws = UpdateDraws.sample(batch, table.num_phrasings, 3, torch.Generator().manual_seed(1))
    for accumulate in (1, 2):
        model = make_model(sizes(router, balance_coef=0.0))  # which alone looks at more than one row at once
        metrics = make_learner(model, table, accumulate=accumulate).update(batch, "online", draws)
        made.append((metrics, [p.grad for p in model.parameters() if p.grad is not None]))
    for whole, pieces in zip(made[0][1], made[1][1], strict=True):
        torch.testing.assert_close(whole, pieces, rtol=1e-3, atol=1e-5)
    for name, value in made[0][0].items():
        if name.startswith("experts/"):
            torch.testing.assert_close(made[1][0][name], value)
            assert value.sum() == pytest.approx(1)


def test_counts_of_an_update_say_which_task_went_where():
    model = make_model(sizes(parts=("dynamics", "policy")))
    table = make_table(model.config, num_tasks=3)
    batch = make_batch(table, model.config, 6)._replace(task=torch.tensor([0, 0, 0, 2, 2, 0]))
    metrics = make_learner(model, table).update(batch, "online", torch.Generator().manual_seed(0))
    assert {name for name in metrics if name.startswith("experts/")} == {"experts/dynamics", "experts/policy"}
    for layer in ("dynamics", "policy"):
        assert metrics[f"experts/{layer}"].sum(1).tolist() == pytest.approx([4 / 6, 0, 2 / 6])
    assert {"balance_loss", "policy_balance_loss"} <= set(metrics)


def test_losses_are_computed_under_autocast(monkeypatch):
    model, multiplied, grouped_mm = make_model(sizes()), set(), F.grouped_mm
    table = make_table(model.config)

    def spy(x, weight, offs):
        multiplied.add((x.dtype, weight.dtype))
        return grouped_mm(x, weight, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", spy)
    with torch.autocast("cpu", torch.bfloat16):
        ctx = model.context(table, torch.arange(3))
        z, _ = model.next(model.encode(torch.randn(3, 9), ctx), torch.rand(3, 4), ctx)
        loss = model.reward(z, torch.rand(3, 4), ctx).float().square().mean()
    loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if name.startswith("dynamics.1.experts")}
    assert all(grad is not None and grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())
    assert multiplied == {(torch.bfloat16, torch.bfloat16)}


def test_adapters_act_on_the_linear_layers_and_leave_the_experts():
    model = make_model(sizes())
    adapters = Adapters(model)
    adapters.create("new", ["dynamics", "q"], 2, 4.0)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert Counter(name.split(".linear.")[0] for name in trained) == {
        f"{part}.{block}": 2 for part in ("dynamics", *(f"q_heads.{m}" for m in range(3))) for block in (0, 2)
    }
    before = model.dynamics[1].experts.up.clone()  # pyright: ignore
    table = make_table(model.config)
    learner = make_learner(model, table)
    learner.update(make_batch(table, model.config), "pretrain", torch.Generator().manual_seed(0))
    assert model.dynamics[1].experts.up.equal(before)  # pyright: ignore


def test_a_grown_model_computes_the_same():
    model = make_model(sizes())
    grown = grow(model, 12, 6, build_model)
    table, obs, action = make_table(model.config), torch.randn(3, 9), torch.rand(3, 4)
    wider = dataclasses.replace(table, action_mask=F.pad(table.action_mask, (0, 2)))
    found = []
    for one, tasks, wide in ((model, table, 0), (grown, wider, 1)):
        ctx = one.context(tasks, torch.arange(3))
        padded = F.pad(action, (0, 2 * wide))
        z, _ = one.next(one.encode(F.pad(obs, (0, 3 * wide)), ctx), padded, ctx)
        found.append(one.q(z, padded, ctx))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_model_without_experts_has_the_weights_it_had():
    names = set(build_model(TINY).state_dict())
    some = set(build_model(sizes(parts=("reward",))).state_dict())
    assert {name for name in names if not name.startswith("reward_head.1.")} <= some
    assert some - names == {
        f"reward_head.1.experts.{part}"
        for part in ("up", "down", "shared_up.weight", "shared_down.weight", "router.weight")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "top_k 5 exceeds model.experts.num 4"),
        ({"parts": ()}, "parts is empty"),
        ({"parts": ("q", "q")}, "names a network twice: q, q"),
        ({"hidden": 12}, "multiple of 8"),
        ({"parts": ("encoder",)}, "'dynamics', 'reward', 'policy' or 'q'"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_impossible_experts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        experts(**changes)


def test_a_width_that_grouped_products_cannot_take_is_refused():
    with pytest.raises(ValueError, match="mlp_dim 20 must be a multiple of 8"):
        dataclasses.replace(TINY, experts=experts())
