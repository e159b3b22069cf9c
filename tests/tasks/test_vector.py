import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.tasks import registry
from pipeline.tasks.env_group import episode_seed
from pipeline.tasks.vector import Step, VectorEnv, WorkerError, assign

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

OBS, ACTION = 40, 6


def play(specs, num_workers, num_steps, seed=7):
    """Return everything that a vector gave over random actions, the actions, and the episode numbers at the end."""
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, len(specs), ACTION)).astype(np.float32)
    with VectorEnv(specs, OBS, ACTION, seed, num_workers) as envs:
        seen = [envs.reset()]
        for action in actions:
            seen += envs.step(action)
        return seen, actions, envs.episodes.copy()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_do_not_depend_on_the_number_of_workers(num_workers):
    specs = registry.get(["pendulum-spin", "mw-drawer-open", "cup-spin"])
    expected, _, episodes = play(specs, 0, 102)
    got, _, got_episodes = play(specs, num_workers, 102)
    assert episodes.tolist() == got_episodes.tolist() == [0, 1, 0]
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)


def test_costly_environments_are_shared_out():
    specs = registry.get(["rd-open-slide", "cup-spin", "rd-push-green", "pendulum-spin", "mw-reach", "cup-spin"])
    hands = assign(specs, 2)
    assert sorted(hands[0] + hands[1]) == list(range(6))
    assert 0 in hands[0]
    assert 2 in hands[1]  # the two desks cost more than the others together
    assert abs(len(hands[0]) - len(hands[1])) <= 2
    assert assign(specs[:1] * 3, 3) == [[0], [1], [2]]


