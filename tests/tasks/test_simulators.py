"""What the simulators of single tasks do; test_catalogue.py looks at all of them."""

import dataclasses

import numpy as np
import pytest

from pipeline.tasks import registry
from pipeline.tasks.task_env import SimulationError

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

CATALOGUE = registry.load_catalogue()
OBS, ACTION = 128, 16
FEW = ["pendulum-spin", "cup-spin", "cheetah-run-backward", "finger-turn-hard", "mw-reach", "mw-box-close"]
PAIRS = [
    ("pendulum-swingup", "pendulum-spin"),
    ("cup-catch", "cup-spin"),
    ("walker-walk", "walker-walk-backward"),
    ("walker-run", "walker-run-backward"),
    ("cheetah-run", "cheetah-run-backward"),
    ("cheetah-run-front", "cheetah-run-back"),
    ("cheetah-run", "cheetah-jump"),
    ("hopper-hop", "hopper-hop-backward"),
    ("spinner-spin", "spinner-spin-backward"),
    ("mw-reach", "mw-pick-place"),
]


def make(name):
    return registry.make(CATALOGUE[name], OBS, ACTION)


def episode(env, seed, actions):
    """Return all observations (L + 1, O), rewards and successes of the steps that `actions` last."""
    observations, rest = [env.reset(seed=seed)[0]], []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        observations.append(obs)
        rest.append((reward, terminated, truncated, info["success"]))
    return np.array(observations), np.array(rest)


def check(name, num_steps):
    """Hold one task to its promises over the first `num_steps` agent steps, or a whole episode."""
    spec, env = CATALOGUE[name], make(name)
    actions = np.random.default_rng(0).uniform(-1, 1, (num_steps, ACTION)).astype(np.float32)
    observations, rest = episode(env, 5, actions)
    other_start = episode(env, 6, actions[:3])[0][0]
    masked = actions.copy()
    masked[:, spec.action_dim :] *= -1
    again, rest_again = episode(env, 5, masked)
    np.testing.assert_array_equal(observations, again)  # the same seed, after other episodes, masked entries changed
    np.testing.assert_array_equal(rest, rest_again)
    assert not np.array_equal(observations[0], other_start)
    assert observations.dtype == np.float32
    assert not observations[:, spec.obs_dim :].any()
    assert observations[:, : spec.obs_dim].any()
    assert len(np.unique(observations, axis=0)) > 1
    rewards, terminated, truncated, success = rest.T
    assert not terminated.any()
    assert np.flatnonzero(truncated).tolist() == ([num_steps - 1] if num_steps == spec.episode_length else [])
    assert 0 <= spec.evaluate(rewards.sum(), bool(success[-1])) <= 1
    if spec.suite.startswith("dmcontrol"):
        assert rewards.min() >= 0
        assert rewards.max() <= spec.action_repeat
    env.close()


@pytest.mark.parametrize("name", FEW)
def test_conforms(name):
    check(name, 20)


@pytest.mark.parametrize("name", ["pendulum-swingup", "walker-run", "mw-pick-place"])
def test_two_instances_agree(name):
    actions = np.random.default_rng(1).uniform(-1, 1, (10, ACTION)).astype(np.float32)
    one, other = make(name), make(name)
    episode(other, 3, actions)
    for a, b in zip(episode(one, 4, actions), episode(other, 4, actions), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_pairs_differ_in_instruction_and_reward_alone(pair):
    one, other = make(pair[0]), make(pair[1])
    actions = np.random.default_rng(2).uniform(-1, 1, (15, ACTION)).astype(np.float32)
    rewards = []
    for seed in (0, 1, 2):
        (seen, rest), (seen_other, rest_other) = episode(one, seed, actions), episode(other, seed, actions)
        np.testing.assert_array_equal(seen[0], seen_other[0])
        rewards.append((rest[:, 0], rest_other[:, 0]))
        if not pair[0].startswith("mw-"):  # those two share the start, but are not one and the same model
            np.testing.assert_array_equal(seen, seen_other)
    assert not np.array_equal(*np.stack(rewards, axis=1))
    assert one.task.embodiment == other.task.embodiment
    assert not set(one.task.instructions) & set(other.task.instructions)


def test_meta_world_shows_its_goal():
    env = make("mw-reach")
    goals = np.array([env.reset(seed=seed)[0][36:39] for seed in range(3)])
    assert goals.any(axis=1).all()
    assert len(np.unique(goals, axis=0)) == 3


def test_building_meta_world_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].tolist()
    make("mw-reach").reset(seed=0)
    assert np.random.get_state()[1].tolist() == before


def test_a_diverged_simulation_is_an_error_that_names_the_task():
    env = make("pendulum-spin")
    env.reset(seed=0)
    env.simulator.physics.data.qvel[0] = np.nan
    with pytest.raises(SimulationError, match="pendulum-spin: step 1 .* diverged"):
        env.step(np.zeros(ACTION, np.float32))


def follow(name, action_of, num_steps=500):
    """Return the episode return of a simple controller."""
    env = make(name)
    env.reset(seed=0)
    total = 0.0
    for _ in range(num_steps):
        action = np.zeros(ACTION, np.float32)
        action[: env.task.action_dim] = action_of(env.simulator.physics)
        total += env.step(action)[1]
    return total


def towards_the_cup(physics):
    site = physics.named.data.site_xpos
    away = site["ball", ["x", "z"]] - site["cup", ["x", "z"]]
    return -away / np.linalg.norm(away)


@pytest.mark.slow
def test_the_spinning_tasks_can_be_solved():
    assert follow("pendulum-spin", lambda physics: np.sign(physics.angular_velocity())) > 900
    assert follow("cup-spin", towards_the_cup) > 850


def test_spinning_is_not_earned_at_rest():
    assert follow("pendulum-spin", lambda physics: -np.sign(physics.angular_velocity()), 500) < 150
    assert follow("cup-spin", lambda physics: np.zeros(2), 100) < 30


@pytest.mark.parametrize(
    ("forward", "backward"), [("cheetah-run", "cheetah-run-backward"), ("walker-walk", "walker-walk-backward")]
)
def test_backward_rewards_mirror_the_speed(forward, backward):
    ahead, back = make(forward), make(backward)
    for env in (ahead, back):
        env.reset(seed=0)
    physics, sensor = back.simulator.physics, "torso_subtreelinvel"
    for speed in (4.0, -4.0):
        for env in (ahead, back):
            env.simulator.physics.named.data.sensordata[sensor] = [speed, 0, 0]
        reward, mirrored = (
            back.simulator.task.get_reward(physics),
            ahead.simulator.task.get_reward(ahead.simulator.physics),
        )
        assert (reward > mirrored) == (speed < 0)


def test_a_suite_task_that_ends_by_itself_terminates():
    lqr = dataclasses.replace(CATALOGUE["cup-spin"], env_id="lqr/lqr_2_1", obs_dim=4, action_dim=1)
    env = registry.make(lqr, 4, 1)
    env.reset(seed=0)
    physics = env.simulator.physics
    with physics.reset_context():
        physics.data.qpos[:] = physics.data.qvel[:] = 0  # at rest, where it has nothing left to do
    assert env.step(np.zeros(1, np.float32))[2]
