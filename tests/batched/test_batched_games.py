"""Batched games are the real environment: observations, rewards, ends and starts, of every game of MiniArcade."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.batched.agreement import check_game
from pipeline.batched.games import BatchedGame
from pipeline.batched.stepped import open_copies
from pipeline.tasks.miniarcade.pong import Pong
from pipeline.tasks.registry import get, load_catalogue, make

TASKS = [spec for spec in load_catalogue().values() if spec.suite == "miniarcade"]


@pytest.mark.parametrize("spec", TASKS, ids=lambda spec: spec.name)
def test_a_random_step_is_the_real_environments(spec):
    check_game(spec)


def test_a_game_that_disagrees_is_refused(monkeypatch):
    (spec,) = get(["pygame-pong"])
    reward = Pong.reward
    monkeypatch.setattr(Pong, "reward", lambda game, state: reward(game, state) + (len(state) > 1))
    with pytest.raises(ValueError, match=r"pygame-pong: .* at step 1: the reward is [\d.-]+ on arrays and [\d.-]+ in"):
        check_game(spec)


@pytest.mark.parametrize("spec", TASKS, ids=lambda spec: spec.name)
def test_copies_end_at_the_time_limit_and_begin_as_real_episodes_do(spec):
    copies = BatchedGame(spec, 4, seed=0)
    copies.steps[:] = [0, spec.episode_length - 1, 3, spec.episode_length - 1]
    rng = np.random.default_rng()
    rng.bit_generator.state = copies.rng.bit_generator.state
    step = copies.step(np.full((4, spec.action_dim), 0.5))
    assert step.truncated.tolist() == [False, True, False, True]
    assert copies.steps.tolist() == [1, 0, 4, 0]
    assert not step.terminated.any()
    assert (step.obs != step.final_obs).any(axis=1).tolist() == [False, True, False, True]
    env = make(spec, spec.obs_dim, spec.action_dim)
    for number, seed in zip((1, 3), rng.integers(2**32, size=2), strict=True):
        obs, _ = env.reset(seed=int(seed))
        np.testing.assert_array_equal(step.obs[number], obs)
    env.close()


@pytest.mark.parametrize("spec", TASKS, ids=lambda spec: spec.name)
def test_saved_copies_go_on_as_if_they_had_not_been(spec):
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 5, spec.action_dim))
    first, second = BatchedGame(spec, 5, seed=0), BatchedGame(spec, 5, seed=7)
    first.steps[:2] = spec.episode_length - 30  # so that new episodes begin on the way
    for action in actions[:20]:
        first.step(action)
    arrays, values = first.state()
    second.load_state({name: part.copy() for name, part in arrays.items()}, values)
    np.testing.assert_array_equal(second.obs, first.obs)
    for action in actions[20:]:
        ours, theirs = second.step(action), first.step(action)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_draws_on_is_added_to_the_reward():
    (spec,) = get(["pygame-pong"])
    led, plain = (open_copies(spec, 3, 0, shaping=shaping) for shaping in (lambda game, states: np.full(3, 0.25), None))
    for _ in range(5):
        np.testing.assert_allclose(led.step(np.ones((3, 1))).reward, plain.step(np.ones((3, 1))).reward + 0.25)


def test_a_game_cannot_be_coarser():
    with pytest.raises(ValueError, match="pygame-pong: coarseness 2"):
        open_copies(get(["pygame-pong"])[0], 2, 0, coarseness=2)
