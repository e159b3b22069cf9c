"""Collecting on real simulators: whole episodes, exact resumes, what is stored with them."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import config
from pipeline.demonstrate.experts import open_expert
from pipeline.demonstrate.scripted import Script
from pipeline.learn.collector import Collector, Finished, share_out_episodes
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.tasks import registry
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec, parse_spec
from pipeline.tasks.vector import VectorEnv

TINY = "tests/tiny.yaml"
MODEL, PLANNER = config.load(config.Model, TINY), config.load(config.Planner, TINY)
FINETUNE = config.load(config.Finetune, TINY)
SPECS = registry.get(["mw-reach", "mw-drawer-open"])
PENDULUM = parse_spec(
    {
        "name": "pendulum", "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole.",
        "instructions": ["Swing it up."], "obs_dim": 3, "action_dim": 1, "action_repeat": 1, "episode_length": 12,
        "score": "clip((return+200)/200,0,1)",
    },
    "the tests",
)  # fmt: skip


class Brief(gymnasium.Env):
    """Ends by itself at every step with a probability; counts its steps."""

    observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends: float = 1.0):
        self.ends = ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 1.0, bool(self.np_random.random() < self.ends), False, {}


gymnasium.register("eft-test/Brief-v0", entry_point=Brief)
BRIEF = dataclasses.replace(
    PENDULUM, name="brief", env_id="eft-test/Brief-v0", obs_dim=1, score="clip(return/250,0,1)", episode_length=50
)


class NotingActor(Actor):
    """Says of each action what its first dim is, so that the replay can keep it."""

    def acted(self, obs: Tensor, action: Tensor, *others: Any) -> None:
        self.columns = {"first_dim": action[:, 0].cpu()}


def make_actor(specs: Sequence[TaskSpec] = SPECS) -> Actor:
    torch.manual_seed(0)
    n = len(specs)
    table = TaskTable(
        tuple(spec.name for spec in specs),
        torch.randn(n, 1, MODEL.task_dim),
        torch.ones(n, MODEL.action_dim),
        torch.full((n,), 0.95),
    )
    return NotingActor(WorldModel(MODEL), table, PLANNER)


def make_collector(
    replay: ReplayBuffer,
    imitate: str = "score",
    specs: Sequence[TaskSpec] = SPECS,
    labels: Labels | None = None,
    first_steps: int | None = None,
) -> tuple[Collector, VectorEnv]:
    actor = make_actor(specs)
    settings = dataclasses.replace(FINETUNE, imitate=imitate, stagger=first_steps is not None)  # pyright: ignore
    widths = (MODEL.obs_dim, MODEL.action_dim)
    envs = VectorEnv(specs, *widths, seed=5, num_workers=0, labels=labels, first_steps=first_steps)
    return Collector(specs, actor.rows([s.name for s in specs]), envs, actor, replay, settings, seed=7), envs


def step_once(collector: Collector, plan: bool = False, constraint_weight: float = 1.0) -> list[Finished]:
    num_envs = len(collector.episodes)
    collector.begin_step(torch.full((num_envs,), plan), torch.full((num_envs,), constraint_weight))
    return collector.end_step()


def make_replay(columns: tuple[str, ...] = (), **options: Any) -> ReplayBuffer:
    return ReplayBuffer(1000, MODEL.obs_dim, MODEL.action_dim, horizon=3, columns=columns, **options)


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
        replay = make_replay(("first_dim",))
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
    for name in ("obs", "action", "reward", "first_dim"):
        assert torch.equal(stored[name], again[name]), name
    assert torch.equal(stored["first_dim"], stored["action"][:, 0])
    assert (stored["first_dim"] != 0).sum() == 200


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


def test_an_own_episode_is_imitated_by_the_score_it_reached():
    replay = make_replay()
    collector, envs = make_collector(replay, "score", [PENDULUM, PENDULUM])
    with envs:
        finished = [episode for _ in range(24) for episode in step_once(collector)]
    scores = [episode.score for episode in finished]
    assert len(scores) == 4
    assert all(0 < score < 1 for score in scores), "nothing between all and nothing was tested"
    assert len(set(scores)) == 4
    stored = replay.state_tensors()["imitation"]
    assert stored.tolist() == pytest.approx(scores)
    assert set(replay.sample(64, torch.Generator().manual_seed(0)).imitation.tolist()) == set(stored.tolist())


def test_seeding_ends_when_every_environment_that_is_played_has_its_episodes():
    collector, envs = make_collector(make_replay(), specs=[PENDULUM, dataclasses.replace(PENDULUM, episode_length=24)])
    both, first = np.array([True, True]), np.array([True, False])
    with envs:
        for _ in range(12):
            assert collector.seeding(both)
            assert collector.seeding(first)
            step_once(collector)
        assert collector.seeding(both)
        assert not collector.seeding(first)
        collector.seeded = True  # once another task rested; it does not begin anew
        assert not collector.seeding(both)


def test_episodes_shorter_than_a_slice_are_left_out_and_said(caplog: pytest.LogCaptureFixture):
    replay = make_replay()
    collector, envs = make_collector(replay, specs=[dataclasses.replace(BRIEF, env_kwargs={"ends": 0.4})] * 2)
    with envs, caplog.at_level(logging.WARNING):
        finished = [episode for _ in range(100) for episode in step_once(collector)]
    lengths = [episode.episode_return for episode in finished]
    assert min(lengths) < 3, "no episode was short: nothing was tested"
    assert replay.num_episodes == sum(length >= 3 for length in lengths)
    assert caplog.text.count("are not learned from") == 1
    assert "an episode of brief ended after" in caplog.text


def test_that_all_episodes_are_shorter_than_a_slice_is_said_after_many():
    collector, envs = make_collector(make_replay(), specs=[BRIEF])
    with envs:
        for _ in range(50):
            assert not collector.only_short
            assert step_once(collector)
    assert re.match(r"episodes of brief end before planner.*All of the first 50 episodes", collector.only_short)


def test_many_short_episodes_of_one_task_do_not_stop_a_run_in_which_another_has_long_ones():
    replay = make_replay()
    collector, envs = make_collector(replay, specs=[*[BRIEF] * 25, PENDULUM])
    with envs:
        for _ in range(12):
            step_once(collector)
            assert not collector.only_short
    assert replay.num_episodes == 1


def test_an_episode_that_rested_is_stored_whole_and_survives_a_resume():
    replay, resting = make_replay(), np.array([True, False])
    collector, envs = make_collector(replay)
    with envs:
        for step in range(100):
            plan = torch.full((2,), step == 3)
            collector.begin_step(plan, torch.ones(2), playing=resting if 2 <= step < 5 else None)
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


LABELS = Labels({"mw-reach": "scripted"}, partial(open_expert, teachers=None))


def collect_labelled(interrupted: bool) -> ReplayBuffer:
    """Collect an episode of each task, mw-reach labelled, planned and not; on request with a new beginning in it."""
    replay = make_replay(("first_dim",), keep_expert_actions=True)
    collector, envs = make_collector(replay, "none", labels=LABELS)
    for step in range(100):
        if interrupted and step == 60:
            state = {name: tensor.clone() for name, tensor in collector.state_tensors().items()}
            envs.close()
            collector, envs = make_collector(replay, "none", labels=LABELS)
            collector.load_state_tensors(state)
        step_once(collector, plan=step % 2 == 1)
    envs.close()
    return replay


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_labelled_episode_keeps_beside_what_was_done_what_the_expert_would_have_done_there(interrupted):
    replay = collect_labelled(interrupted)
    stored = replay.state_tensors()
    assert replay.num_episodes == 2
    script = Script("reach-v3")
    wanted = [script.act(obs.numpy(), False) for obs in stored["obs"][:100, :39]]  # an untrained policy never succeeds
    assert torch.equal(stored["expert_action"][:100], torch.from_numpy(np.stack(wanted).astype(np.float32)))
    assert (stored["expert_action"][:100] - stored["action"][:100]).abs().mean() > 0.1
    assert torch.equal(stored["expert_action"][101:], stored["action"][101:])  # nobody labels the other task
    assert stored["imitation"].tolist() == [1.0, 0.0]
    batch = replay.sample(64, torch.Generator().manual_seed(0))
    differs = (batch.expert_action != batch.action).any(2).any(0)
    assert torch.equal(differs, batch.task == 0)
    assert torch.equal(batch.imitation, (batch.task == 0).float())


@pytest.mark.slow
def test_labels_are_shared_out_with_their_episodes_also_where_nobody_labels_on_a_rank():
    replay = collect_labelled(False)
    saved = replay.state_tensors()
    first, second = (make_replay(("first_dim",), keep_expert_actions=True) for _ in range(2))
    share_out_episodes(saved, first, lambda task, number: task == 0)
    share_out_episodes(saved, second, lambda task, number: task == 1)
    for row, part in enumerate((first, second)):
        again = part.state_tensors()
        for name in ("obs", "action", "reward", "expert_action", "first_dim"):
            assert torch.equal(again[name], saved[name][101 * row : 101 * (row + 1)]), name
        assert again["imitation"].tolist() == [1.0 - row]


def ends(envs: VectorEnv, steps: int) -> list[list[int]]:
    """Return the steps at which each environment's episodes end."""
    found: list[list[int]] = [[] for _ in envs.specs]
    for step in range(1, steps + 1):
        done = envs.step(np.zeros((len(envs.specs), MODEL.action_dim), np.float32)).truncated
        for i in np.flatnonzero(done):
            found[i].append(step)
    return found


