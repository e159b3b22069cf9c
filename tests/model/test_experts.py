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
from pipeline.model.adapters import Adapters
from pipeline.model.compute import PLAIN
from pipeline.model.experts import ExpertLayer, Routing, balance_loss
from pipeline.model.grow import grow
from pipeline.model.planner import plan
from pipeline.model.world_model import WorldModel
from pipeline.train.objective import UpdateDraws, batch_context
from pipeline.train.step import Learner
from tests.tiny import TINY_PLANNER

ALL = ("dynamics", "reward", "policy", "q")


def experts(router: str = "latent", num: int = 4, top_k: int = 1, **changes) -> config.Experts:
    values = {"parts": ALL, "num": num, "top_k": top_k, "hidden": 8, "shared": True, "router": router}
    return config.Experts(**{**values, "temperature": 1.0, "balance_coef": 0.1, **changes})


def sizes(router: str = "latent", **changes) -> config.Model:
    return dataclasses.replace(TINY, mlp_dim=24, experts=experts(router, **changes))


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
    ours, _ = layer(x, task)
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
    learner = Learner(model, table, LEARNING)
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
    y, routing = layer(x)
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
        _, routing = layer(x, x)
        largest.append(float(routing.probs.detach().mean(0).max()))
        optimizer.zero_grad()
        balance_loss([routing], layer.experts).backward()
        optimizer.step()
    assert largest[0] > 0.4
    assert largest[-1] < 0.7 * largest[0]


def test_a_context_notes_where_rows_of_every_network_went_only_if_it_is_asked_to():
    model = make_model(sizes(parts=("dynamics", "q")))
    table = make_table(model.config, num_tasks=3)
    ctx = batch_context(model, table, torch.tensor([0, 2, 1, 2]), torch.zeros(4, dtype=torch.long))
    z, a = torch.rand(5, 4, 16), torch.rand(5, 4, 4)
    noting, notes = ctx.noting()
    plain = model.next(z, a, ctx)
    torch.testing.assert_close(model.next(z, a, noting), plain, rtol=0, atol=0)
    model.q(z, a, noting)
    model.reward(z, a, noting)
    model.q(z, a, noting, target=True)
    assert {name: [tuple(call.chosen.shape) for call in calls] for name, calls in notes.items()} == {
        "dynamics": [(20, 1)], "q.0": [(20, 1)], "q.1": [(20, 1)], "q.2": [(20, 1)],
    }  # fmt: skip
    dense = make_model()
    told = batch_context(dense, make_table(), torch.tensor([0]), torch.tensor([0]))
    assert told.noting() == (told, {})


def test_a_task_router_gives_all_rows_of_a_task_the_experts_of_its_text():
    model = make_model(sizes("task", top_k=2))
    table = make_table(model.config, num_tasks=5)
    task = torch.tensor([4, 0, 3, 0])
    ctx, notes = batch_context(model, table, task, torch.ones(4, dtype=torch.long)).noting()
    model.next(torch.rand(6, 4, 16), torch.rand(6, 4, 4), ctx)
    (routing,) = notes["dynamics"]
    assert routing.probs.shape == (3, 4)  # one row per text
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
    for compute in (PLAIN, PLAIN._replace(bfloat16=True)):
        ctx = model.context(table.embeddings[:, 0], compute, target_q=()).take(rows)
        first, discount = torch.ones(3, dtype=torch.bool), table.discount[rows]
        draws = torch.Generator().manual_seed(0)
        made = plan(model, ctx, obs, TINY_PLANNER, mean, first, discount, table.action_mask[rows], draws)
        found.append(model.next(model.encode(obs, ctx), made.action, ctx))
        assert made.action.isfinite().all()
    torch.testing.assert_close(found[0], found[1].float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("router", ["latent", "task"])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(router):
    table, made = make_table(sizes(router)), []
    batch = make_batch(table, sizes(router), 8)
    draws = UpdateDraws.sample(batch, table.num_phrasings, 3, torch.Generator().manual_seed(1))
    for accumulate in (1, 2):
        model = make_model(sizes(router, balance_coef=0.0))  # which alone looks at more than one row at once
        metrics = Learner(model, table, LEARNING, accumulate=accumulate).update(batch, "online", draws)
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
    metrics = Learner(model, table, LEARNING).update(batch, "online", torch.Generator().manual_seed(0))
    assert {name for name in metrics if name.startswith("experts/")} == {"experts/dynamics", "experts/policy"}
    for layer in ("dynamics", "policy"):
        assert metrics[f"experts/{layer}"].sum(1).tolist() == pytest.approx([4 / 6, 0, 2 / 6])
    assert {"balance_loss", "policy_balance_loss"} <= set(metrics)


def test_compiling_is_refused():
    with pytest.raises(ValueError, match="set runtime.compile to false"):
        make_model(sizes()).context(torch.randn(1, 7), PLAIN._replace(compile=True))


def test_losses_are_computed_under_autocast():
    model = make_model(sizes())
    x = torch.randn(3, 9)
    with torch.autocast("cpu", torch.bfloat16):
        ctx = model.context(torch.randn(3, 7))
        z = model.next(model.encode(x, ctx), torch.rand(3, 4), ctx)
        loss = model.reward(z, torch.rand(3, 4), ctx).float().square().mean()
    loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if name.startswith("dynamics.1.experts")}
    assert all(grad is not None and grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())
    assert ctx.dynamics.layers[0].experts.up.dtype == torch.bfloat16  # pyright: ignore


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
    learner = Learner(model, table, LEARNING)
    learner.update(make_batch(table, model.config), "pretrain", torch.Generator().manual_seed(0))
    assert model.dynamics[1].experts.up.equal(before)  # pyright: ignore


def test_a_grown_model_computes_the_same():
    model = make_model(sizes())
    grown = grow(model, 12, 6)
    emb, obs, action = torch.randn(3, 7), torch.randn(3, 9), torch.rand(3, 4)
    found = []
    for one, wide in ((model, 0), (grown, 1)):
        ctx = one.context(emb)
        z = one.encode(F.pad(obs, (0, 3 * wide)), ctx)
        found.append(one.q(one.next(z, F.pad(action, (0, 2 * wide)), ctx), F.pad(action, (0, 2 * wide)), ctx))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_model_without_experts_has_the_weights_it_had():
    names = set(WorldModel(TINY).state_dict())
    some = set(WorldModel(sizes(parts=("reward",))).state_dict())
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
