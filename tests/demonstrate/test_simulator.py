"""The planning copy moves as the episode's own physics does, and array rewards are the suite's."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from pipeline.demonstrate.rewards import REWARDS
from pipeline.demonstrate.simulator import PlanningSimulator, States, suite_reward
from pipeline.tasks.registry import get, make

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

# Where rewards are decided: tops of swings, balls near the cup, fast spinners, standing walkers.
CENTERS = {
    "cartpole-balance-sparse": ([0, 0], 0.2),
    "cartpole-balance-long-sparse": ([0, 0], 0.2),
    "cartpole-swingup-sparse": ([0, 0], 0.2),
    "cup-catch": ([0, 0, 0, 0.35], 0.05),
    "cup-spin": ([0, 0, 0, 0.2], 0.3),
    "finger-spin": ([0, 0, 0], 1.0),
    "fish-swim": ([0, 0.4, 0.1, *[0] * 11], 0.1),
    "hopper-stand": ([0, 1, 0, *[0] * 4], 0.2),
    "pendulum-swingup": ([0], 0.3),
    "reacher-easy": ([0, 0], 2.0),
    "reacher-hard": ([0, 0], 2.0),
}
VELOCITY = {"finger-spin": 15.0}


def build(name: str, seed: int = 3):
    (spec,) = get([name])
    env = make(spec, spec.obs_dim, spec.action_dim)
    env.reset(seed=seed)
    inner = env.simulator.env
    steps = spec.action_repeat * round(inner.control_timestep() / inner.physics.timestep())
    return env, PlanningSimulator(inner.physics.model.ptr, inner.physics.data.ptr, steps, 1)


def random_states(name: str, model: mujoco.MjModel, rng: np.random.Generator) -> States:
    """800 states with the readings that MuJoCo gives in them."""
    data, shape = mujoco.MjData(model), (20, 40)
    center, spread = CENTERS.get(name, (np.zeros(model.nq), 0.5))
    qpos = np.asarray(center) + rng.normal(0, spread, (*shape, model.nq))
    if model.nq > model.nv:  # a free body, whose quaternion is kept at length 1
        qpos[..., 3:7] /= np.linalg.norm(qpos[..., 3:7], axis=-1, keepdims=True)
    qvel = rng.normal(0, VELOCITY.get(name, 4.0), (*shape, model.nv))
    ctrl = rng.uniform(-1, 1, (*shape, model.nu))
    sensordata = np.empty((*shape, model.nsensordata))
    full = np.zeros((*shape, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    for index in np.ndindex(shape):
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[index], qvel[index], ctrl[index]
        mujoco.mj_forward(model, data)
        sensordata[index] = data.sensordata
        mujoco.mj_getState(model, data, full[index], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    return States(qpos, qvel, ctrl, sensordata, full, model)


@pytest.mark.parametrize("name", REWARDS)
def test_array_rewards_are_the_suites(name):
    env, simulator = build(name)
    states = random_states(name, simulator.model, np.random.default_rng(0))
    ours = REWARDS[name](states)
    theirs = suite_reward(env.simulator.env.task, env.simulator.env.physics)(states)
    assert np.ptp(theirs) > 0.05  # else the states would show nothing
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["walker-walk", "pendulum-spin", "fish-swim"])
def test_rollouts_are_what_then_happens(name):
    env, simulator = build(name)
    physics, spec = env.simulator.env.physics, env.task
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 4, spec.action_dim))
    before = physics.get_state().copy()
    states = simulator(actions)
    np.testing.assert_array_equal(physics.get_state(), before)  # looking ahead moves nothing
    for step in range(4):
        _, _, _, _, _ = env.step(actions[1, step].astype(np.float32))
        np.testing.assert_allclose(states.qpos[1, step], physics.data.qpos, atol=1e-4)
        np.testing.assert_allclose(states.qvel[1, step], physics.data.qvel, atol=1e-2)
        np.testing.assert_allclose(states.sensordata[1, step], physics.data.sensordata, atol=1e-2, rtol=1e-2)


def test_a_rollout_uses_what_the_reset_drew():
    env, simulator = build("reacher-easy", seed=1)
    drawn = env.simulator.env.physics.model.ptr.geom("target").pos
    other, _ = build("reacher-easy", seed=2)
    np.testing.assert_array_equal(simulator.model.geom("target").pos, drawn)
    assert not np.array_equal(other.simulator.env.physics.model.ptr.geom("target").pos, drawn)


def test_coarseness_must_divide():
    env, _ = build("walker-walk")
    with pytest.raises(ValueError, match="coarseness 3 does not divide the 20"):
        physics = env.simulator.env.physics
        PlanningSimulator(physics.model.ptr, physics.data.ptr, 20, 3)