def test_first_episodes_end_at_random_steps_that_follow_from_seed_and_number_alone():
    def make(numbers: Sequence[int]) -> VectorEnv:
        specs = [PENDULUM] * len(numbers)
        return VectorEnv(specs, MODEL.obs_dim, MODEL.action_dim, 5, 0, numbers, first_steps=3)

    with make(range(12)) as envs, make([7, 2]) as others:
        envs.reset()
        found = ends(envs, 24)
        others.reset()
        assert ends(others, 24) == [found[7], found[2]]
        others.restore(np.array([0, 0]), [np.zeros((2, MODEL.action_dim), np.float32)] * 2)
        assert [one[0] + 2 for one in ends(others, 12)] == [found[7][0], found[2][0]]
        envs.reset()
        assert ends(envs, 24) == found
    first = [one[0] for one in found]
    assert 3 <= min(first) < max(first) <= 12
    assert len(set(first)) > 4
    assert all(one[1] - one[0] == 12 for one in found)


def test_a_first_episode_that_was_cut_off_is_stored_and_counts_for_nothing_else():
    specs, replay = [PENDULUM] * 6, make_replay()
    collector, envs = make_collector(replay, specs=specs, first_steps=3)
    with envs:
        finished = [episode for _ in range(12) for episode in step_once(collector)]
    lengths, imitation = (
        part.tolist() for part in (replay.index_tensors()["episodes"][1], replay.index_tensors()["imitation"])
    )
    assert sorted(episode.env for episode in finished if episode.env < 6)[:6] == list(range(6))
    assert min(lengths) < 12
    assert [episode.whole for episode in finished] == [length == 12 for length in lengths]
    assert [weight > 0 for weight in imitation] == [length == 12 for length in lengths]


def test_some_environments_begin_anew_while_others_stay():
    with VectorEnv([PENDULUM] * 3, MODEL.obs_dim, MODEL.action_dim, 5, 0) as envs:
        first = envs.reset()
        before = envs.step(np.ones((3, MODEL.action_dim), np.float32)).obs
        obs = envs.reset(np.array([True, False, True]))
    assert np.array_equal(obs[[0, 2]], first[[0, 2]])
    assert np.array_equal(obs[1], before[1])
