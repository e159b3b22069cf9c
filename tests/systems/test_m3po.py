"""The policy phase: what it learns from, what it leaves alone, and that it makes a policy better."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.constraint import Schedule, make_constraint
from pipeline.learn.extension import Extension
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.math import decode
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.systems.m3po.actor import M3poActor
from pipeline.systems.m3po.extension import ClippedPolicy
from tests.tiny import TINY_PLANNER

CLIPPED = config.Clipped(
    plan=False, every=50, passes=1, batch_size=1000, ratio=0.2, gae_lambda=0.9, bonus=1.0, bonus_limit=None
)
ROWS = torch.arange(3)


def make_phase(
    model: WorldModel | None = None,
    table: TaskTable | None = None,
    clipped: config.Clipped = CLIPPED,
    learning: config.Learning = LEARNING,
    more: Sequence[Extension] = (),
) -> tuple[Learner, ClippedPolicy]:
    phase = ClippedPolicy(clipped)
    phase.start(torch.Generator().manual_seed(0))
    return Learner(model or make_model(), table or make_table(), learning, extensions=[*more, phase]), phase


def make_replay(sizes: config.Model = TINY) -> ReplayBuffer:
    return ReplayBuffer(2000, sizes.obs_dim, sizes.action_dim, TINY_PLANNER.horizon, columns=("log_prob",))


def run(phase: ClippedPolicy, replay: ReplayBuffer, env_steps: int = 0, total: int = 1000) -> None:
    """Let a phase take place at this many env_steps."""
    assert phase.phase(replay, env_steps - 1, env_steps, total)


def explore(actor: M3poActor, obs: Tensor, rows: Tensor, plan: bool) -> tuple[Tensor, Tensor]:
    action = actor.act(obs, rows, plan, explore=True, constraint_weight=0.0)
    return action, actor.columns["log_prob"]


def collect(actor: M3poActor, replay: ReplayBuffer, plan: bool, length: int = 7) -> None:
    """Play an episode per task among random observations and rewards; one of the three ends for good."""
    draw = torch.Generator().manual_seed(5)
    obs = torch.randn(length + 1, 3, TINY.obs_dim, generator=draw)
    actor.reset(3, seed=1)
    actions, log_probs = zip(*(explore(actor, now, ROWS, plan) for now in obs[:-1]), strict=True)
    action, log_prob, reward = torch.stack(actions), torch.stack(log_probs), torch.randn(length, 3, generator=draw)
    for row in ROWS.tolist():
        columns = {"log_prob": log_prob[:, row]}
        replay.add(obs[:, row], action[:, row], reward[:, row], row == 1, row, columns=columns)


def actor_of(learner: Learner) -> M3poActor:
    return M3poActor(learner.model, learner.table, TINY_PLANNER)


def moved(model: WorldModel, change: Callable[[], object]) -> set[str]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    change()
    return {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_right_after_the_policy_acted_the_ratio_is_1_and_the_policy_alone_moves() -> None:
    (learner, phase), replay = make_phase(), make_replay()
    collect(actor_of(learner), replay, plan=False)
    assert moved(learner.model, lambda: run(phase, replay)) == {"policy_head"}
    found = phase.metrics()
    assert found["train/ratio"] == pytest.approx(1, abs=1e-3)
    assert found["train/start_kl"] == pytest.approx(0, abs=1e-5)
    assert found["train/clip_fraction"] == 0
    assert found["train/advantage_std"] > 0.1


def test_a_plan_s_actions_are_compared_with_the_plan() -> None:
    (learner, phase), replay = make_phase(), make_replay()
    collect(actor_of(learner), replay, plan=True)
    run(phase, replay)
    assert phase.metrics()["train/start_kl"] > 0.1, "scored by the policy itself it would be 0"


def test_an_update_teaches_the_model_its_dynamics_and_leaves_the_policy_to_the_phase() -> None:
    learner, _ = make_phase()
    update = learner.update
    parts = moved(learner.model, lambda: update(make_batch(learner.table), "online", torch.Generator().manual_seed(0)))
    assert parts == {"encoder", "dynamics", "reward_head", "q_heads", "target_q_heads"}


def test_a_phase_comes_every_so_many_steps_and_at_the_end() -> None:
    _, phase = make_phase()
    positions = [0, 30, 60, 90, 120, 151, 180, 190]  # every 50 of 190
    due = [phase.phase(make_replay(), *pair, 190) for pair in itertools.pairwise(positions)]
    assert due == [False, True, False, True, True, False, True]


def test_every_episode_is_learned_from_once_and_a_save_knows_which() -> None:
    (learner, phase), replay = make_phase(), make_replay()
    actor = actor_of(learner)
    collect(actor, replay, plan=False)
    run(phase, replay)
    assert not moved(learner.model, lambda: run(phase, replay))
    _, again = make_phase(learner.model)
    again.load_rank_state_tensors(phase.rank_state_tensors(), replay)
    assert not moved(learner.model, lambda: run(again, replay))
    collect(actor, replay, plan=False)
    assert moved(learner.model, lambda: run(again, replay))
    _, forgetful = make_phase(learner.model)
    forgetful.load_rank_state_tensors(None, replay)  # of other ranks than before
    assert not moved(learner.model, lambda: run(forgetful, replay))


def test_the_last_metrics_survive_a_resume() -> None:
    (learner, phase), replay = make_phase(), make_replay()
    assert phase.metrics() == {}
    collect(actor_of(learner), replay, plan=False)
    run(phase, replay, 250)
    other, again = make_phase()
    load_state_tensors(other, {name: value.clone() for name, value in state_tensors(learner).items()})
    assert len(again.metrics()) == 10
    assert again.metrics() == phase.metrics()


class AddsFive(Extension):
    """Adds 5 to the policy's loss, and knows whether its recording is on."""

    name, recorded, rows = "adds-five", False, 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        self.recorded = True
        yield
        self.recorded = False

    def policy_loss(self, batch):
        self.rows += len(batch.task)
        return torch.tensor(5.0), {}


