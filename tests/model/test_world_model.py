"""The model as a whole: how it starts, what it saves, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.problem import TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.model.math import decode
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import PARTS, WorldModel, draw_members


def test_start() -> None:
    model = make_model(fill=False)
    for name, value in model.named_parameters():
        if name.endswith("linear.weight"):
            assert value.std() < 0.03, name
        elif name.endswith("linear.bias"):
            assert not value.any(), name
    table, batch = make_table(), make_batch(make_table())
    ctx = model.context(table, batch.task)
    z = model.encode(batch.obs[0], ctx)
    assert torch.allclose(z.unflatten(-1, (-1, TINY.simnorm_dim)).sum(-1), torch.ones(6, 2), atol=1e-5)
    assert not decode(model.reward(z, batch.action[0], ctx), model.bins).round(decimals=5).any()
    assert not model.q(z, batch.action[0], ctx).any()
    assert torch.equal(model.q(z, batch.action[0], ctx), model.q(z, batch.action[0], ctx, target=True))


def test_parts_name_every_trained_parameter() -> None:
    trained = [name for name, value in make_model().named_parameters() if value.requires_grad]
    assert {name.split(".")[0] for name in trained} == set(PARTS.values())


def test_saving_and_loading_is_bit_equal(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["latent_dim"] == TINY.latent_dim
    assert loaded.config == TINY
    assert isinstance(loaded.config, config.Model)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.bins, model.bins)
    assert not any(value.requires_grad for value in loaded.target_q_heads.parameters())


def test_padded_action_dims_have_no_part_in_the_policy() -> None:
    model, table, batch = make_model(), make_table(), make_batch(make_table())
    mask = table.action_mask[batch.task]
    assert not mask.all()
    ctx = model.context(table, batch.task)
    z = model.encode(batch.obs[0], ctx)
    policy = model.policy(z, ctx, torch.randn(6, TINY.action_dim))
    for part in (policy.mean, policy.log_std, policy.noise, policy.action):
        assert not (part * (1 - mask)).any()
    assert policy.action.abs().max() <= 1
    mode = model.policy(z, ctx)
    assert torch.equal(mode.action, mode.mean.tanh())


def test_q_evaluates_only_the_named_members() -> None:
    model, table, batch = make_model(), make_table(), make_batch(make_table())
    ctx = model.context(table, batch.task)
    z = model.encode(batch.obs[0], ctx)
    every = model.q(z, batch.action[0], ctx)
    assert torch.equal(model.q(z, batch.action[0], ctx, members=(2, 0)), every[[2, 0]])


def test_q_heads_come_in_the_order_in_which_they_are_asked_and_each_is_its_own_network() -> None:
    model, table, batch = make_model(), make_table(), make_batch(make_table())
    ctx, action = model.context(table, batch.task), batch.action[0]
    z = model.encode(batch.obs[0], ctx)
    every = model.q(z, action, ctx)
    assert every.shape == (TINY.num_q, 6, TINY.num_bins)
    for member, head in enumerate(model.q_heads):
        assert torch.equal(every[member], head(ctx.q[member], z, action))
    assert len({float(one.detach().sum()) for one in every}) == TINY.num_q
    # A context for some members asks those alone, in its own order.
    some = model.context(table, batch.task, q=(2, 0), target_q=())
    assert torch.equal(model.q(z, action, some), every[[2, 0]])
    assert torch.equal(model.q(z, action, some, members=(0,)), every[[0]])
    with pytest.raises(KeyError):
        model.q(z, action, some, members=(1,))
    with pytest.raises(RuntimeError):
        model.q(z, action, some, target=True)


def test_targets_are_computed_by_the_target_networks() -> None:
    model, table, batch = make_model(), make_table(), make_batch(make_table())
    ctx, action = model.context(table, batch.task), batch.action[0]
    z = model.encode(batch.obs[0], ctx)
    online, target = model.q(z, action, ctx), model.q(z, action, ctx, target=True)
    assert not torch.allclose(online, target, atol=1e-2)
    assert torch.equal(model.q(z, action, ctx, True, (2, 0)), target[[2, 0]])
    model.sync_target()
    again = model.context(table, batch.task)
    assert torch.equal(model.q(z, action, again, target=True), online)
    assert not any(value.requires_grad for value in model.target_q_heads.parameters())
    with torch.no_grad():  # a copy, not the same tensors
        model.q_heads[0].blocks[-1].linear.bias.add_(1)
    assert torch.equal(model.q(z, action, model.context(table, batch.task), target=True), online)


def test_context_rows_can_be_repeated() -> None:
    model, table, batch = make_model(), make_table(), make_batch(make_table())
    rows = batch.task
    repeated, direct = model.context(table, torch.arange(3)).take(rows), model.context(table, rows)
    obs, action = batch.obs[0], batch.action[0]
    z = model.encode(obs, direct)
    assert torch.allclose(model.encode(obs, repeated), z, atol=1e-6)
    assert torch.allclose(model.q(z, action, repeated), model.q(z, action, direct), atol=1e-5)
    assert torch.allclose(model.q(z, action, repeated, True), model.q(z, action, direct, True), atol=1e-5)


def test_target_moves_the_given_fraction() -> None:
    model = make_model()
    with torch.no_grad():
        for value in model.q_heads.parameters():
            value.add_(1)
    before = [value.clone() for value in model.target_q_heads.parameters()]
    model.update_target(0.1)
    pairs = zip(before, model.target_q_heads.parameters(), model.q_heads.parameters(), strict=True)
    for old, new, online in pairs:
        assert torch.allclose(new, old + 0.1 * (online - old), atol=1e-6)
        assert not torch.equal(new, old)


def test_two_different_members_are_drawn_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_members(3, generator) for _ in range(600)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 6
    assert min(counts.values()) > 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_mask": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, "reach: no action dim"),
        ({"discount": torch.tensor([0.9, 1.5])}, "reach: a discount outside"),
        ({"discount": torch.tensor([0.9])}, "2 names has 1 rows of discount"),
        ({"embeddings": torch.zeros(2, 3)}, r"embeddings \(n, P, E\)"),
        ({"embeddings": torch.full((2, 1, 3), float("nan"))}, "not finite"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    parts = {"embeddings": torch.zeros(2, 1, 3), "action_mask": torch.ones(2, 2), "discount": torch.full((2,), 0.9)}
    TaskTable(("push", "reach"), **parts)
    with pytest.raises(ValueError, match=message):
        TaskTable(("push", "reach"), **(parts | change))
