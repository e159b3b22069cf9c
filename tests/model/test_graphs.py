"""Plans and updates on fixed buffers are those that run as they are; on a CPU, where nothing is captured."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.adapters import Adapters
from pipeline.learn.extension import Extension
from pipeline.learn.finite import FiniteWatch
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.learn.setup import make_graphs, product_modes
from pipeline.model.actor import Actor
from pipeline.model.graphs import Graphs
from pipeline.run.ranks import Ranks
from tests.tiny import TINY_PLANNER

CPU = torch.device("cpu")


def make_learner(graphs: bool, **options: Any) -> Learner:
    return Learner(make_model(), make_table(), LEARNING, 4, graphs=Graphs(CPU) if graphs else None, **options)


def train(learner: Learner, mode: Mode, updates: range) -> list[dict[str, torch.Tensor]]:
    found = []
    for i in updates:
        learner.position = i
        batch = make_batch(learner.table, seed=i)
        found.append(learner.update(batch, mode, torch.Generator().manual_seed(i)))
    return found


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_arguments_are_copied_in_and_results_out() -> None:
    graphs, weight = Graphs(CPU), torch.ones(2)
    seen: list[int] = []

    def function(x: torch.Tensor, more: dict[str, Any]) -> dict[str, torch.Tensor]:
        seen.append(x.data_ptr())
        return {"y": x.mul_(2) + weight[0] if more["z"] is None else x}

    x = torch.ones(2)
    first = graphs.run("f", function, (x, {"z": None}), [weight])
    second = graphs.run("f", function, (x, {"z": None}), [weight])
    assert x.tolist() == [1, 1]  # the buffer was changed, not what was given
    assert first["y"].tolist() == second["y"].tolist() == [3, 3]
    assert first["y"].data_ptr() != second["y"].data_ptr()
    assert seen[0] == seen[1] != x.data_ptr()
    graphs.run("f", function, (torch.ones(3), {"z": None}), [torch.ones(3)])  # another form: buffers of its own
    assert seen[2] != seen[0]
    graphs.run("f", function, (x, {"z": None}), [weight.clone()])  # what it reads lies elsewhere
    assert seen[3] != seen[0]


@pytest.mark.parametrize("mode", ["pretrain", "online"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_updates_are_those_that_run_as_they_are(mode: Mode, accumulate: int) -> None:
    """With a learning rate that changes, a weight of Q that comes and changes, and a resume between."""
    plain, fixed = make_learner(False, accumulate=accumulate), make_learner(True, accumulate=accumulate)
    for learner in (plain, fixed):
        learner.rate = learner.rate._replace(cooldown=1.0, total=9)
    for step in range(3):
        for learner in (plain, fixed):
            learner.q_weight = None if step == 0 else torch.tensor([1.0, 0.0, float(step)])
        both = [train(learner, mode, range(2 * step, 2 * step + 2)) for learner in (plain, fixed)]
        for expected, found in zip(*both, strict=True):
            close(found, expected)
    state = {name: value.clone() for name, value in state_tensors(fixed).items()}
    again = make_learner(True, accumulate=accumulate)
    again.rate, again.q_weight = fixed.rate, torch.tensor([1.0, 0.0, 2.0])
    load_state_tensors(again, state)
    load_state_tensors(fixed, state)  # in place, and into a learner that has graphs already
    for learner in (plain, fixed, again):
        train(learner, mode, range(6, 8))
    close(state_tensors(fixed), state_tensors(plain))
    assert all(torch.equal(value, state_tensors(again)[name]) for name, value in state_tensors(fixed).items())


def test_an_adapter_learns_the_same_and_alone() -> None:
    states = []
    for graphs in (None, Graphs(CPU)):
        torch.manual_seed(0)
        model = make_model()
        Adapters(model).create("new", ["dynamics", "policy", "q"], rank=2, alpha=4.0)
        learner = Learner(model, make_table(), LEARNING, graphs=graphs)
        train(learner, "online", range(3))
        states.append(state_tensors(learner))
    close(states[1], states[0])


def as_one_of_two(folder: str) -> None:
    learn_share(folder, Accelerator(cpu=True))


def learn_share(folder: str, accelerator: Accelerator | None) -> None:
    ranks = Ranks(accelerator)
    learner = make_learner(True, ranks=ranks)
    sizes = ranks.shares(9, [1] * ranks.count)
    mine = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
    for step in range(3):
        batch = make_batch(learner.table, batch_size=9, seed=step)
        draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(step))
        learner.update(batch.take(mine), "online", draws.take(mine))
    save_file(state_tensors(learner), f"{folder}/{ranks.count}-{ranks.rank}.safetensors")


@pytest.mark.slow
def test_two_processes_of_uneven_shares_learn_as_one(tmp_path: Path) -> None:
    learn_share(str(tmp_path), None)
    debug_launcher(as_one_of_two, (str(tmp_path),), num_processes=2)
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    for name, value in alone.items():
        assert (first[name] - value).float().abs().mean() < 1e-6, name


def test_with_other_systems_updates_run_as_they_are_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        learner = make_learner(True, extensions=[Extension()])
    assert learner.graphs is None
    assert "without CUDA graphs" in caplog.text


@pytest.mark.parametrize("graphs", [False, True])
def test_where_the_verdict_is_read_later_nothing_is_learned_meanwhile(graphs: bool) -> None:
    """As on a GPU: the error comes some steps behind, or when something is to be logged or saved."""
    for late in (False, True):
        learner = make_learner(graphs)
        train(learner, "online", range(2))
        learner.finite = FiniteWatch(CPU, behind=6)
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        batch = make_batch(learner.table, seed=2)
        batch.obs[1, 2] = math.nan
        name = learner.table.names[int(batch.task[2])]
        learner.update(batch, "online", torch.Generator().manual_seed(2))
        scale = learner.value_scale.clone()
        with pytest.raises(FloatingPointError, match=rf"update 2 .*obs values .* of {name}\.$"):
            if late:
                train(learner, "online", range(3, 12))
            else:
                learner.finite.settle(learner)
        for name, value in learner.model.state_dict().items():
            assert name.startswith("target_") or torch.equal(value, before[name]), name
        assert scale.isfinite()
        train(learner, "online", range(12, 13))
        learner.finite.settle(learner)
        assert any(not torch.equal(value, before[name]) for name, value in learner.model.named_parameters())


def act(graphs: Graphs | None, plan: torch.Tensor, steps: int = 3, adapters: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model, table = make_model(), make_table()
    held = None
    if adapters:
        held = Adapters(model)
        held.create(table.names[1], ["policy", "q"], rank=2, alpha=4.0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_()
    actor = Actor(model, table, TINY_PLANNER, adapters=held, graphs=graphs)
    actor.reset(4, seed=3)
    draw, rows = torch.Generator().manual_seed(0), torch.tensor([0, 1, 2, 1])
    found = []
    for step in range(steps):
        obs = torch.randn(4, TINY.obs_dim, generator=draw)
        found += [actor.act(obs, rows, plan, True, torch.tensor([0.0, 0.5, 1.0, 1.0])), actor.intended]
        actor.begin_episodes(torch.tensor([step == 0, False, False, False]))
        with torch.no_grad():  # as an update between
            model.dynamics.blocks[0].linear.bias.add_(0.1)
        actor.refresh()
    return found


@pytest.mark.parametrize("who", [(1, 1, 1, 1), (1, 0, 1, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("adapters", [False, True])
def test_plans_are_those_that_run_as_they_are(who: tuple[int, ...], adapters: bool) -> None:
    plan = torch.tensor(who).bool()
    for found, expected in zip(
        act(Graphs(CPU), plan, adapters=adapters), act(None, plan, adapters=adapters), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_for_some_of_many_environments_the_size_of_a_plan_is_rounded_up() -> None:
    graphs, sizes = Graphs(CPU), []
    model, table = make_model(), make_table()
    actor = Actor(model, table, TINY_PLANNER, graphs=graphs)
    actor.reset(16, seed=0)
    run = graphs.run

    def watched(key: Any, function: Any, given: tuple, reads: Any) -> Any:
        sizes.append(len(given[0]))
        return run(key, function, given, reads)

    graphs.run = watched  # type: ignore[method-assign]
    obs, rows = torch.randn(16, TINY.obs_dim), torch.arange(16) % 3
    for count in (1, 3, 4, 5, 9, 16):
        plan = torch.arange(16) < count
        action = actor.act(obs, rows, plan, False, torch.ones(16))
        assert action.isfinite().all()
    assert sizes == [4, 4, 4, 8, 12, 16]


def test_members_by_an_index_are_those_by_number() -> None:
    table = make_table()
    batch = make_batch(table)
    draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(0))
    losses = []
    for one in (draws, draws.indexed()):
        learner = Learner(make_model(dataclasses.replace(TINY)), table, LEARNING)
        losses.append(learner.update(batch, "online", one))
    close(losses[1], losses[0])


def test_what_a_gpu_is_used_with_by_default() -> None:
    gpu, runtime, before = torch.device("cuda"), config.load(config.Runtime), torch.get_float32_matmul_precision()
    try:
        assert product_modes(runtime, gpu) == ("torch", "bfloat16")
        assert torch.get_float32_matmul_precision() == "high"  # TF32
        assert product_modes(dataclasses.replace(runtime, matmul="torch", plan_products="float32"), gpu)[1] == "torch"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    assert make_graphs(runtime, gpu) is not None
    assert make_graphs(dataclasses.replace(runtime, graphs="off"), gpu) is None
    assert make_graphs(runtime, CPU) is None
    assert product_modes(runtime, CPU)[1] != "bfloat16"


def test_what_cannot_be_captured_is_said_and_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With stand-ins for what torch has on a GPU alone."""

    class Graph:
        def __init__(self, graph: Any, **_: Any):
            pass

        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted")

        def __exit__(self, *_: Any) -> None:
            pass

    graphs = Graphs(CPU)
    graphs.device = torch.device("cuda")
    monkeypatch.setattr(graphs, "_beside", lambda function, arguments: function(*arguments))
    for name, stand_in in {"graph_pool_handle": lambda: 0, "CUDAGraph": object, "synchronize": lambda *_: None,
                           "graph": Graph}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    with caplog.at_level(logging.WARNING):
        found = [graphs.run("f", lambda x: x + 1, (torch.tensor([float(i)]),), []) for i in range(5)]
    assert [float(one) for one in found] == [1, 2, 3, 4, 5]
    assert graphs.failed == "RuntimeError: operation not permitted"
    assert caplog.text.count("CUDA graphs are off") == 1
