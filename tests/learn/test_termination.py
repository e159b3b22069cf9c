"""Episodes that end: values and terminations that are known, learned from a replay by whole updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.math import decode
from pipeline.model.planner import policy_rollouts
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from tests.tiny import TINY_PLANNER

DISCOUNT = 0.6
SAFE, LAST = (
    torch.tensor([[-0.5]]),
    torch.tensor([[0.5]]),
)  # an action that goes on, and one after which the episode ends
OPEN, OVER = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # what is observed before, and after the end
FAST = replace(
    LEARNING, lr=3e-3, encoder_lr_scale=1.0, tau=0.2, online_bc_coef=0.0, reward_coef=1.0, value_coef=1.0, rho=1.0,
    prior_coef=0.0,
)  # fmt: skip


def make_learner() -> Learner:
    sizes = replace(
        TINY, obs_dim=2, action_dim=1, task_dim=2, enc_dim=32, mlp_dim=32, latent_dim=32, num_q=2, num_bins=41,
        bin_min=-4.0, bin_max=4.0, termination=True,
    )  # fmt: skip
    table = TaskTable(("trap",), torch.zeros(1, 1, 2), torch.ones(1, 1), torch.tensor([DISCOUNT]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Learner(WorldModel(sizes), table, FAST)


def trap(terminated: bool) -> ReplayBuffer:
    """Episodes in which actions below 0 pay 1 and one above 0 pays 1.5, and is the last.

    Args:
        terminated: it ends the episode for good; else only the time was over, and all could have gone on.
    """
    replay = ReplayBuffer(1000, 2, 1, TINY_PLANNER.horizon)
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        action = -torch.rand(5, 1, generator=draw)
        ends = seed % 2 == 0
        if ends:
            action = torch.cat([action[: 2 + seed % 3], torch.rand(1, 1, generator=draw)])
        obs = OPEN.repeat(len(action) + 1, 1)
        if ends and terminated:
            obs[-1] = OVER
        replay.add(obs, action, torch.where(action[:, 0] < 0, 1.0, 1.5), ends and terminated, 0)
    return replay


def asked(learner: Learner) -> tuple[list[float], list[float]]:
    """Return Q of both actions, and with what probability each ends the episode."""
    model = learner.model
    with torch.no_grad():
        ctx = model.context(learner.table, torch.tensor([0]))
        z = model.encode(OPEN, ctx)
        value = [float(decode(model.q(z, action, ctx), model.bins).mean()) for action in (SAFE, LAST)]
        ended = [float(model.termination(z, action, ctx).sigmoid()) for action in (SAFE, LAST)]
    return value, ended


def planned(learner: Learner) -> list[float]:
    """Return five actions that free plans choose."""
    planner = replace(TINY_PLANNER, num_samples=64, num_policy_samples=8, num_elites=8, iterations=3)
    actor = Actor(learner.model, learner.table, planner)
    actor.reset(1, seed=0)
    return [float(actor.act(OPEN, torch.tensor([0]), plan=True, constraint_weight=0.0)) for _ in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terminated", "safe", "last"),
    [
        # Going on is worth 1 + 0.6 + 0.36 + ... = 2.5, and nothing follows the other action.
        (True, 2.5, 1.5),
        # The other action again and again is worth 1.5 / 0.4, and going on once before that 1 + 0.6 times as much.
        (False, 3.25, 3.75),
    ],
)
def test_known_values_and_terminations_are_learned_and_planned_by(terminated: bool, safe: float, last: float) -> None:
    learner, replay, generator = make_learner(), trap(terminated), torch.Generator().manual_seed(0)
    for _ in range(400):
        learner.update(replay.sample(32, generator), "online", generator)
    value, ended = asked(learner)
    assert value == pytest.approx([safe, last], abs=0.25)
    assert ended == pytest.approx([0.0, float(terminated)], abs=0.05)
    actions = planned(learner)
    assert max(actions) < 0 if terminated else min(actions) > 0, actions


RISK = 0.25  # that the episode ends after an action above 0


def ledge() -> ReplayBuffer:
    """Episodes in which actions above 0 pay 1.2 and may end it, which does not show, and others pay 1."""
    replay, draw = ReplayBuffer(4000, 2, 1, TINY_PLANNER.horizon, by_steps=True), torch.Generator().manual_seed(0)
    for _ in range(200):
        action = 2 * torch.rand(20, 1, generator=draw) - 1
        ends = (action[:, 0] > 0) & (torch.rand(20, generator=draw) < RISK)
        length = int(ends.nonzero()[0]) + 1 if ends.any() else 20
        action = action[:length]
        reward = torch.where(action[:, 0] < 0, 1.0, 1.2)
        replay.add(OPEN.repeat(length + 1, 1), action, reward, bool(ends.any()), 0)
    return replay


@pytest.mark.slow
def test_what_may_end_an_episode_is_known_though_no_observation_shows_it() -> None:
    learner, replay, generator = make_learner(), ledge(), torch.Generator().manual_seed(0)
    for _ in range(600):
        learner.update(replay.sample(64, generator), "online", generator)
    value, ended = asked(learner)
    assert ended == pytest.approx([0.0, RISK], abs=0.07)
    # Safe for ever is worth 1 / 0.4, one risk before it 1.2 + 0.6 x 0.75 x 2.5. With the risk unseen: 2.5 and 2.7.
    assert value == pytest.approx([2.5, 2.325], abs=0.15)
    actions = planned(learner)
    assert max(actions) < 0, actions


def test_a_plan_counts_what_comes_later_by_the_probability_to_get_there() -> None:
    sizes = replace(TINY, termination=True)
    table, model = make_table(sizes), make_model(sizes)
    assert model.termination_head is not None
    last = list(model.termination_head.parameters())
    ctx, draw = model.context(table, torch.arange(3)), torch.Generator().manual_seed(0)
    z, noise = model.encode(torch.randn(3, 9, generator=draw), ctx), torch.randn(3, 2, 3, 4, generator=draw)
    discounts = ctx.discount ** torch.arange(4).unsqueeze(1)
    returns = {}
    with torch.no_grad():
        for parameter in last:
            parameter.zero_()
        for end in (0.0, 0.3, 1.0):
            last[-1].fill_(torch.logit(torch.tensor(end)))
            found = policy_rollouts(model, ctx, z, discounts, noise)
            assert found.alive is not None
            torch.testing.assert_close(found.alive, torch.full((2, 3), (1 - end) ** 3))
            returns[end] = found.returns
        state, expected = z.expand(2, 3, -1), torch.zeros(2, 3)
        for t in range(3):
            action = model.policy(state, ctx, noise[t]).action
            expected += (0.7 * ctx.discount) ** t * decode(model.reward(state, action, ctx), model.bins)
            state, _ = model.next(state, action, ctx)
    torch.testing.assert_close(returns[0.3], expected)
    assert not torch.allclose(returns[0.3], returns[0.0])
    assert not torch.allclose(returns[0.3], returns[1.0])


def test_before_a_slices_last_step_its_predicted_end_counts() -> None:
    sizes = replace(TINY, termination=True)
    table, model = make_table(sizes), make_model(sizes)
    learner, batch = Learner(model, table, LEARNING), make_batch(table, sizes)
    ctx = model.context(table, batch.task)
    with torch.no_grad():
        found = learner._ended(batch, model.observed(batch.obs, batch.action, ctx), ctx)
        predicted = model.termination(model.encode(batch.obs[:-1], ctx), batch.action, ctx).sigmoid()
    torch.testing.assert_close(found[:-1], predicted[:-1])
    assert torch.equal(found[-1], batch.terminated[-1])
    published = Learner(make_model(), table, LEARNING)
    assert published._ended(batch, found, ctx) is batch.terminated


def test_without_the_head_nothing_is_added_and_it_is_trained_where_it_is() -> None:
    off, on = (WorldModel(replace(TINY, termination=flag)) for flag in (False, True))
    added = on.state_dict().keys() - off.state_dict().keys()
    assert added == {name for name in on.state_dict() if name.startswith("termination_head.")}
    assert added
    assert off.state_dict().keys() <= on.state_dict().keys()
    learner = make_learner()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    metrics = learner.update(trap(True).sample(8, torch.Generator().manual_seed(0)), "pretrain", torch.Generator())
    assert metrics["termination_loss"] == pytest.approx(0.6931, abs=1e-3)  # it begins with a logit of 0 everywhere
    after = learner.model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("termination_head."))


def test_a_head_that_is_on_is_part_of_what_is_saved(tmp_path) -> None:
    model = WorldModel(replace(TINY, termination=True))
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert isinstance(loaded.config, config.Model)
    assert loaded.config.termination
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