def test_where_an_episode_ends_the_next_begins_and_the_last_observation_is_kept(trouble):
    with VectorEnv([trouble(), trouble("short", terminates=2)], 3, 1, seed=0, num_workers=0) as envs:
        first = envs.reset()
        steps = [envs.step(np.full((2, 1), 0.5, np.float32)) for _ in range(5)]
        episodes = envs.episodes.tolist()
    assert [step.terminated.tolist() for step in steps] == [[False, i in (1, 3)] for i in range(5)]
    assert [step.truncated.tolist() for step in steps] == [[i == 4, False] for i in range(5)]
    assert [step.final_obs[:, 1].tolist() for step in steps] == [[1, 1], [2, 2], [3, 1], [4, 2], [5, 1]]
    assert [step.obs[:, 1].tolist() for step in steps] == [[1, 1], [2, 0], [3, 1], [4, 0], [0, 1]]
    assert steps[1].obs[1, 0] != first[1, 0]  # another episode, another start
    assert steps[1].final_obs[1, 0] == first[1, 0]
    assert steps[0].reward.tolist() == [0.5, 0.5]
    assert episodes == [1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_environment_that_rests_goes_on_where_it_was(trouble, num_workers):
    action = np.full((2, 1), 0.5, np.float32)
    with VectorEnv([trouble(), trouble()], 3, 1, seed=0, num_workers=num_workers) as envs:
        envs.reset()
        envs.step(action)
        for _ in range(7):  # the other one comes to the end of its episode, and into the next
            envs.begin_step(action, np.array([True, False]))
            step = envs.end_step()
            assert (step.obs[1, 1], step.final_obs[1, 1], step.reward[1]) == (1, 1, 0)
            assert not np.array([step.terminated, step.truncated, step.lost])[:, 1].any()
        assert envs.episodes.tolist() == [1, 0]
        assert envs.step(action).obs[:, 1].tolist() == [4, 2]


def test_environments_of_one_task_start_differently_and_reset_begins_anew():
    specs = registry.get(["pendulum-swingup"]) * 3
    with VectorEnv(specs, OBS, ACTION, 1, 0) as envs:
        first = envs.reset()
        assert len(np.unique(first, axis=0)) == 3
        envs.step(np.ones((3, ACTION), np.float32))
        np.testing.assert_array_equal(envs.reset(), first)
    with VectorEnv(specs, OBS, ACTION, 2, 0) as envs:
        assert not np.array_equal(envs.reset(), first)


def test_what_a_step_returned_is_never_overwritten():
    with VectorEnv(registry.get(["pendulum-swingup"]), OBS, ACTION, 1, 0) as envs:
        envs.reset()
        step = envs.step(np.ones((1, ACTION), np.float32))
        copies = [array.copy() for array in step]
        envs.step(-np.ones((1, ACTION), np.float32))
        for array, copy in zip(step, copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_episode_seeds_are_distinct_and_fit_every_simulator():
    seeds = {episode_seed(s, i, e) for s in range(5) for i in range(20) for e in range(20)}
    assert len(seeds) == 2000
    assert max(seeds) < 2**32


@pytest.mark.parametrize("num_workers", [0, 2])
def test_restore_goes_on_in_mid_episode_bit_for_bit(num_workers):
    specs = registry.get(["pendulum-spin", "mw-pick-place", "cheetah-run-backward"])
    seen, actions, _ = play(specs, 0, 112)
    fields = len(Step._fields)
    last = fields * 108  # everything after reset and 108 steps: mw-pick-place is 8 steps into its second episode
    with VectorEnv(specs, OBS, ACTION, 7, num_workers) as envs:
        played = [actions[:108, 0], actions[100:108, 1], actions[:108, 2]]
        np.testing.assert_array_equal(envs.restore(np.array([0, 1, 0]), played), seen[1 + last - fields])
        assert envs.episodes.tolist() == [0, 1, 0]
        resumed = [array for action in actions[108:] for array in envs.step(action)]
    for one, other in zip(seen[1 + last :], resumed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("num_workers", "error"), [(0, ValueError), (1, WorkerError)])
def test_restoring_a_foreign_record_is_refused(trouble, num_workers, error):
    with VectorEnv([trouble()], 2, 1, 0, num_workers) as envs:
        assert envs.restore(np.array([4]), [np.zeros((0, 1), np.float32)])[0, 1] == 0
        with pytest.raises(error, match="it ended after 5 of 6 recorded actions"):
            envs.restore(np.array([0]), [np.zeros((6, 1), np.float32)])


def test_malformed_input_is_refused():
    with pytest.raises(ValueError, match="at least one task"):
        VectorEnv([], OBS, ACTION, 0, 0)
    with VectorEnv(registry.get(["pendulum-spin"]), OBS, ACTION, 1, 0) as envs:
        envs.reset()
        with pytest.raises(ValueError, match=r"expected actions of shape \(1, 6\), got \(2, 6\)"):
            envs.step(np.zeros((2, ACTION), np.float32))
        with pytest.raises(ValueError, match="expected 1 episodes and 1 records, got 1 and 2"):
            envs.restore(np.zeros(1, int), [np.zeros((0, ACTION))] * 2)


def test_a_task_that_cannot_be_built_in_a_worker_is_named(trouble):
    bad = trouble("bad", nonsense=1)
    with pytest.raises(WorkerError, match="This happened when building task bad"):
        VectorEnv([trouble(), bad], 2, 1, 0, num_workers=1)


def test_close_ends_the_workers_and_may_be_called_twice(trouble):
    envs = VectorEnv([trouble()] * 3, 2, 1, 0, num_workers=2)
    processes = [psutil.Process(worker._process.pid) for worker in envs._workers]
    assert len(processes) == 2
    for process in processes:
        process.send_signal(signal.SIGINT)  # Ctrl-C reaches the whole group and is not theirs to handle
    assert envs.reset().shape == (3, 2)
    envs.close()
    assert not any(process.is_running() for process in processes)
    envs.close()


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pipeline.tasks import registry\n"
        "from pipeline.tasks.vector import VectorEnv\n"
        "envs = VectorEnv(registry.get(['pendulum-spin']) * 2, 4, 1, 0, 2)\n"  # no main guard: none is needed
        "print(*[worker._process.pid for worker in envs._workers], flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    ) as parent:
        assert parent.stdout
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < deadline, "the workers outlived their parent"
        time.sleep(0.1)


def test_workers_never_import_torch(trouble):
    with VectorEnv([trouble()], 2, 1, 0, num_workers=1) as envs:
        envs.reset()
        maps = Path(f"/proc/{envs._workers[0]._process.pid}/maps")
        if not maps.exists():
            pytest.skip("needs /proc")
        assert "libtorch" not in maps.read_text()
