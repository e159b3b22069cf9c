"""Scales of the tasks' losses and the head that tells tasks apart: their formulas, what they train, resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.model.math import step_weights
from pipeline.shapes import Batch
from pipeline.systems.build import online_extensions
from pipeline.systems.mow.task_losses import TaskLosses, TaskLossHead, harmony_loss, task_id_loss

HARMONY = replace(LEARNING, weighting="harmony")
BOTH = replace(HARMONY, task_id_coef=0.5)
TERMINATING = replace(TINY, termination=True)


def make_learner(
    learning: config.Learning, sizes: config.Model = TINY, num_tasks: int = 3, accumulate: int = 1
) -> Learner:
    model, table = make_model(sizes), make_table(num_tasks=num_tasks)
    return Learner(model, table, learning, accumulate=accumulate, extensions=online_extensions(model, table, learning))


def head(learner: Learner) -> TaskLossHead:
    (extension,) = learner.extensions
    assert isinstance(extension, TaskLosses)
    return extension.head


def model_loss(learner: Learner, batch: Batch, draws: UpdateDraws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return learner.model_loss(batch, draws, 1.0, [])


def train(learner: Learner, mode: Mode, updates: range) -> list[dict[str, torch.Tensor]]:
    return [learner.update(make_batch(learner.table, seed=i), mode, torch.Generator().manual_seed(i)) for i in updates]


def test_off_there_is_nothing_and_nothing_is_saved() -> None:
    assert list(TaskLossHead(3, 16, LEARNING).parameters()) == []
    learner = make_learner(LEARNING)
    assert learner.extensions == []
    assert not any(name.startswith("tasks.") for name in state_tensors(learner))


@pytest.mark.parametrize("loss", [0.02, 1.0, 30.0])
def test_a_scale_settles_where_its_gradient_is_zero(loss: float) -> None:
    log_scale = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=50, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = harmony_loss(torch.full((4,), loss), log_scale.expand(4))
        total.backward()
        return total

    optimizer.step(closure)
    s = float(log_scale.detach().exp())
    assert -loss / s**2 + 1 / (1 + s) == pytest.approx(0, abs=2e-3 / s)
    assert s == pytest.approx((loss + (loss**2 + 4 * loss) ** 0.5) / 2, rel=2e-3)


def test_scales_of_one_give_the_even_loss_and_ln_2() -> None:
    even, weighed = (make_learner(learning, TERMINATING) for learning in (LEARNING, HARMONY))
    batch = make_batch(even.table)
    draws = UpdateDraws.sample(batch, 2, 3, torch.Generator().manual_seed(0))
    (total, expected), (of_tasks, found) = (model_loss(learner, batch, draws) for learner in (even, weighed))
    assert float(of_tasks.detach()) == pytest.approx(float(total.detach()) + 0.693147, rel=1e-5)
    for part in ("consistency_loss", "reward_loss", "value_loss", "bc_loss", "termination_loss"):
        assert float(found[part]) == pytest.approx(float(expected[part]), rel=1e-5), part


def test_each_task_counts_by_its_own_scale_and_share() -> None:
    learner, even = make_learner(HARMONY), make_learner(LEARNING)
    log_scale = head(learner).log_scale
    batch = make_batch(learner.table, batch_size=5)._replace(task=torch.tensor([0, 2, 0, 0, 2]))
    draws = UpdateDraws.sample(batch, 2, 3, torch.Generator().manual_seed(0))
    assert log_scale is not None
    with torch.no_grad():
        log_scale.copy_(torch.tensor([0.5, -3.0, -1.0]))
    total, _ = model_loss(learner, batch, draws)
    total.backward()
    found, expected = log_scale.grad, torch.zeros(3)
    for row, share in ((0, 0.6), (2, 0.4)):
        own = batch.task == row
        alone = batch._replace(**{part: getattr(batch, part)[:, own] for part in batch._fields[:5]})
        alone = alone._replace(task=batch.task[own], imitation=batch.imitation[own])
        of_own = draws._replace(phrasing=draws.phrasing[own], td_noise=draws.td_noise[:, own])
        of_own = of_own._replace(policy_noise=draws.policy_noise[:, own])
        loss = model_loss(even, alone, of_own)[0].detach()
        s = log_scale.detach()[row].exp()
        expected[row] = share * s * (-loss / s**2 + 1 / (1 + s))
    assert found is not None
    assert torch.allclose(found, expected, rtol=1e-4)  # and 0 for the task without slices
    assert found[1] == 0


@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_a_batch_in_pieces_gives_the_update_of_the_whole(mode: Mode) -> None:
    whole, pieces = (make_learner(BOTH, accumulate=count) for count in (1, 3))
    for learner in (whole, pieces):
        train(learner, mode, range(2))
    for name, value in state_tensors(whole).items():
        assert (state_tensors(pieces)[name] - value).float().abs().mean() < 1e-6, name


def test_the_scales_learn_at_their_own_rate_and_are_logged_by_name() -> None:
    learner = make_learner(replace(HARMONY, weighting_lr_scale=7.0))
    (metrics,) = train(learner, "online", range(1))
    scales = learner.extensions.metrics()
    assert list(scales) == ["harmony/task-0", "harmony/task-1", "harmony/task-2"]
    # Adam's first step is the learning rate.
    assert all(abs(torch.tensor(s).log()) == pytest.approx(7 * LEARNING.lr, rel=1e-3) for s in scales.values())
    assert all(s > 0 for s in scales.values())
    assert "task_id_loss" not in metrics


def test_resuming_is_bit_equal_and_another_number_of_tasks_is_refused(tmp_path: Path) -> None:
    straight, first, second = (make_learner(BOTH) for _ in range(3))
    train(straight, "pretrain", range(4))
    train(first, "pretrain", range(2))
    save_file(state_tensors(first), tmp_path / "state.safetensors")
    load_state_tensors(second, load_file(tmp_path / "state.safetensors"))
    train(second, "pretrain", range(2, 4))
    expected, found = state_tensors(straight), state_tensors(second)
    assert found.keys() == expected.keys()
    assert {"tasks.log_scale", "model_adam.tasks.log_scale.exp_avg", "tasks.identify.weight"} <= found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="another model: .*log_scale"):
        load_state_tensors(make_learner(BOTH, num_tasks=4), expected)
    with pytest.raises(ValueError, match="another model: .*an option of learning changed"):
        load_state_tensors(make_learner(LEARNING), expected)
    with pytest.raises(ValueError, match="another model: .*an option of learning changed"):
        load_state_tensors(make_learner(BOTH), state_tensors(make_learner(LEARNING)))


def test_the_head_learns_to_tell_separable_latents_apart() -> None:
    terms = TaskLossHead(3, 16, BOTH)
    assert terms.identify is not None
    task = torch.arange(60) % 3
    z = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(16)[task]
    optimizer = torch.optim.Adam(terms.identify.parameters(), lr=0.05)
    weights = step_weights(0.5, 2)[:-1]
    first = task_id_loss(terms.identify(z), task, weights)
    assert float(first[0].detach()) == pytest.approx(float(weights.sum() * torch.tensor(3.0).log()), rel=1e-5)
    for _ in range(60):
        optimizer.zero_grad()
        loss, accuracy = task_id_loss(terms.identify(z), task, weights)
        loss.backward()
        optimizer.step()
    assert float(accuracy) > 0.97
    assert float(loss.detach()) < 0.2


def test_predicting_tasks_trains_dynamics_and_encoder_and_is_logged() -> None:
    alone = replace(LEARNING, task_id_coef=1.0, consistency_coef=0.0, reward_coef=0.0, value_coef=0.0)
    learner = make_learner(alone)
    identify, model = head(learner).identify, learner.model
    assert identify is not None
    torch.nn.init.normal_(identify.weight)
    batch = make_batch(learner.table)
    draws = UpdateDraws.sample(batch, 2, 3, torch.Generator().manual_seed(0))
    loss, _ = learner.model_loss(batch, draws, 0.0, [])
    weights = [model.encoder.blocks[0].linear.weight, model.dynamics.blocks[0].linear.weight]
    gradients = torch.autograd.grad(loss, [*weights, identify.weight])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    metrics = train(make_learner(BOTH), "pretrain", range(1))[0]
    assert 0 <= float(metrics["task_id_accuracy"]) <= 1
    assert float(metrics["task_id_loss"]) > 0
