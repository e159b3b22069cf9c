"""Experts of ManiSkill: what they plan on, and that they are good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.demonstrate.play import expert_method, play
from pipeline.tasks import availability, domains
from pipeline.tasks.registry import get, make

pytestmark = pytest.mark.slow  # simulators run for real


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("mani_skill", reason=f"mani_skill is not installed: {domains.install('maniskill')}")
    if reasons := availability.unavailable(get(["ms-push-cube"])):
        pytest.skip(str(reasons))


def test_a_scene_is_planned_on_a_second_one_and_left_alone() -> None:
    from pipeline.demonstrate.manipulation import SceneSimulator

    (spec,) = get(["ms-push-cube"])
    envs = [make(spec, spec.obs_dim, spec.action_dim) for _ in range(2)]
    (obs, _), _ = (env.reset(seed=3) for env in envs)
    simulator = SceneSimulator(*(env.simulator for env in envs), spec.action_repeat)
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 5, spec.action_dim)).astype(np.float32)
    rewards = simulator(actions.astype(np.float64))
    np.testing.assert_allclose(simulator(actions.astype(np.float64)), rewards, atol=1e-4)  # nothing is left behind
    seen = np.zeros_like(obs)
    envs[0].simulator.observe(seen)
    np.testing.assert_array_equal(seen, obs)
    played = [envs[0].step(action)[1] for action in actions[1]]
    np.testing.assert_allclose(rewards[1], played, atol=0.02)
    assert np.ptp(rewards) > 0.01
    for env in envs:
        env.close()


def test_a_planned_cube_is_pushed_and_the_attempt_can_be_made_again() -> None:
    (spec,) = get(["ms-push-cube"])
    assert expert_method(spec) == "planner"
    episode = play(spec, seed=1, attempt=0, action_noise=0.5)
    episode.check()
    assert episode.score == 1
    short = replace(spec, episode_length=4)
    first, again = (play(short, seed=1, attempt=0, action_noise=0.5) for _ in range(2))
    np.testing.assert_array_equal(first.action, again.action)
