"""The policy phase: what it learns from, what it leaves alone, and that it makes a policy better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.two_hot import decode
from pipeline.model.world_model import WorldModel
from pipeline.run.ranks import Ranks
from pipeline.train.constraint import Schedule, make_constraint
from pipeline.train.policy_phase import PolicyPhase
from pipeline.train.step import Learner
from tests.tiny import TINY_PLANNER

CLIPPED = config.Clipped(
    plan=False, every=50, passes=1, batch_size=1000, ratio=0.2, gae_lambda=0.9, bonus=1.0, bonus_limit=None
)
ROWS = torch.arange(3)


def make_learner(model: WorldModel | None = None, clipped: config.Clipped = CLIPPED) -> Learner:
    return Learner(model or make_model(), make_table(), replace(LEARNING, clipped=clipped))


def make_replay(sizes: config.Model = TINY) -> ReplayBuffer:
    return ReplayBuffer(2000, sizes.obs_dim, sizes.action_dim, TINY_PLANNER.horizon, columns=("log_prob",))


def make_phase(learner: Learner, total: int = 1000) -> PolicyPhase:
    assert learner.learning.clipped is not None
    return PolicyPhase(learner, learner.learning.clipped, torch.Generator().manual_seed(0), Ranks(), total)


def collect(actor: Actor, replay: ReplayBuffer, plan: bool, length: int = 7) -> None:
    """Play an episode per task among random observations and rewards; one of the three ends for good."""
    draw = torch.Generator().manual_seed(5)
    obs = torch.randn(length + 1, 3, TINY.obs_dim, generator=draw)
    actor.reset(3, seed=1)
    actions, log_probs = zip(*(actor.explore(now, ROWS, plan, 0.0) for now in obs[:-1]), strict=True)
    action, log_prob, reward = torch.stack(actions), torch.stack(log_probs), torch.randn(length, 3, generator=draw)
    for row in ROWS.tolist():
        replay.add(obs[:, row], action[:, row], reward[:, row], row == 1, row, columns={"log_prob": log_prob[:, row]})


def moved(model: WorldModel, change: Callable[[], object]) -> set[str]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change()
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_right_after_the_policy_acted_the_ratio_is_1_and_the_policy_alone_moves() -> None:
    learner, replay = make_learner(), make_replay()
    collect(Actor(learner.model, learner.table, TINY_PLANNER), replay, plan=False)
    phase = make_phase(learner)
    assert moved(learner.model, lambda: phase.run(replay, 0)) == {"policy_head"}
    assert phase.metrics["train/ratio"] == pytest.approx(1, abs=1e-3)
    assert phase.metrics["train/start_kl"] == pytest.approx(0, abs=1e-5)
    assert phase.metrics["train/clip_fraction"] == 0
    assert phase.metrics["train/advantage_std"] > 0.1


def test_a_plan_s_actions_are_compared_with_the_plan() -> None:
    learner, replay = make_learner(), make_replay()
    collect(Actor(learner.model, learner.table, TINY_PLANNER), replay, plan=True)
    phase = make_phase(learner)
    phase.run(replay, 0)
    assert phase.metrics["train/start_kl"] > 0.1, "scored by the policy itself it would be 0"


def test_an_update_teaches_the_model_its_dynamics_and_leaves_the_policy_to_the_phase() -> None:
    learner = make_learner()
    update = learner.update
    parts = moved(learner.model, lambda: update(make_batch(learner.table), "online", torch.Generator().manual_seed(0)))
    assert parts == {"encoder", "dynamics", "reward_head", "q_heads", "target_q_heads"}


def test_every_episode_is_learned_from_once_and_a_save_knows_which() -> None:
    learner, replay = make_learner(), make_replay()
    actor, phase = Actor(learner.model, learner.table, TINY_PLANNER), make_phase(learner)
    collect(actor, replay, plan=False)
    phase.run(replay, 0)
    assert not moved(learner.model, lambda: phase.run(replay, 0))
    again = make_phase(learner)
    again.load_state_tensors(phase.state_tensors())
    assert not moved(learner.model, lambda: again.run(replay, 0))
    collect(actor, replay, plan=False)
    assert moved(learner.model, lambda: again.run(replay, 0))
    forgetful = make_phase(learner)
    forgetful.skip(replay)
    assert not moved(learner.model, lambda: forgetful.run(replay, 0))


@pytest.mark.parametrize(("env_steps", "weight"), [(0, 1.0), (250, 0.75), (1000, 0.0), (1200, 0.0)])
def test_the_bonus_fades_over_the_run(env_steps: int, weight: float) -> None:
    learner, replay = make_learner(), make_replay()
    collect(Actor(learner.model, learner.table, TINY_PLANNER), replay, plan=False)
    phase = make_phase(learner, total=1000)
    phase.run(replay, env_steps)
    assert phase.metrics["train/bonus_weight"] == pytest.approx(weight)


@pytest.mark.parametrize(("error", "bonus"), [(0.0, 0.0), (0.5, 0.5)])
def test_an_exact_model_agrees_with_what_happened(monkeypatch, error: float, bonus: float) -> None:
    """Observations are latents that the dynamics has made, rewards those it predicts, up to an error."""
    sizes = replace(TINY, obs_dim=TINY.latent_dim)
    model, table = make_model(sizes), make_table(sizes)
    monkeypatch.setattr(model, "encode", lambda obs, ctx: obs)
    learner, replay, draw = (
        Learner(model, table, replace(LEARNING, clipped=CLIPPED)),
        make_replay(sizes),
        torch.Generator(),
    )
    with torch.no_grad():
        ctx = model.context(table.embeddings[ROWS, 0])
        z = [torch.rand(3, sizes.latent_dim, generator=draw)]
        action = (2 * torch.rand(6, 3, sizes.action_dim, generator=draw) - 1) * table.action_mask[ROWS]
        reward = []
        for a in action:
            reward.append(decode(model.reward(z[-1], a, ctx), model.bins) + error)
            z.append(model.next(z[-1], a, ctx))
    for row in ROWS.tolist():
        obs, rewards = torch.stack(z)[:, row], torch.stack(reward)[:, row]
        replay.add(obs, action[:, row], rewards, row == 1, row, columns={"log_prob": torch.zeros(6)})
    phase = make_phase(learner)
    phase.run(replay, 0)
    assert phase.metrics["train/bonus"] == pytest.approx(bonus, abs=1e-4)


def test_a_rank_without_episodes_takes_part_with_a_gradient_of_zero() -> None:
    learner, replay = make_learner(), make_replay()
    phase = make_phase(learner)
    steps, told = phase._steps(replay, 0, 1.0)
    assert len(steps.task) == 0
    assert all(float(value) == 0 for value in told.values())
    found = phase._improve(steps)
    assert float(found["policy_grad_norm"]) == 0


@pytest.mark.parametrize("constraint", ["schedule", "evidence"])
def test_without_planning_the_policy_plays_alone(constraint) -> None:
    settings = config.load(config.Finetune, "tests/tiny.yaml")
    rule = make_constraint(replace(settings, constraint=constraint), ROWS, ("a", "b", "c"), 0, plan=False)
    assert isinstance(rule, Schedule)
    assert not rule.choose(0, True)[0].any()
    planning = make_constraint(replace(settings, constraint="schedule"), ROWS, ("a", "b", "c"), 0)
    assert planning.choose(0, True)[0].all()


def returns_of(actor: Actor, replay: ReplayBuffer, target: Tensor, length: int = 5) -> float:
    """Play 20 episodes in which an action pays the less the further it is from its task's target; mean reward."""
    rows = torch.arange(2).repeat(10)
    actor.refresh()
    obs = torch.nn.functional.one_hot(rows, 2).float()
    actions, log_probs = zip(*(actor.explore(obs, rows, False) for _ in range(length)), strict=True)
    action, log_prob = torch.stack(actions), torch.stack(log_probs)
    reward = -(action.squeeze(-1) - target[rows]).abs()
    for i, row in enumerate(rows.tolist()):
        replay.add(
            obs[i].repeat(length + 1, 1), action[:, i], reward[:, i], False, row, columns={"log_prob": log_prob[:, i]}
        )
    return float(reward.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("bonus", "share"), [(0.0, 0.5), (1.0, 0.75)])  # a bonus of that weight takes its time
def test_it_makes_a_policy_better_without_planning(bonus: float, share: float) -> None:
    sizes = replace(TINY, obs_dim=2, action_dim=1, task_dim=2)
    table = TaskTable(("left", "right"), torch.eye(2).unsqueeze(1), torch.ones(2, 1), torch.full((2,), 0.6))
    clipped = replace(CLIPPED, passes=4, batch_size=50, bonus=bonus, bonus_limit=1.0)
    learning = replace(LEARNING, lr=3e-3, online_bc_coef=0.0, clipped=clipped)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = Learner(WorldModel(sizes), table, learning)
    replay, generator, rounds = make_replay(sizes), torch.Generator().manual_seed(0), 30
    actor, phase = Actor(learner.model, table, TINY_PLANNER), make_phase(learner, total=rounds)
    actor.reset(20, seed=0)
    target, rewards = torch.tensor([-0.6, 0.6]), []
    for number in range(rounds):
        rewards.append(returns_of(actor, replay, target))
        phase.run(replay, number)
        for _ in range(5):
            learner.update(replay.sample(32, generator), "online", generator)
    assert sum(rewards[-3:]) / 3 > share * rewards[0], rewards  # how far from the targets, beside the beginning
