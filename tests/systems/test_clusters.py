"""Networks per cluster of tasks: rows reach the right copy, copies begin equal, adapters touch one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.problem import TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.adapters import Adapters
from pipeline.model.actor import Actor
from pipeline.model.grow import grow
from pipeline.model.world_model import WorldModel
from pipeline.systems.build import build_model
from pipeline.systems.mow import clusters
from pipeline.systems.mow.clusters import Clustered, split
from tests.tiny import TINY_PLANNER

ALL = config.Clusters(
    parts=("encoder", "reward", "policy", "q"), num=3, max_num=4, warmup_updates=2, batches=1, points=1
)
CLUSTERED = replace(TINY, clusters=ALL)
CLUSTER = torch.tensor([2, 0, 2, 1])  # of the table's four tasks
TABLE = replace(make_table(num_tasks=4), columns={"cluster": CLUSTER})


def ask(model: WorldModel, batch_size: int = 9) -> dict[str, Tensor]:
    """What each part says about some rows, by name of the part."""
    batch = make_batch(TABLE, batch_size=batch_size)
    return outputs(model, batch.task, batch.obs, batch.action)


def outputs(model: WorldModel, task: Tensor, obs: Tensor, action: Tensor) -> dict[str, Tensor]:
    ctx = model.context(TABLE, task)
    z = model.encode(obs[:-1], ctx)
    return {
        "encoder": z,
        "dynamics": model.next(z, action, ctx)[0],
        "reward": model.reward(z, action, ctx),
        "policy": model.policy(z, ctx).mean,
        "q": model.q(z, action, ctx).movedim(0, -1),
        "target_q": model.q(z, action, ctx, target=True).movedim(0, -1),
    }


def alone(model: WorldModel, cluster: int) -> WorldModel:
    """The model that one cluster's copies are, without any other."""
    state = {}
    for name, value in model.state_dict().items():
        part, *rest = name.split(".")
        at = {"encoder": 0, "reward_head": 0, "policy_head": 0, "q_heads": 1, "target_q_heads": 1}.get(part)
        if at is not None:
            if int(rest[at]) != cluster:
                continue
            rest = rest[:at] + rest[at + 1 :]
        state[".".join([part, *rest])] = value
    found = WorldModel(TINY)
    found.load_state_dict(state)
    return found


@pytest.mark.parametrize("batch_size", [1, 9])
def test_every_row_is_computed_by_its_own_cluster(batch_size: int) -> None:
    model, batch = make_model(CLUSTERED), make_batch(TABLE, batch_size=batch_size)
    found = outputs(model, batch.task, batch.obs, batch.action)
    for number in range(ALL.num):  # pyright: ignore[reportArgumentType]
        rows = (CLUSTER[batch.task] == number).nonzero().flatten()
        if len(rows):
            part = outputs(alone(model, number), batch.task[rows], batch.obs[:, rows], batch.action[:, rows])
            for name, expected in part.items():
                assert torch.allclose(found[name][:, rows], expected, atol=1e-6), (number, name)


def test_gradients_are_those_of_a_loop_over_clusters() -> None:
    model, batch = make_model(CLUSTERED), make_batch(TABLE, batch_size=9)
    weight = {name: torch.randn_like(value) for name, value in ask(model).items()}
    found = outputs(model, batch.task, batch.obs, batch.action)
    sum((found[name] * weight[name]).sum() for name in found if name != "target_q").backward()  # type: ignore[union-attr]
    gradients = dict(model.named_parameters())
    for number in range(3):
        rows = (CLUSTER[batch.task] == number).nonzero().flatten()
        single = alone(model, number)
        part = outputs(single, batch.task[rows], batch.obs[:, rows], batch.action[:, rows])
        sum((part[name] * weight[name][:, rows]).sum() for name in part if name != "target_q").backward()  # type: ignore[union-attr]
        for name, copy in (("encoder", single.encoder), ("policy_head", single.policy_head)):
            for key, parameter in copy.named_parameters():
                assert torch.allclose(gradients[f"{name}.{number}.{key}"].grad, parameter.grad, atol=1e-5), key
        for key, parameter in single.q_heads.named_parameters():
            member, rest = key.split(".", 1)
            assert torch.allclose(gradients[f"q_heads.{member}.{number}.{rest}"].grad, parameter.grad, atol=1e-5), key


