"""What learning reads of the tasks: their discounts, and what their bodies observe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.data.episode import Episode
from pipeline.learn.task_setup import discount, observation_statistics, observed_at_random
from pipeline.tasks import registry
from pipeline.tasks.registry import make

SPECS = registry.get(["mw-reach", "mw-drawer-open"])


@pytest.mark.parametrize(("length", "expected"), [(500, 0.99), (100, 0.95), (1000, 0.995), (25, 0.95), (1, 0.95)])
def test_discount(length: int, expected: float) -> None:
    assert discount(length, 0.95, 0.995) == pytest.approx(expected)


def test_discount_refuses_an_empty_episode() -> None:
    with pytest.raises(ValueError, match="at least 1 agent step, not 0"):
        discount(0, 0.95, 0.995)


@pytest.mark.parametrize("length", [10, 200])
def test_statistics_at_random_are_of_so_many_steps_as_an_episode_has(length: int) -> None:
    spec = dataclasses.replace(
        SPECS[0], suite="gymnasium", env_id="CartPole-v1", obs_dim=4, action_dim=2, episode_length=length
    )
    env, draw, seen = make(spec, 4, 2), np.random.default_rng(3), []
    ends = 0
    while len(seen) <= length:
        seen.append(env.reset(seed=3 + len(seen))[0])
        over = False
        while not over:
            obs, _, terminated, truncated, _ = env.step(draw.uniform(-1, 1, 2).astype(np.float32))
            seen.append(obs)
            over = terminated or truncated
        ends += 1
    env.close()
    assert (ends > 1) == (length == 200), "CartPole falls after 20 steps or so"
    mean, std = observed_at_random(spec, 6, seed=3)
    np.testing.assert_allclose(mean[0, :4], np.mean(seen, 0), atol=1e-5)
    np.testing.assert_allclose(std[0, :4], np.std(seen, 0), rtol=0.05)
    assert std[0, 4:].tolist() == [1, 1]


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
