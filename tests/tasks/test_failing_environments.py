"""Environments that fail, block, end early or take their worker with them: nothing of it reaches the replay."""

import copy
import logging
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipeline import config
from pipeline.learn.collector import Collector
from pipeline.tasks.vector import TaskFailure, VectorEnv, WorkerError

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

WRONG = ["raises", "nan", "nan reward", "shape", "reset"]


def play(specs, num_workers, num_steps, seed=0):
    steps = []
    with VectorEnv(specs, 3, 1, seed, num_workers) as envs:
        obs = envs.reset()
        for _ in range(num_steps):
            steps.append(envs.step(np.full((len(specs), 1), 0.5, np.float32)))
        return obs, steps, envs.episodes


@pytest.mark.parametrize("trouble_kind", WRONG)
def test_an_environment_that_fails_now_and_then_loses_that_episode_alone(trouble, trouble_kind, caplog):
    specs = [trouble("fine"), trouble("sick", trouble=trouble_kind, when=0.4)]
    with caplog.at_level(logging.WARNING):
        first, steps, episodes = play(specs, 0, 60)
    lost = np.array([step.lost for step in steps])
    assert not lost[:, 0].any()
    assert episodes[0] == 12
    assert "sick" in caplog.text
    assert "another one begins" in caplog.text
    if trouble_kind != "reset":
        assert 2 < lost[:, 1].sum() < 20
        assert episodes[1] == lost[:, 1].sum() + sum(step.truncated[1] for step in steps)
    start, count = first[1, 0], 0
    for step in steps:
        assert all(np.isfinite(array).all() for array in step)
        count += 1
        if step.lost[1]:
            assert (step.reward[1], step.terminated[1], step.truncated[1], step.success[1]) == (0, False, False, False)
            assert step.obs[1, 0] != start  # another episode
        else:
            assert step.final_obs[1].tolist() == [start, count, 0]
        if step.lost[1] or step.truncated[1]:
            start, count = step.obs[1, 0], 0
            assert step.obs[1, 1] == 0