def test_what_others_add_to_the_policy_s_loss_is_added_here_as_well() -> None:
    other, found, recorded = AddsFive(), [], []
    for more in ((), (other,)):
        (learner, phase), replay = make_phase(more=more), make_replay()
        collect(actor_of(learner), replay, plan=False)
        learner.model.policy_head.register_forward_hook(lambda *_: recorded.append(other.recorded))
        run(phase, replay)
        found.append(phase.metrics()["train/policy_loss"])
    assert found[1] - found[0] == pytest.approx(5)
    assert other.rows == 21
    assert recorded.count(True) == 1, "it records the policy of the loss, and not what is judged before"


@pytest.mark.parametrize(("env_steps", "weight"), [(0, 1.0), (250, 0.75), (1000, 0.0), (1200, 0.0)])
def test_the_bonus_fades_over_the_run(env_steps: int, weight: float) -> None:
    (learner, phase), replay = make_phase(), make_replay()
    collect(actor_of(learner), replay, plan=False)
    run(phase, replay, env_steps, total=1000)
    assert phase.metrics()["train/bonus_weight"] == pytest.approx(weight)


@pytest.mark.parametrize(("error", "bonus"), [(0.0, 0.0), (0.5, 0.5)])
def test_an_exact_model_agrees_with_what_happened(monkeypatch, error: float, bonus: float) -> None:
    """Observations are latents that the dynamics has made, rewards those it predicts, up to an error."""
    sizes = replace(TINY, obs_dim=TINY.latent_dim)
    model, table = make_model(sizes), make_table(sizes)
    monkeypatch.setattr(model, "encode", lambda obs, ctx: obs)
    (_, phase), replay, draw = make_phase(model, table), make_replay(sizes), torch.Generator()
    with torch.no_grad():
        ctx = model.context(table, ROWS)
        z = [torch.rand(3, sizes.latent_dim, generator=draw)]
        action = (2 * torch.rand(6, 3, sizes.action_dim, generator=draw) - 1) * table.action_mask[ROWS]
        reward = []
        for a in action:
            reward.append(decode(model.reward(z[-1], a, ctx), model.bins) + error)
            z.append(model.next(z[-1], a, ctx)[0])
    for row in ROWS.tolist():
        obs, rewards = torch.stack(z)[:, row], torch.stack(reward)[:, row]
        replay.add(obs, action[:, row], rewards, row == 1, row, columns={"log_prob": torch.zeros(6)})
    run(phase, replay)
    assert phase.metrics()["train/bonus"] == pytest.approx(bonus, abs=1e-4)


