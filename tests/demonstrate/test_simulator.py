"""The planning copy moves as the episode's own physics does."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.demonstrate.simulator import PlanningSimulator
from pipeline.tasks.registry import get, make

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real


def build(name: str, seed: int = 3):
    (spec,) = get([name])
    env = make(spec, spec.obs_dim, spec.action_dim)
    env.reset(seed=seed)
    inner = env.simulator.env
    steps = spec.action_repeat * round(inner.control_timestep() / inner.physics.timestep())
    return env, PlanningSimulator(inner.physics.model.ptr, inner.physics.data.ptr, steps, 1)


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
