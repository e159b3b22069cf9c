"""Batched copies are the real environment: observations, rewards, ends and starts, of every task on MuJoCo."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from pipeline.batched.agreement import check_form
from pipeline.batched.env import BatchedEnv, Starts, full_state, simulation
from pipeline.batched.forms import array_form
from pipeline.demonstrate import play
from pipeline.demonstrate.planner import load_recipes
from pipeline.tasks.registry import get, load_catalogue, make

MUJOCO = ("dmcontrol", "dmcontrol-ext", "mujoco", "ogbench")
# The points of OGBench's mazes have no physics: their way is known.
TASKS = [name for name, spec in load_catalogue().items() if spec.suite in MUJOCO and not name.startswith("og-point")]
# pipeline/batched/gymnasium_bodies.py says why: what Gymnasium reads from within a Runge-Kutta step.
LESS_EXACT = {"mujoco-ant": (1e-6, 0.1), "mujoco-reacher": (2e-3, 2e-3)}
STEPS = 40


@pytest.fixture
def cheap_plans(monkeypatch):
    recipes = {name: replace(one, samples=16, iterations=1) for name, one in load_recipes().items()}
    monkeypatch.setattr(play, "load_recipes", lambda: recipes)


@pytest.mark.parametrize("name", TASKS)
def test_a_random_step_is_the_real_environments(name):
    check_form(*get([name]), None, STEPS, *LESS_EXACT.get(name, ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name in load_recipes()])
def test_so_it_is_where_experts_go(name, cheap_plans):
    (spec,) = get([name])

    def expert(env):
        act = play.planning(spec, env, 0, np.random.default_rng(0), ExitStack())
        return lambda obs: np.clip(act(obs, False), -1, 1).astype(np.float32)

    check_form(spec, None, STEPS, *LESS_EXACT.get(name, ()), expert=expert)


def test_a_form_that_disagrees_is_refused():
    (spec,) = get(["pendulum-spin"])
    form = array_form(spec)
    faster = replace(form, reward=lambda states, before: 1.5 * form.reward(states, before))
    with pytest.raises(
        ValueError, match=r"pendulum-spin: .* at step \d+: the reward is [\d.e-]+ on arrays and [\d.e-]+ in"
    ):
        check_form(spec, faster)
    turned = replace(form, observe=lambda states: form.observe(states)[..., ::-1])
    with pytest.raises(ValueError, match="step 1: entry 0 of the observation is"):
        check_form(spec, turned)
    ending = replace(form, terminated=lambda states: states.time > 0.5)
    with pytest.raises(ValueError, match="`terminated` is True on arrays and False in the environment"):
        check_form(spec, ending)


@pytest.mark.parametrize("name", ["reacher-hard", "finger-turn-hard", "walker-walk", "og-ant-maze", "mujoco-hopper"])
def test_episodes_begin_as_real_ones_do(name):
    (spec,) = get([name])
    starts, rng = Starts(spec, array_form(spec), np.random.default_rng(3)), np.random.default_rng(3)
    env = make(spec, spec.obs_dim, spec.action_dim)
    for number in range(4):  # the first was added as they were made
        obs, _ = env.reset(seed=int(rng.integers(2**32)))
        full, seen, drawn = starts.draw(1)[0] if number else starts._starts[0]
        np.testing.assert_array_equal(seen, obs)
        np.testing.assert_array_equal(full, full_state(simulation(spec, env.simulator)))
        np.testing.assert_array_equal(drawn, array_form(spec).drawn(env.simulator))
    drawn = starts.draw(50)
    assert len({start[1].tobytes() for start in drawn}) == 5  # those kept, with the new one among them
    env.close()
    starts.close()


def test_copies_end_at_the_time_limit_and_begin_anew():
    (spec,) = get(["pendulum-swingup"])
    batched = BatchedEnv(spec, 4, seed=0)
    batched.steps[:] = [0, spec.episode_length - 1, 3, spec.episode_length - 1]
    step = batched.step(np.zeros((4, 1)))
    assert step.truncated.tolist() == [False, True, False, True]
    assert batched.steps.tolist() == [1, 0, 4, 0]
    assert not step.terminated.any()
    assert (step.obs != step.final_obs).any(axis=1).tolist() == [False, True, False, True]
    batched.close()


def test_threads_change_nothing():
    (spec,) = get(["cheetah-run"])
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 8, spec.action_dim))
    found = []
    for threads in (0, 2):
        batched = BatchedEnv(spec, 8, seed=0, threads=threads)
        found.append([batched.step(action).obs for action in actions])
        batched.close()
    np.testing.assert_array_equal(found[0], found[1])


def test_a_copy_that_diverges_is_put_aside():
    (spec,) = get(["cheetah-run"])
    batched = BatchedEnv(spec, 3, seed=0)
    batched.steps[:] = 5
    batched.full[1, 1:] = np.nan
    step = batched.step(np.zeros((3, spec.action_dim)))
    assert step.truncated.tolist() == [False, True, False]
    assert step.reward[1] == 0
    assert np.isfinite(batched.full).all()
    assert batched.steps.tolist() == [6, 0, 6]
    batched.close()


def test_a_reward_that_is_not_finite_is_refused():
    (spec,) = get(["pendulum-swingup"])
    broken = replace(array_form(spec), reward=lambda states, before: states.qpos[..., 0] * np.nan)
    batched = BatchedEnv(spec, 2, seed=0, form=broken)
    with pytest.raises(FloatingPointError, match=r"pendulum-swingup: .*reward of copy 0 at step \d+ is nan"):
        batched.step(np.zeros((2, 1)))
    batched.close()


def test_what_cannot_be_batched_is_refused():
    with pytest.raises(ValueError, match="mw-reach has no array form"):
        array_form(get(["mw-reach"])[0])
    with pytest.raises(ValueError, match="walker-walk: coarseness 3 does not divide the 10 physics steps"):
        BatchedEnv(get(["walker-walk"])[0], 2, seed=0, coarseness=3)


def test_an_end_within_an_agent_step_is_its_end():
    """An agent step has two control steps; what would come after the first, if it ends there, counts for nothing."""
    (spec,) = get(["pendulum-spin"])
    form = array_form(spec)
    whole = BatchedEnv(spec, 2, seed=0, form=replace(form, reward=lambda states, before: 1 + 0 * states.time))
    begun = whole.full[:, 0].copy()
    ending = replace(whole.form, terminated=lambda states: states.time < begun[:, None] + np.array([[0.03], [-1]]))
    batched = BatchedEnv(spec, 2, seed=0, form=ending)
    batched.steps[:] = whole.steps[:] = 0
    step, other = batched.step(np.ones((2, 1))), whole.step(np.ones((2, 1)))
    assert step.terminated.tolist() == [True, False]
    assert step.reward.tolist() == [1, 2]
    assert other.reward.tolist() == [2, 2]
    np.testing.assert_array_equal(step.final_obs[1], other.final_obs[1])
    assert (step.final_obs[0] != other.final_obs[0]).any()
    batched.close()
    whole.close()