def test_a_rank_without_episodes_takes_part_with_a_gradient_of_zero() -> None:
    _, phase = make_phase()
    steps, metrics = phase._steps(make_replay(), 0, 1.0)
    assert len(steps.task) == 0
    assert all(float(value) == 0 for value in metrics.values())
    assert float(phase._gradient_step(steps)["policy_grad_norm"]) == 0


@pytest.mark.parametrize("constraint", ["schedule", "evidence"])
def test_without_planning_the_policy_plays_alone(constraint) -> None:
    settings = config.load(config.Finetune, "tests/tiny.yaml")
    rule = make_constraint(replace(settings, constraint=constraint), ROWS, ("a", "b", "c"), 0, plan=False)
    assert isinstance(rule, Schedule)
    assert not rule.choose(0, True)[0].any()
    planning = make_constraint(replace(settings, constraint="schedule"), ROWS, ("a", "b", "c"), 0)
    assert planning.choose(0, True)[0].all()
    assert not ClippedPolicy(CLIPPED).plans
    assert ClippedPolicy(replace(CLIPPED, plan=True)).plans


def returns_of(actor: M3poActor, replay: ReplayBuffer, target: Tensor, length: int = 5) -> float:
    """Play 20 episodes in which an action pays the less the further it is from its task's target; mean reward."""
    rows = torch.arange(2).repeat(10)
    actor.refresh()
    obs = torch.nn.functional.one_hot(rows, 2).float()
    actions, log_probs = zip(*(explore(actor, obs, rows, False) for _ in range(length)), strict=True)
    action, log_prob = torch.stack(actions), torch.stack(log_probs)
    reward = -(action.squeeze(-1) - target[rows]).abs()
    for i, row in enumerate(rows.tolist()):
        columns = {"log_prob": log_prob[:, i]}
        replay.add(obs[i].repeat(length + 1, 1), action[:, i], reward[:, i], False, row, columns=columns)
    return float(reward.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("bonus", "share"), [(0.0, 0.5), (1.0, 0.75)])  # a bonus of that weight takes its time
def test_it_makes_a_policy_better_without_planning(bonus: float, share: float) -> None:
    sizes = replace(TINY, obs_dim=2, action_dim=1, task_dim=2)
    table = TaskTable(("left", "right"), torch.eye(2).unsqueeze(1), torch.ones(2, 1), torch.full((2,), 0.6))
    clipped = replace(CLIPPED, passes=4, batch_size=50, bonus=bonus, bonus_limit=1.0)
    learning = replace(LEARNING, lr=3e-3, online_bc_coef=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner, phase = make_phase(WorldModel(sizes), table, clipped, learning)
    replay, generator, rounds = make_replay(sizes), torch.Generator().manual_seed(0), 30
    actor = actor_of(learner)
    actor.reset(20, seed=0)
    target, rewards = torch.tensor([-0.6, 0.6]), []
    for number in range(rounds):
        rewards.append(returns_of(actor, replay, target))
        run(phase, replay, clipped.every * number, clipped.every * rounds)
        for _ in range(5):
            learner.update(replay.sample(32, generator), "online", generator)
    assert sum(rewards[-3:]) / 3 > share * rewards[0], rewards  # how far from the targets, beside the beginning
