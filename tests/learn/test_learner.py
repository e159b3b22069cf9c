"""One update: what moves, what does not, resuming bit for bit, adapters, several phrasings, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.adapters import Adapters
from pipeline.learn.learner import Learner, Mode, RateSchedule, UpdateDraws, learning_rate
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.model.world_model import PARTS, WorldModel
from pipeline.run.ranks import Ranks


def make_learner(model: WorldModel | None = None, **options: Any) -> Learner:
    return Learner(model or make_model(), make_table(), LEARNING, **options)


def train(learner: Learner, mode: Mode, updates: range) -> list[dict[str, torch.Tensor]]:
    """Update on batches and draws that depend on the number of the update alone."""
    return [learner.update(make_batch(learner.table, seed=i), mode, torch.Generator().manual_seed(i)) for i in updates]


def moved(before: dict[str, torch.Tensor], model: WorldModel) -> set[str]:
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def snapshot(model: WorldModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_every_part_moves_and_stays_finite(mode: Mode) -> None:
    learner = make_learner()
    before = snapshot(learner.model)
    metrics = train(learner, mode, range(3))[-1]
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == before.keys()
    assert learner.updates == 3
    assert all(value.numel() == 1 and value.isfinite() and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("mode", ["pretrain", "online"])
@pytest.mark.parametrize("part", list(PARTS))
def test_only_the_declared_part_moves(part: str, mode: Mode) -> None:
    model = make_model().requires_grad_(False)
    getattr(model, PARTS[part]).requires_grad_(True)
    model.sync_target()  # the target Q heads have nowhere to go where the online ones do not move
    before = snapshot(model)
    train(make_learner(model), mode, range(2))
    assert moved(before, model) == {PARTS[part]} | ({"target_q_heads"} if part == "q" else set())


def test_where_the_value_has_no_weight_the_policy_imitates_alone() -> None:
    """With weight 0 for all tasks other Q networks give the same policy; with weight 1 it is the published loss."""

    def policy(q_weight: float | None, q_bias: float) -> torch.Tensor:
        learner = make_learner()
        with torch.no_grad():
            list(learner.model.q_heads.parameters())[-1].view(learner.model.config.num_q, -1)[:, 0] += q_bias
        learner.q_weight = None if q_weight is None else torch.full((len(learner.table.names),), q_weight)
        learner.model.requires_grad_(False)
        learner.model.policy_head.requires_grad_(True)
        learner.rebuild_optimizers()
        train(learner, "online", range(2))
        return torch.cat([one.flatten() for one in learner.model.policy_head.parameters()])

    assert torch.equal(policy(0.0, 0.0), policy(0.0, 3.0))
    assert not torch.equal(policy(1.0, 0.0), policy(1.0, 3.0))
    assert torch.equal(policy(1.0, 0.0), policy(None, 0.0))


def test_warmup_is_linear_and_never_zero() -> None:
    rate = RateSchedule(2.0, scale=0.5, warmup_updates=4)
    assert [learning_rate(rate, update, 0) for update in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(RateSchedule(2.0), 0, 0) == 2
    assert learning_rate(RateSchedule(2.0), 0, 0, part=0.3) == 0.6


def test_cooldown_is_linear_at_the_end_and_never_zero() -> None:
    rate = RateSchedule(1.0, cooldown=0.5, total=8)
    assert [learning_rate(rate, 9, position) for position in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert learning_rate(rate._replace(cooldown=0), 9, 7) == 1


def test_pretraining_leaves_the_value_scale_alone() -> None:
    learner = make_learner()
    train(learner, "pretrain", range(2))
    assert learner.value_scale.item() == 1


def test_nothing_trainable_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter of the model has requires_grad"):
        make_learner(make_model().requires_grad_(False))


def test_the_encoder_learns_slower_and_warmup_scales_both() -> None:
    learner = make_learner(warmup_updates=2)
    before = snapshot(learner.model)
    train(learner, "online", range(1))
    # Adam's first step is the learning rate wherever the gradient is not tiny.
    steps = {
        name: (learner.model.state_dict()[f"{name}.0.linear.weight"] - before[f"{name}.0.linear.weight"]).abs().max()
        for name in ("encoder", "dynamics", "policy_head")
    }
    assert steps["dynamics"] == pytest.approx(LEARNING.lr / 2, rel=0.01)
    assert steps["policy_head"] == pytest.approx(LEARNING.lr / 2, rel=0.02)
    assert steps["encoder"] == pytest.approx(LEARNING.lr / 2 * LEARNING.encoder_lr_scale, rel=0.01)


@pytest.mark.parametrize("modes", [("online", "online"), ("pretrain", "online"), ("pretrain", "pretrain")])
def test_resuming_is_bit_equal(modes: tuple[Mode, Mode], tmp_path: Path) -> None:
    straight = make_learner(warmup_updates=5)
    train(straight, modes[0], range(3))
    train(straight, modes[1], range(3, 6))

    first = make_learner(warmup_updates=5)
    train(first, modes[0], range(3))
    save_file(state_tensors(first), tmp_path / "state.safetensors")
    second = make_learner(make_model(seed=9), warmup_updates=5)
    load_state_tensors(second, load_file(tmp_path / "state.safetensors"))
    assert second.updates == 3
    train(second, modes[1], range(3, 6))

    expected, found = state_tensors(straight), state_tensors(second)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_state_of_another_model_is_refused() -> None:
    state = state_tensors(make_learner(make_model(replace(TINY, num_q=2))))
    with pytest.raises(ValueError, match=r"of another model: q_heads\.2\.0\.linear\.bias"):
        load_state_tensors(make_learner(), state)
    with pytest.raises(ValueError, match="scale or updates"):
        load_state_tensors(
            make_learner(), {name: value for name, value in state_tensors(make_learner()).items() if name != "scale"}
        )


@pytest.mark.parametrize("field", ["obs", "reward", "action", "expert_action"])
def test_a_number_that_is_not_finite_is_traced_to_its_task(field: str) -> None:
    learner = make_learner()
    train(learner, "pretrain", range(1))
    before = snapshot(learner.model)
    batch = make_batch(learner.table, seed=1)
    getattr(batch, field)[1, 2] = math.nan
    name = learner.table.names[int(batch.task[2])]
    with pytest.raises(FloatingPointError, match=rf"update 1 .*total_loss nan.*{field} values .* of {name}\.$"):
        learner.update(batch, "pretrain", torch.Generator().manual_seed(0))
    assert moved(before, learner.model) == set()
    assert learner.updates == 1


def test_weights_gone_wrong_name_the_tasks_of_the_batch() -> None:
    learner = make_learner()
    with torch.no_grad():
        learner.model.encoder.blocks[0].linear.bias.fill_(math.inf)
    with pytest.raises(FloatingPointError, match="The batch itself is finite; its tasks are task-0, task-1, task-2"):
        train(learner, "online", range(1))


def test_a_task_outside_the_table_is_refused() -> None:
    learner = make_learner()
    batch = make_batch(learner.table)
    batch.task[2] = 7
    with pytest.raises(AssertionError, match=r"rows \[7\] of a table of 3 tasks"):
        learner.update(batch, "online", torch.Generator())


def test_a_table_for_another_model_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"the table is for \(8, 4\)"):
        Learner(make_model(), make_table(replace(TINY, task_dim=8)), LEARNING)


def test_phrasings_are_drawn_evenly_and_used() -> None:
    model, table = make_model(), make_table(num_phrasings=4)
    batch = make_batch(table, batch_size=400)
    draws = UpdateDraws.sample(batch, table.num_phrasings, TINY.num_q, torch.Generator().manual_seed(0))
    counts = draws.phrasing.bincount(minlength=4)
    assert counts.min() > 60
    ctx = model.context(table, batch.task, draws.phrasing)
    text = table.embeddings[batch.task, draws.phrasing]
    assert torch.allclose(ctx.dynamics.bias, model.dynamics.condition(text).bias, atol=1e-5)
    assert torch.allclose(ctx.target_q[1].bias, model.target_q_heads.condition(text, {})[1].bias, atol=1e-5)


def test_draws_are_standard_normal_and_of_the_batch_s_shape() -> None:
    table = make_table()
    batch = make_batch(table, batch_size=500)
    draws = UpdateDraws.sample(batch, 2, 3, torch.Generator().manual_seed(0))
    assert draws.td_noise.shape == (3, 500, 4)
    assert draws.policy_noise.shape == (4, 500, 4)
    assert draws.td_noise.mean().abs() < 0.05
    assert draws.policy_noise.std() == pytest.approx(1, abs=0.05)


def learn_as_one_of_two(folder: str, mode: Mode) -> None:
    """Run in each of two processes."""
    learn_share(folder, mode, Accelerator(cpu=True))


def learn_share(folder: str, mode: Mode, accelerator: Accelerator | None) -> None:
    """Learn from this process's share of each batch, and write down what became of the weights."""
    rank, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    learner = Learner(make_model(), make_table(), LEARNING, ranks=Ranks(accelerator))
    for step in range(3):
        batch = make_batch(learner.table, batch_size=8, seed=step)
        draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(step))
        mine = slice(rank * 8 // count, (rank + 1) * 8 // count)
        learner.update(
            batch.take(mine),
            mode,
            UpdateDraws(
                draws.phrasing[mine],
                draws.td_noise[:, mine],
                draws.td_members,
                draws.policy_noise[:, mine],
                draws.policy_members,
            ),
        )
    save_file(state_tensors(learner), f"{folder}/{count}-{rank}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_two_processes_learn_as_one(mode: Mode, tmp_path: Path) -> None:
    learn_share(str(tmp_path), mode, None)
    debug_launcher(learn_as_one_of_two, (str(tmp_path), mode), num_processes=2)
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    # Adam turns a rounding error in a gradient of almost 0 into a visible step: hence the mean.
    for name, value in alone.items():
        assert (first[name] - value).float().abs().mean() < 1e-6, name


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_a_batch_in_pieces_gives_the_update_of_the_whole(mode: Mode) -> None:
    whole, pieces = make_learner(), make_learner(accumulate=4)  # of six slices: 2, 2, 1, 1
    for step in range(3):
        batch, draw = make_batch(whole.table, seed=step), torch.Generator()
        first, second = (one.update(batch, mode, draw.manual_seed(step)) for one in (whole, pieces))
        assert first.keys() == second.keys()
        for name in first.keys() - {"value_scale"}:
            assert float(second[name]) == pytest.approx(float(first[name]), rel=1e-3, abs=1e-5), name
    expected, found = state_tensors(whole), state_tensors(pieces)
    for name, value in expected.items():
        assert (found[name] - value).float().abs().mean() < 1e-6, name


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_bfloat16_products_give_nearly_the_same_losses(mode: Mode) -> None:
    full, half = make_learner(), make_learner(ranks=Ranks(Accelerator(cpu=True, mixed_precision="bf16")))
    batch = make_batch(full.table, batch_size=64)
    first, second = (one.update(batch, mode, torch.Generator().manual_seed(0)) for one in (full, half))
    for name in ("total_loss", "reward_loss", "value_loss", "consistency_loss"):
        assert float(second[name]) == pytest.approx(float(first[name]), rel=0.03), name
        assert float(second[name]) != float(first[name]), f"{name}: nothing was computed in bfloat16"
    assert all(value.dtype == torch.float32 for value in half.model.parameters())


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_with_adapters_only_they_learn(mode: Mode) -> None:
    model = make_model()
    base = snapshot(model)
    Adapters(model).create("new", list(PARTS), rank=2, alpha=4.0)
    learner = make_learner(model)
    before = snapshot(model)
    train(learner, mode, range(3))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    online = {name for name in changed if not name.startswith("target_")}
    assert all("lora_" in name for name in changed)
    assert {name.split(".")[0] for name in online} == set(PARTS.values())
    assert any(name.startswith("target_q_heads") for name in changed)
    found = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    # The target starts anew, as a copy of the online heads; everything else of the base is untouched.
    assert all(torch.equal(found[name], value) for name, value in base.items() if not name.startswith("target_"))


def test_the_target_follows_adapted_q_heads() -> None:
    model = make_model()
    Adapters(model).create("new", ["q"], rank=2, alpha=4.0)
    pairs = list(zip(model.target_q_heads.parameters(), model.q_heads.parameters(), strict=True))
    learner = Learner(model, make_table(), replace(LEARNING, tau=1.0))
    train(learner, "online", range(2))
    assert all(torch.equal(target, online) for target, online in pairs)