def test_splitting_changes_no_number() -> None:
    model = make_model()
    before = ask(model)
    origins = split(model, ALL)
    assert all(torch.equal(new, old) for new, old in origins.items())
    assert isinstance(model.encoder, Clustered)
    assert model.config == model._hub_mixin_config == CLUSTERED
    for name, value in ask(model).items():
        assert torch.allclose(value, before[name], atol=1e-6), name
    assert list(model.state_dict()) == list(build_model(CLUSTERED).state_dict())
    assert not any(value.requires_grad for value in model.target_q_heads.parameters())


def test_parts_that_are_not_named_stay_shared() -> None:
    model = make_model(replace(TINY, clusters=replace(ALL, parts=("q",))))
    assert not isinstance(model.encoder, Clustered)
    names = {name for name, module in model.named_modules() if isinstance(module, Clustered)}
    assert names == {f"{heads}.{m}" for heads in ("q_heads", "target_q_heads") for m in range(3)}


def test_an_actor_plays_each_task_with_its_clusters_networks() -> None:
    model = make_model(CLUSTERED)
    rows, obs = torch.tensor([3, 0, 1, 2, 0]), torch.randn(5, TINY.obs_dim, generator=torch.Generator().manual_seed(0))
    actor = Actor(model, TABLE, TINY_PLANNER)
    actor.reset(5, seed=0)
    together = actor.act(obs, rows, plan=False)
    for number in range(3):
        own = (CLUSTER[rows] == number).nonzero().flatten()
        single = Actor(alone(model, number), TABLE, TINY_PLANNER)
        single.reset(len(own), seed=0)
        assert torch.allclose(together[own], single.act(obs[own], rows[own], plan=False), atol=1e-6)
    assert actor.act(obs, rows, plan=True).isfinite().all()


def test_an_adapter_changes_one_clusters_copies(tmp_path: Path) -> None:
    model = make_model(CLUSTERED)
    before = ask(model)
    adapters = Adapters(model)
    adapters.create("task-0", ("encoder", "dynamics", "q"), rank=2, alpha=4.0, copy=2)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {".".join(name.split(".")[:2]) for name in trained if name.startswith("encoder")} == {"encoder.2"}
    assert {name.split(".")[2] for name in trained if name.startswith("q_heads")} == {"2"}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    task = make_batch(TABLE, batch_size=9).task
    changed = (ask(model)["encoder"] - before["encoder"]).abs() > 1e-5
    assert torch.equal(changed.any(-1).any(0), CLUSTER[task] == 2)
    adapters.save(tmp_path, "task-0")
    again = make_model(CLUSTERED)
    Adapters(again).load(tmp_path, "task-0")
    for name in ("encoder", "dynamics", "q"):
        assert torch.allclose(ask(again)[name], ask(model)[name], atol=1e-4), name
    with pytest.raises(ValueError, match="nothing that Eft writes for a model of this form"):
        Adapters(make_model()).load(tmp_path, "task-0")


def test_a_wider_model_keeps_its_clusters() -> None:
    model = make_model(CLUSTERED)
    grown, batch = grow(model, TINY.obs_dim + 2, TINY.action_dim + 1, build_model), make_batch(TABLE)
    wider = replace(TABLE, action_mask=torch.nn.functional.pad(TABLE.action_mask, (0, 1)))
    ctx = grown.context(wider, batch.task)
    z = grown.encode(torch.nn.functional.pad(batch.obs, (0, 2))[:-1], ctx)
    assert torch.allclose(z, outputs(model, batch.task, batch.obs, batch.action)["encoder"], atol=1e-6)
    assert grown.policy(z, ctx).mean.shape[-1] == TINY.action_dim + 1


def test_rows_are_grouped_once_per_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found, make = make_model(CLUSTERED), [], clusters.Groups.__init__

    def count(self: clusters.Groups, cluster: Tensor) -> None:
        found.append(len(cluster))
        make(self, cluster)

    monkeypatch.setattr(clusters.Groups, "__init__", count)
    clusters._groups_of.cache_clear()
    model.context(TABLE, torch.tensor([3, 0, 0, 1, 3]))
    assert found == [len(TABLE.names), 5]  # all tasks, and the rows
    model.context(TABLE, torch.tensor([3, 1]))
    assert found[2:] == [2]  # the tasks' clusters are those of before


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="`auto` stands for one found in pretraining"):
        build_model(replace(TINY, clusters=replace(ALL, num="auto")))
    with pytest.raises(ValueError, match="per cluster already"):
        split(make_model(CLUSTERED), ALL)
    with pytest.raises(AssertionError, match="the cluster of each task"):
        make_model(CLUSTERED).context(make_table(), torch.arange(3))
    with pytest.raises(ValueError, match="name one part or more, each once"):
        replace(ALL, parts=("q", "q"))
