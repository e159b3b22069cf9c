"""What Q should be: lambda-returns against the definition, and never a target of another episode or of nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.returns import Returns, kept_returns, lambda_returns

KEPT = replace(LEARNING, value_target="returns", relabel_every=10)
RNG = np.random.default_rng(0)


def mixed(reward: np.ndarray, value: np.ndarray, terminated: bool, discount: float, lam: float) -> list[float]:
    """The definition: returns of n steps and a value, by (1 - lambda) lambda^(n - 1); the rest is whole."""
    value = value.copy()
    value[-1] = 0.0 if terminated else value[-1]

    def of_steps(t: int, n: int) -> float:
        return sum(discount**k * reward[t + k] for k in range(n)) + discount**n * value[t + n]

    length = len(reward)
    return [
        sum((1 - lam) * lam ** (n - 1) * of_steps(t, n) for n in range(1, length - t))
        + lam ** (length - t - 1) * of_steps(t, length - t)
        for t in range(length)
    ]


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_returns_are_the_mixture_of_all_lengths(lam: float, terminated: bool) -> None:
    reward, value = RNG.normal(size=7), RNG.normal(size=8)
    found = lambda_returns(reward, value, terminated, 0.9, lam)
    np.testing.assert_allclose(found, mixed(reward, value, terminated, 0.9, lam))


def make_replay(lengths: tuple[int, ...] = (), capacity: int = 200) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, TINY.obs_dim, TINY.action_dim, 3, keep_value_targets=True)
    for number, length in enumerate(lengths):
        add(buffer, length, number % 3, terminated=number % 2 == 1)
    return buffer


def add(buffer: ReplayBuffer, length: int, task: int, terminated: bool = False, returns: Returns | None = None) -> None:
    draw = torch.Generator().manual_seed(length)
    obs, reward = torch.randn(length + 1, TINY.obs_dim, generator=draw), torch.randn(length, generator=draw)
    action = torch.zeros(length, TINY.action_dim)
    target = None if returns is None else returns.of_episode(obs, reward, terminated, task)
    buffer.add(obs, action, reward, terminated, task, value_target=target)


def expected(learner: Learner, buffer: ReplayBuffer) -> dict[int, np.ndarray]:
    """The targets of each stored episode by its first row, one episode at a time."""
    found = {}
    for start, length, task, terminated in buffer.index_tensors()["episodes"].T.tolist():
        obs, reward = buffer.obs[start : start + length + 1], buffer.reward[start : start + length]
        with torch.no_grad():
            ctx = learner.model.context(learner.table, torch.full((length + 1,), task))
            value = learner.value(learner.model.encode(obs, ctx), ctx).numpy()
        discount = float(learner.table.discount[task])
        found[start] = lambda_returns(reward.numpy(), value, bool(terminated), discount, KEPT.return_lambda)
    return found


def targets(buffer: ReplayBuffer) -> torch.Tensor:
    return buffer._tensors["value_target"]


def test_every_stored_episode_has_its_own_targets() -> None:
    learner, buffer = Learner(make_model(), make_table(), KEPT), make_replay((12, 5, 30, 8))
    Returns(learner, [buffer]).relabel()
    for start, values in expected(learner, buffer).items():
        np.testing.assert_allclose(targets(buffer)[start : start + len(values)], values, rtol=1e-4, atol=1e-4)


def test_slices_carry_the_targets_of_their_steps() -> None:
    learner, buffer = Learner(make_model(), make_table(), KEPT), make_replay((12, 5, 30, 8))
    Returns(learner, [buffer]).relabel()
    batch = buffer.sample(50, torch.Generator().manual_seed(0))
    assert batch.value_target is not None
    of_row = {float(buffer.reward[row]): float(targets(buffer)[row]) for row in range(59)}
    for reward, target in zip(batch.reward.flatten().tolist(), batch.value_target.flatten().tolist(), strict=True):
        assert of_row[reward] == target


def test_a_fresh_episode_never_has_a_wrong_target() -> None:
    """Also not where it takes the rows of older ones, and not between two times that all are computed."""
    learner, buffer = Learner(make_model(), make_table(), KEPT), make_replay(capacity=60)
    returns = Returns(learner, [buffer])
    for number, length in enumerate((20, 15, 12, 25, 9, 18)):
        add(buffer, length, number % 3, number % 2 == 1, returns)
        for start, values in expected(learner, buffer).items():
            np.testing.assert_allclose(targets(buffer)[start : start + len(values)], values, rtol=1e-4, atol=1e-4)


def test_all_are_computed_at_first_then_now_and_then_and_after_a_save() -> None:
    learner, buffer = Learner(make_model(), make_table(), KEPT), make_replay((12, 20, 9))
    run: Any = SimpleNamespace(learner=learner)
    seen = []
    kept_returns(run, [buffer])
    for update in range(25):
        before = targets(buffer).clone()
        run.before_update()
        if not torch.equal(before, targets(buffer)):
            seen.append(update)
        learner.update(buffer.sample(4, torch.Generator().manual_seed(update)), "online", torch.Generator())
        if update == 13:
            run.on_save()
    assert seen == [0, 10, 14, 20]


def test_a_tasks_scale_is_the_range_of_its_returns() -> None:
    learner, buffer = Learner(make_model(), make_table(), KEPT), make_replay((40, 60))
    buffer.reward[:41] *= 100
    Returns(learner, [buffer]).relabel()
    scale = learner.value_scale
    low, high = np.quantile(targets(buffer)[:40].numpy(), [0.05, 0.95])
    assert scale[0].item() == pytest.approx(high - low, rel=1e-4)
    assert scale[0] > 10 * scale[1]
    assert scale[2] == 1  # nothing is known of it
    other = Learner(make_model(seed=1), make_table(), KEPT)
    load_state_tensors(other, state_tensors(learner))
    assert torch.equal(other.value_scale, scale)


def test_q_learns_what_the_replay_says_it_should_be() -> None:
    learner = Learner(make_model(), make_table(), replace(KEPT, lr=3e-3))
    batch = make_batch(learner.table)
    batch = batch._replace(value_target=5 * torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
    losses = [learner.update(batch, "pretrain", torch.Generator().manual_seed(0))["value_loss"] for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]


def test_published_targets_need_no_returns(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(learner=Learner(make_model(), make_table(), LEARNING))
    assert kept_returns(run, []) is None
