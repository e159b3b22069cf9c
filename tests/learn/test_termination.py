"""Episodes that end: values and terminations that are known, learned from a replay by whole updates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.problem import LEARNING, TINY
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.math import decode
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
    model = learner.model
    with torch.no_grad():
        ctx = model.context(learner.table, torch.tensor([0]))
        z = model.encode(OPEN, ctx)
        value = [float(decode(model.q(z, action, ctx), model.bins).mean()) for action in (SAFE, LAST)]
        ended = [float(model.termination(model.next(z, action, ctx)[0], ctx).sigmoid()) for action in (SAFE, LAST)]
    assert value == pytest.approx([safe, last], abs=0.25)
    assert ended == pytest.approx([0.0, float(terminated)], abs=0.05)
    planner = replace(TINY_PLANNER, num_samples=64, num_policy_samples=8, num_elites=8, iterations=3)
    actor = Actor(model, learner.table, planner)
    actor.reset(1, seed=0)
    actions = [float(actor.act(OPEN, torch.tensor([0]), plan=True, constraint_weight=0.0)) for _ in range(5)]
    assert max(actions) < 0 if terminated else min(actions) > 0, actions


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
