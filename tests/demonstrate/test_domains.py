"""Experts of MiniArcade, the mazes and RoboDesk."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.demonstrate.arcade import GameSimulator
from pipeline.demonstrate.console import ConsoleSimulator
from pipeline.demonstrate.desk import desk_script
from pipeline.demonstrate.play import expert_method, least_score, play
from pipeline.tasks.registry import get, load_catalogue, make

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

GAMES = [name for name, spec in load_catalogue().items() if spec.suite == "miniarcade"]
MAZES = [name for name in load_catalogue() if name.startswith(("og-point-", "og-ant-", "pygame-point-maze-"))]


def test_who_demonstrates():
    assert {expert_method(get([name])[0]) for name in GAMES[:3]} == {"planner"}
    assert {expert_method(get([name])[0]) for name in (MAZES[0], MAZES[-1])} == {"path"}
    assert expert_method(get(["rd-push-red"])[0]) == "scripted"
    with pytest.raises(ValueError, match="rd-open-drawer has no expert"):
        expert_method(get(["rd-open-drawer"])[0])


@pytest.mark.parametrize("name", ["pygame-point-maze-var2", "pygame-cowboy"])
def test_one_of_each_kind_is_good(name):
    spec = get([name])[0]
    episode = play(spec, seed=1, attempt=0, action_noise=0.5)
    episode.check()
    assert episode.score >= least_score(spec)


def test_games_are_planned_on_a_copy():
    spec = get(["pygame-spaceship"])[0]
    env = make(spec, spec.obs_dim, spec.action_dim)
    env.reset(seed=2)
    simulator = env.simulator
    state = simulator.state.copy()
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 30, 2)).astype(np.float32)
    planned = GameSimulator(simulator)(actions.astype(np.float64))
    np.testing.assert_array_equal(simulator.state, state)
    played = [env.step(action)[1] for action in actions[2]]
    np.testing.assert_allclose(planned[2], played)
    assert planned.any()


def test_atari_is_planned_on_the_episodes_own_console_which_then_stands_where_it_stood():
    spec = get(["atari-assault"])[0]
    env = make(spec, spec.obs_dim, spec.action_dim)
    obs, _ = env.reset(seed=2)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 60, 3)).astype(np.float32)
    simulator = ConsoleSimulator(env.simulator)
    planned = simulator(actions.astype(np.float64))
    np.testing.assert_array_equal(simulator(actions.astype(np.float64)), planned)
    seen = np.zeros(spec.obs_dim, np.float32)
    env.simulator.observe(seen)
    np.testing.assert_array_equal(seen, obs)
    played = [env.step(action)[1] for action in actions[1]]
    np.testing.assert_allclose(planned[1], played)
    assert planned.any()


def test_a_lost_life_costs_as_much_as_the_largest_reward():
    class Console:
        low, high, lives = np.full(3, -1.0), np.ones(3), 2

        def save(self):
            return None

        def restore(self, state):
            self.lives = 2

        def step(self, action):
            self.lives -= action[2] > 0
            return float(action[0] * 30), self.lives == 0, False, False

    actions = np.zeros((2, 3, 3))
    actions[0, 0, 0], actions[1, :2, 2] = 1.0, 1.0
    np.testing.assert_allclose(ConsoleSimulator(Console())(actions), [[30, 0, 0], [-30, -60, 0]])


def test_the_desk_script_presses_from_above():
    obs = np.zeros(76, np.float32)
    obs[18:21] = -0.25, 0.625, 0.9  # over the green button
    down = desk_script("push_green")(obs, False)
    assert down[2] == -1
    assert np.abs(down[:2]).max() < 1e-3
    obs[18:21] = 0.2, 0.625, 0.9
    across = desk_script("push_green")(obs, False)
    assert across[0] == -1
    assert across[2] > -1.0001


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GAMES, *(name for name in MAZES if name.startswith("og-")), "rd-push-blue"])
def test_experts_are_good_often_enough(name):
    spec = get([name])[0]
    scores = [play(spec, 1, 0, 0.5).score]
    if scores[0] < least_score(spec):
        scores.append(play(spec, 1, 1, 0.5).score)
    assert max(scores) >= least_score(spec), scores
