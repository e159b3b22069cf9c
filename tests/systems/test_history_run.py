"""Updates that use the past of slices, and a world that cannot be predicted without it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.math import decode
from pipeline.model.task_table import TaskTable
from pipeline.shapes import Batch
from pipeline.systems.build import build_model
from pipeline.systems.history.past import Past
from pipeline.systems.history.replay import ReplayWithPast

HORIZON, CONTEXT = 3, 4
HISTORY = config.History(context=CONTEXT, layers=1, heads=2, dim=32, mlp_dim=32, backbone="dynamics")
SHARED = dataclasses.replace(HISTORY, backbone="shared")


def with_past(batch: Batch, length: Tensor | None = None) -> Batch:
    draw, size = torch.Generator().manual_seed(5), len(batch.task)
    obs = torch.randn(CONTEXT, size, TINY.obs_dim, generator=draw)
    action = torch.rand(CONTEXT, size, TINY.action_dim, generator=draw)
    return batch._replace(past=Past(obs, action, torch.arange(size) % (CONTEXT + 1) if length is None else length))


def test_slices_without_their_past_are_refused() -> None:
    learner = Learner(make_model(dataclasses.replace(TINY, history=HISTORY)), make_table(), LEARNING)
    with pytest.raises(AssertionError, match="slices come without their past: sample them from a ReplayWithPast"):
        learner.update(make_batch(learner.table), "pretrain", torch.Generator())


@pytest.mark.parametrize("history", [HISTORY, SHARED], ids=["dynamics", "shared"])
@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_a_batch_in_pieces_gives_the_update_of_the_whole(history: config.History, mode: str) -> None:
    weights = []
    for pieces in (1, 3):
        model = make_model(dataclasses.replace(TINY, history=history))
        learner = Learner(model, make_table(), LEARNING, accumulate=pieces)
        for step in range(2):
            batch = with_past(make_batch(learner.table, seed=step))
            learner.update(batch, mode, torch.Generator().manual_seed(step))  # pyright: ignore[reportArgumentType]
        # A key's bias changes no share of attention: its gradient is rounding, which Adam blows up.
        counted = [part for name, part in model.named_parameters() if not name.endswith("qkv.linear.bias")]
        weights.append(torch.cat([part.detach().flatten() for part in counted]))
    assert torch.allclose(*weights, atol=2e-5)


@pytest.mark.parametrize("history", [HISTORY, SHARED], ids=["dynamics", "shared"])
def test_every_weight_learns_and_what_does_not_count_does_not(history: config.History) -> None:
    table, model = make_table(), make_model(dataclasses.replace(TINY, history=history))
    length = torch.tensor([0, 1, 2, 3, 4, 4])
    batch = with_past(make_batch(table), length)
    draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(0))

    learner = Learner(model, table, LEARNING)

    def total(batch: Batch) -> Tensor:
        return learner.model_loss(batch, draws, bc_coef=1.0, latents=[])[0]

    assert batch.past is not None
    total(batch).backward()
    idle = [name for name, part in model.dynamics.named_parameters() if part.grad is None or not part.grad.any()]
    assert idle == []
    unseen = torch.arange(CONTEXT).unsqueeze(1) < CONTEXT - length
    obs = batch.past.obs.masked_fill(unseen.unsqueeze(-1), 7.0)
    assert torch.allclose(total(batch._replace(past=batch.past._replace(obs=obs))), total(batch), rtol=1e-6)
    seen = batch.past.obs.clone()
    seen[-1, 1] += 1
    assert not torch.allclose(total(batch._replace(past=batch.past._replace(obs=seen))), total(batch), rtol=1e-6)


# --- a point that circles to the left or to the right, of which only the place is observed ---------------------------

SPEED = 0.7  # radians per step
CIRCLE = config.Model(
    obs_dim=2, action_dim=1, task_dim=4, latent_dim=32, enc_dim=32, num_enc_layers=2, mlp_dim=48, num_q=2, num_bins=21,
    bin_min=-2.0, bin_max=2.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
)  # fmt: skip
FAST = dataclasses.replace(
    LEARNING, lr=3e-3, encoder_lr_scale=1.0, reward_coef=1.0, consistency_coef=2.0, online_bc_coef=0.0, rho=1.0
)


def circles(context: int) -> ReplayBuffer:
    """Episodes of 12 steps, whose reward is the point's height."""
    replay, draw = ReplayWithPast(2000, 2, 1, HORIZON, context=context), torch.Generator().manual_seed(0)
    for number in range(120):
        start = 2 * math.pi * torch.rand(1, generator=draw)
        angle = start + SPEED * (1 if number % 2 else -1) * torch.arange(13)
        obs = torch.stack([angle.cos(), angle.sin()], dim=1)
        replay.add(obs, torch.zeros(12, 1), angle.sin()[:-1], False, 0)
    return replay


def surprise(history: config.History | None) -> tuple[float, list[float]]:
    """Learn by pretraining and then online; return the error of predicted rewards (mean square, the last step of
    slices whose whole past is known), and the total losses at the beginning and end of both phases."""
    torch.manual_seed(0)
    table = TaskTable(("circle",), torch.ones(1, 1, 4), torch.ones(1, 1), torch.tensor([0.9]))
    model = build_model(dataclasses.replace(CIRCLE, history=history))
    learner, draw = Learner(model, table, FAST), torch.Generator().manual_seed(1)
    replay, losses = circles(CONTEXT), []
    for mode in ("pretrain", "online"):
        found = [learner.update(replay.sample(64, draw), mode, draw)["total_loss"] for _ in range(100)]
        losses += [float(torch.stack(part).mean()) for part in (found[:20], found[-20:])]
    batch = replay.sample(400, draw)
    assert batch.past is not None
    with torch.no_grad():
        ctx = model.context(table, batch.task)
        z, carry = model.begin(batch.obs[0], ctx, batch.past)
        for action in batch.action[:-1]:
            z, carry = model.next(z, action, ctx, carry)
        reward = decode(model.reward(z, batch.action[-1], ctx), model.bins)
    known = batch.past.length == CONTEXT
    return float((reward - batch.reward[-1])[known].square().mean()), losses


@pytest.mark.slow
def test_what_moves_unseen_is_learned_with_a_past_alone() -> None:
    """Without the direction, the best guess of the height two steps on is off by half of sin(1.4)^2, 0.49."""
    blind, _ = surprise(None)
    assert blind > 0.3
    for history, most, falls_to in ((HISTORY, 0.05, 0.8), (SHARED, 0.2, 0.9)):  # a shared backbone takes longer
        seeing, (first, second, third, fourth) = surprise(history)
        assert seeing < most, history
        assert second < falls_to * first
        assert fourth < third
