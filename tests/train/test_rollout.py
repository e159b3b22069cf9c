"""Playing and collecting on real simulators: whole episodes, exact resumes, the same starts for every checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.data.episode import Episode
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.tasks import registry
from pipeline.tasks.registry import make
from pipeline.tasks.vector import VectorEnv
from pipeline.train.evaluate import Evaluator
from pipeline.train.rollout import Collector, Finished
from pipeline.train.workspace import observation_statistics

TINY = "tests/tiny.yaml"
MODEL, PLANNER = config.load(config.Model, TINY), config.load(config.Planner, TINY)
SPECS = registry.get(["mw-reach", "mw-drawer-open"])


def make_actor() -> Actor:
    torch.manual_seed(0)
    n = len(SPECS)
    table = TaskTable(
        tuple(spec.name for spec in SPECS),
        torch.randn(n, 1, MODEL.task_dim),
        torch.ones(n, MODEL.action_dim),
        torch.full((n,), 0.95),
    )
    return Actor(WorldModel(MODEL), table, PLANNER)


def make_collector(replay: ReplayBuffer, imitate: str = "score") -> tuple[Collector, VectorEnv]:
    actor = make_actor()
    envs = VectorEnv(SPECS, MODEL.obs_dim, MODEL.action_dim, seed=5, num_workers=0)
    return Collector(SPECS, actor.rows([s.name for s in SPECS]), envs, actor, replay, imitate, seed=7), envs


def step_once(collector: Collector, plan: bool = False, constraint_weight: float = 1.0) -> list[Finished]:
    collector.begin_step(plan, constraint_weight)
    return collector.end_step()


def make_replay(columns: tuple[str, ...] = ()) -> ReplayBuffer:
    return ReplayBuffer(1000, MODEL.obs_dim, MODEL.action_dim, horizon=3, columns=columns)


def test_a_collected_episode_is_what_the_simulator_did():
    replay = make_replay()
    collector, envs = make_collector(replay)
    with envs:
        finished = [episode for _ in range(100) for episode in step_once(collector)]
    assert [episode.task for episode in finished] == [spec.name for spec in SPECS]
    assert replay.num_episodes == 2
    assert replay.num_transitions == 200
    for row, spec in enumerate(SPECS):
        start = row * 101
        obs, action, reward = (part[start : start + 101].numpy() for part in (replay.obs, replay.action, replay.reward))
        # Any environment whose first observation is this one plays the actions to the same end.
        with VectorEnv(SPECS, MODEL.obs_dim, MODEL.action_dim, seed=5, num_workers=0) as again:
            assert np.array_equal(again.reset()[row], obs[0])
            other = np.zeros((len(SPECS), MODEL.action_dim), np.float32)
            for step in range(100):
                other[row] = action[step]
                result = again.step(other)
                assert np.array_equal(result.final_obs[row], obs[step + 1])
                assert result.reward[row] == reward[step]
        assert finished[row].episode_return == pytest.approx(float(reward.sum()), rel=1e-5), spec.name


@pytest.mark.slow
def test_a_collection_resumed_in_the_middle_of_episodes_goes_on_bit_for_bit():
    runs = []
    for interrupted in (False, True):
        replay = make_replay(("log_prob",))
        collector, envs = make_collector(replay)
        with envs:
            for _ in range(60):
                step_once(collector, True, 0.5)
            if interrupted:
                state = {name: tensor.clone() for name, tensor in collector.state_tensors().items()}
                collector, envs = make_collector(replay)
                collector.load_state_tensors(state)
            for _ in range(60):
                step_once(collector, True, 0.5)
        envs.close()
        runs.append(replay)
    assert runs[0].num_episodes == runs[1].num_episodes == 2
    stored, again = (replay.state_tensors() for replay in runs)
    for name in ("obs", "action", "reward", "log_prob"):
        assert torch.equal(stored[name], again[name]), name
    assert (stored["log_prob"] != 0).sum() == 200


def test_a_simulator_that_does_not_come_back_is_named():
    collector, envs = make_collector(make_replay())
    with envs:
        for _ in range(5):
            step_once(collector)
        state = {name: tensor.clone() for name, tensor in collector.state_tensors().items()}
        state["obs"][-1, 0] += 1
        with pytest.raises(ValueError, match=r"mw-drawer-open did not return to its saved state"):
            collector.load_state_tensors(state)


@pytest.mark.parametrize(("part", "name"), [("reward", "reward"), ("final_obs", "observation")])
def test_a_value_that_is_not_finite_is_named_with_its_task(part, name, monkeypatch):
    collector, envs = make_collector(make_replay())
    played = envs.end_step

    def end_step():
        result = played()
        getattr(result, part)[1] = np.nan
        return result

    with envs:
        step_once(collector)
        monkeypatch.setattr(envs, "end_step", end_step)
        with pytest.raises(ValueError, match=f"mw-drawer-open gave a {name} that is not finite at step 1"):
            step_once(collector)


def test_episodes_shorter_than_a_slice_are_refused_before_anything_is_played():
    with pytest.raises(ValueError, match=r"episodes of mw-reach have 100 agent steps, planner\.horizon is 101"):
        make_collector(ReplayBuffer(1000, MODEL.obs_dim, MODEL.action_dim, horizon=101))


@pytest.mark.parametrize(("imitate", "weights"), [("score", {0.0}), ("all", {1.0}), ("none", {0.0})])
def test_own_episodes_are_imitated_as_asked(imitate, weights):
    replay = make_replay()
    collector, envs = make_collector(replay, imitate)
    with envs:
        scores = {e.score for _ in range(100) for e in step_once(collector)}
    assert scores == {0.0}, "an untrained policy is not expected to succeed"
    assert set(replay.sample(16, torch.Generator().manual_seed(0)).imitation.tolist()) == weights


def test_an_episode_that_rested_is_stored_whole_and_survives_a_resume():
    replay, resting = make_replay(), np.array([True, False])
    collector, envs = make_collector(replay)
    with envs:
        for step in range(100):
            collector.begin_step(plan=step == 3, constraint_weight=1.0, playing=resting if 2 <= step < 5 else None)
            collector.end_step()
        state = {name: tensor.clone() for name, tensor in collector.state_tensors().items()}
        assert state["length"].tolist() == [0, 97]
        collector.begin_step(torch.tensor([True, True]), torch.ones(2), np.array([False, False]))
        assert collector.end_step() == []
        assert torch.equal(collector.state_tensors()["actor.prev_mean"], state["actor.prev_mean"])
        finished = [episode for _ in range(3) for episode in step_once(collector)]
    assert [episode.env for episode in finished] == [1]
    other, others = make_collector(make_replay())
    with others:
        other.load_state_tensors(state)  # which raises unless the simulators come to the same observations
        again = [episode for _ in range(3) for episode in step_once(other)]
    assert again[0].episode_return == finished[0].episode_return


@pytest.mark.slow
def test_evaluation_plays_the_asked_episodes_from_the_same_starts():
    names = [spec.name for spec in SPECS]
    with Evaluator(SPECS, 2, MODEL.obs_dim, MODEL.action_dim, seed=1, num_workers=0) as evaluator:
        first, second = (evaluator.run(make_actor(), names, plan=False, label="test", seed=3) for _ in range(2))
        other = evaluator.run(make_actor(), names[::-1], plan=False, label="test", seed=3)
    for task, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        assert len(ours.scores) == 2
        assert ours == theirs
        assert ours.episode_returns != other[task].episode_returns, "the instruction made no difference"


def test_statistics_are_shared_by_a_body_and_leave_still_dims_alone():
    env = make(SPECS[0], SPECS[0].obs_dim, SPECS[0].action_dim)
    obs = np.stack([env.reset(seed=seed)[0] for seed in range(8)])
    env.close()
    episode = Episode(
        "x", obs, np.zeros((7, 4), np.float32), np.zeros((7, 4), np.float32), np.zeros(7, np.float32),
        False, False, 0.0, 0.0, 0, "test",
    )  # fmt: skip
    demos = {SPECS[0].name: [episode], SPECS[1].name: []}
    mean, std = observation_statistics(SPECS, demos, obs_dim=50)
    assert SPECS[0].embodiment == SPECS[1].embodiment
    assert torch.equal(mean[0], mean[1])
    assert (mean[:, 39:] == 0).all()
    assert (std[:, 39:] == 1).all()
    assert torch.allclose(mean[0, :39], torch.from_numpy(obs.mean(0)), atol=1e-5)
    still = torch.from_numpy(obs.std(0)) < 1e-4
    assert (std[0, :39][still] == 1).all()


def test_a_body_without_demonstrations_is_observed_in_one_random_episode():
    demos = {spec.name: [] for spec in SPECS}
    mean, std = observation_statistics(SPECS, demos, obs_dim=50, seed=3)
    again, other = (observation_statistics(SPECS, demos, obs_dim=50, seed=seed)[0] for seed in (3, 4))
    assert torch.equal(mean, again)
    assert not torch.equal(mean, other)
    assert (mean[0, :39] != 0).any()
    assert (std[0, :39] != 1).any()
    assert (mean[:, 39:] == 0).all()