def test_failures_are_the_same_in_workers(trouble):
    specs = [trouble("a", trouble="nan", when=0.4), trouble("b", trouble="raises", when=0.3), trouble("c")]
    expected = play(specs, 0, 30)
    got = play(specs, 2, 30)
    assert expected[2].tolist() == got[2].tolist()
    for one, other in zip(expected[1], got[1], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_task_that_keeps_failing_is_named_with_its_last_error(trouble, num_workers):
    specs = [trouble("fine"), trouble("sick", trouble="raises", at=2)]
    with pytest.raises(
        TaskFailure, match=r"task sick failed 4 times.*task sick: step 2 .*KeyError: 'lost the ball'"
    ) as caught:
        play(specs, num_workers, 20)
    assert 'raise KeyError("lost the ball")' in str(caught.value)  # the simulator's own traceback


@pytest.mark.parametrize(("num_workers", "error"), [(0, RuntimeError), (1, WorkerError)])
def test_a_task_that_never_starts_is_named(trouble, num_workers, error):
    with pytest.raises(error, match="task sick: reset with seed .* KeyError: 'no ball'"):
        play([trouble("fine"), trouble("sick", trouble="reset")], num_workers, 1)


def test_a_worker_that_is_killed_is_started_again_and_the_others_go_on(trouble, caplog):
    specs = [trouble(name) for name in "abcd"]
    with VectorEnv(specs, 3, 1, 0, 2) as envs:
        envs.reset()
        envs.step(np.zeros((4, 1), np.float32))
        os.kill(envs._workers[0]._process.pid, signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            step = envs.step(np.zeros((4, 1), np.float32))
        assert step.lost.tolist() == [True, False, True, False]
        assert step.obs[:, 1].tolist() == [0, 2, 0, 2]
        assert envs.episodes.tolist() == [1, 0, 1, 0]
        step = envs.step(np.ones((4, 1), np.float32))
        assert step.lost.tolist() == [False] * 4
        assert step.obs[:, 1].tolist() == [1, 3, 1, 3]
        assert step.reward.tolist() == [1] * 4
        processes = [psutil.Process(worker._process.pid) for worker in envs._workers]
    assert "SIGKILL" in caplog.text
    assert "2 environments begin new episodes" in caplog.text
    assert not any(process.is_running() for process in processes)


def test_an_environment_that_kills_its_worker_time_and_again_is_named(trouble):
    specs = [trouble("fine"), trouble("deadly", trouble="dies", at=1)]
    with pytest.raises(TaskFailure, match=r"task deadly failed 4 times.*exit status 7"):
        play(specs, 1, 20)


def test_an_environment_that_blocks_is_ended_and_the_run_goes_on(trouble, caplog):
    specs = [trouble("fine"), trouble("slow", trouble="blocks", at=2, when=0.7), trouble("other")]
    started = time.monotonic()
    with VectorEnv(specs, 3, 1, 3, 2, timeout=0.5) as envs, caplog.at_level(logging.WARNING):
        begins = envs.reset()[1, 0]
        lost = 0
        for _ in range(8):
            step = envs.step(np.zeros((3, 1), np.float32))
            lost += step.lost
        assert not step.obs[2, 2]
    assert time.monotonic() - started < 30
    assert lost[1] > 0, f"the first episode begins at {begins}"
    assert lost[0] == lost[2] == 0  # they are in the other worker
    assert "stood still for 0.5 s" in caplog.text
    assert "runtime.env_timeout" in caplog.text
    assert "It was busy with slow" in caplog.text


@pytest.mark.parametrize("trouble_kind", ["starts slowly", "is built slowly"])
def test_a_slow_start_is_waited_for_longer_than_a_slow_step(trouble, caplog, trouble_kind):
    specs = [trouble("fine"), trouble("slow", trouble=trouble_kind, at=3, episode_length=3, pause=1.6)]
    with VectorEnv(specs, 3, 1, 3, 1, timeout=0.4) as envs, caplog.at_level(logging.WARNING):
        envs.reset()
        steps = [envs.step(np.zeros((2, 1), np.float32)) for _ in range(7)]
    assert not np.array([step.lost for step in steps])[:, 0].any()  # the worker of both was never ended
    assert "stood still" not in caplog.text


def test_a_start_that_never_ends_is_given_up(trouble):
    with VectorEnv([trouble(trouble="starts slowly", pause=60)], 3, 1, 3, 1, timeout=0.1) as envs:
        begun = time.monotonic()
        with pytest.raises(TaskFailure, match=r"stood still for 1 s and was ended \(runtime.env_timeout"):
            envs.reset()
        assert time.monotonic() - begun > 4


class Half:
    """An actor that always says 0.5."""

    def __init__(self):
        self.model = SimpleNamespace(config=SimpleNamespace(obs_dim=3, action_dim=1))

    def reset(self, num_envs, seed):
        self.begun = 0

    def act(self, obs, rows, plan, explore, constraint_weight, envs=None):
        return torch.full((len(obs), 1), 0.5)

    def begin_episodes(self, which):
        self.begun += int(which.sum())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_only_whole_episodes_reach_the_replay(trouble, num_workers):
    specs = [
        trouble("fine"),
        trouble("sick", trouble="nan", when=0.25),
        trouble("rude", trouble="raises", at=5, when=0.25),
        trouble("ends", terminates=2),
        *([trouble("deadly", trouble="dies", when=0.15)] if num_workers else []),
    ]
    kept = []
    add = lambda *episode, **_: kept.append(copy.deepcopy(episode))  # noqa: E731
    replay: Any = SimpleNamespace(horizon=1, columns=(), add=add, keeps_expert_actions=False, num_episodes=1)
    actor = Half()
    with VectorEnv(specs, 3, 1, 1, num_workers) as envs:
        settings = config.load(config.Finetune, "tests/tiny.yaml")
        collector = Collector(specs, torch.arange(len(specs)), envs, actor, replay, settings, seed=0)
        finished = []
        for _ in range(60):
            collector.begin_step(torch.zeros(len(specs), dtype=torch.bool), torch.ones(len(specs)))
            finished += collector.end_step()
        assert collector.episodes.tolist() == envs.episodes.tolist()
    assert len(kept) == len(finished)
    assert {episode.task for episode in finished} == {spec.name for spec in specs}
    for obs, action, reward, terminated, row in kept:
        length = 2 if specs[row].name == "ends" else 5
        assert terminated == (length == 2)  # which the value must not look past
        assert obs[:, 1].tolist() == list(range(length + 1))
        assert len(set(obs[:, 0].tolist())) == 1  # one and the same episode
        assert (action == 0.5).all()
        assert (reward == 0.5).all()
        assert len(action) == len(reward) == length
    assert actor.begun >= len(kept)
