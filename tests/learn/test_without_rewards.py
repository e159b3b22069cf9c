"""Slices whose rewards are unknown: all but reward, value and the policy's Q term learn from them, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.returns import Returns
from pipeline.shapes import Batch

HALF = slice(0, 3)  # the slices of a batch of six whose rewards stay known


def make_learner() -> Learner:
    return Learner(make_model(), make_table(), LEARNING)


def forget(batch: Batch, first: int = 0) -> Batch:
    """The batch without the rewards of its slices from `first` on."""
    batch.reward[:, first:] = torch.nan
    return batch


def draws_for(batch: Batch) -> UpdateDraws:
    return UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["pretrain", "online"])
@pytest.mark.parametrize("target", ["td", "returns"])
def test_reward_and_value_stay_as_they_are_and_all_else_moves(mode: Mode, target: str) -> None:
    learner = make_learner()
    learner.model.sync_target()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    batch = forget(make_batch(learner.table))
    if target == "returns":
        batch = batch._replace(value_target=batch.reward.clone())
    metrics = learner.update(batch, mode, torch.Generator().manual_seed(0))
    after = learner.model.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name.split(".")[0] for name in before} - {"reward_head", "q_heads", "target_q_heads"}
    assert all(value.isfinite().all() for value in metrics.values())
    assert metrics["reward_loss"] == metrics["value_loss"] == 0
    assert learner.value_scale.tolist() == [1.0]


def test_beside_others_they_count_nothing_for_reward_and_value() -> None:
    learner = make_learner()
    whole = make_batch(learner.table)
    draws = draws_for(whole)
    mixed = forget(whole.each(Tensor.clone), 3)

    def parts(batch: Batch, draws: UpdateDraws) -> dict[str, Tensor]:
        return learner.model_loss(batch, draws, LEARNING.bc_coef, [])[1]

    known, all_of_them = parts(whole.take(HALF), draws.take(HALF)), parts(whole, draws)
    for name, value in parts(mixed, draws).items():
        if name in ("reward_loss", "value_loss"):
            torch.testing.assert_close(value, known[name] / 2)
        elif name != "total_loss":
            assert torch.equal(value, all_of_them[name]), name


def test_beside_others_the_policy_s_value_and_its_scale_are_of_the_known_alone() -> None:
    learner = make_learner()
    learner.learning = replace(LEARNING, prior_coef=0.0, entropy_coef=0.0)
    whole = make_batch(learner.table)
    draws, z = draws_for(whole), torch.rand(4, 6, TINY.latent_dim)
    values: list[Tensor] = []
    known, _ = learner.policy_loss(whole.take(HALF), draws.take(HALF), z[:, HALF], values)
    mixed, _ = learner.policy_loss(forget(whole, 3), draws, z, values)
    torch.testing.assert_close(mixed, known / 2)
    torch.testing.assert_close(values[1][HALF], values[0])
    assert values[1][3:].isnan().all()  # not known: the value scale does not count them


def test_a_reward_that_is_missing_within_an_episode_is_refused_and_never_counts_as_unknown() -> None:
    buffer = ReplayBuffer(20, 4, 2, 3)
    reward = torch.full((5,), torch.nan)
    reward[2] = 1.0
    with pytest.raises(ValueError, match="`reward` that is not finite at step 0"):
        buffer.add(torch.zeros(6, 4), torch.zeros(5, 2), reward, False, 0)
    learner = make_learner()
    batch = make_batch(learner.table)
    batch.reward[1, 2] = torch.nan
    assert batch.rewarded.all()
    with pytest.raises(FloatingPointError, match=f"reward values .* of {learner.table.names[int(batch.task[2])]}"):
        learner.update(forget(batch, 5), "pretrain", torch.Generator().manual_seed(0))


def test_returns_of_other_tasks_are_as_without_them() -> None:
    learning = replace(LEARNING, value_target="returns", relabel_every=10)
    scales = []
    for bare in (False, True):
        learner = Learner(make_model(), make_table(), learning)
        buffer = ReplayBuffer(200, TINY.obs_dim, TINY.action_dim, 3, keep_value_targets=True)
        for task in range(3):
            draw = torch.Generator().manual_seed(task)
            obs, reward = torch.randn(21, TINY.obs_dim, generator=draw), 9 * torch.randn(20, generator=draw)
            reward = torch.full((20,), torch.nan) if bare and task == 1 else reward
            assert buffer.add(obs, torch.zeros(20, TINY.action_dim), reward, False, task)
        Returns(learner, [buffer]).relabel()
        scales.append(learner.value_scale.numpy())
        batch = buffer.sample(64, torch.Generator().manual_seed(0))
        assert batch.rewarded.tolist() == [not (bare and task == 1) for task in batch.task.tolist()]
        metrics = learner.update(batch, "online", torch.Generator().manual_seed(0))
        assert all(value.isfinite().all() for value in metrics.values())
    assert np.array_equal(scales[0][[0, 2]], scales[1][[0, 2]])
    assert scales[1][1] == 1.0
