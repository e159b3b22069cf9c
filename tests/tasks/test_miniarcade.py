"""The rules of the games, each where the outcome is known."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline.tasks.miniarcade import (
    air_hockey,
    bird_attack,
    cartpole,
    chase_evade,
    coconut_dodge,
    coinrun,
    cowboy,
    highway,
    landing,
    pong,
    reacher,
    rocket_collect,
    spaceship,
)
from pipeline.tasks.miniarcade.adapter import GAMES, MiniArcade
from pipeline.tasks.registry import load_catalogue
from pipeline.tasks.rendering import RenderingUnavailable

TASKS = [spec for spec in load_catalogue().values() if spec.suite == "miniarcade"]


def begin(game, seed=0):
    return game.reset(np.random.default_rng(seed))


def play(game, state, *actions):
    """Return the state (S,) after the actions, and the sum of rewards."""
    total = 0.0
    for action in actions:
        after = game.step(state[None], np.array([action], float))
        state, total = after[0], total + float(game.reward(after)[0])
    return state, total


@pytest.mark.parametrize("spec", TASKS, ids=lambda spec: spec.name)
def test_copies_of_a_state_go_their_own_ways(spec):
    """What the planner relies on: a batch is the same as playing one by one, and nothing is changed in place."""
    game = GAMES[spec.env_id](**spec.env_kwargs)
    rng = np.random.default_rng(1)
    first = game.reset(rng)
    state, kept = np.repeat(first[None], 3, axis=0), first.copy()
    actions = rng.uniform(-1, 1, (40, 3, game.action_dim))
    single = [first] * 3
    for action in actions:
        before = state.copy()
        after = game.step(state, action)
        np.testing.assert_array_equal(state, before)
        state = after
        single = [game.step(one[None], action[i : i + 1])[0] for i, one in enumerate(single)]
    np.testing.assert_allclose(state, np.stack(single), atol=1e-12)
    np.testing.assert_array_equal(first, kept)
    assert game.reward(state).shape == game.success(state).shape == (3,)
    assert not np.array_equal(state[0], state[1])


@pytest.mark.parametrize("name", GAMES)
def test_every_game_draws_itself_without_a_display(name):
    spec = next(spec for spec in TASKS if spec.env_id == name)
    pytest.importorskip("pygame")
    simulator = MiniArcade(name, spec.env_kwargs, render_size=64)
    simulator.reset(0)
    before = simulator.render()
    for _ in range(60):
        simulator.step(np.full(len(simulator.low), 0.7))
    after = simulator.render()
    assert before.shape == after.shape == (64, 64, 3)
    assert before.dtype == np.uint8
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 3
    assert not np.array_equal(before, after)


def test_state_and_score_need_no_pygame():
    code = (
        "import sys; sys.modules['pygame'] = None\n"
        "from pipeline.tasks.registry import get, make\n"
        "env = make(get(['pygame-pong'])[0], 8, 1, render_size=32); env.reset(seed=0); env.step([0.0])\n"
        "env.render()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert RenderingUnavailable.__name__ in result.stderr
    assert "pip install 'eft[miniarcade]'" in result.stderr


def test_an_unknown_game_names_its_neighbours():
    with pytest.raises(ValueError, match="`cowboy`"):
        MiniArcade("cowboys", {})


def test_pong_counts_points_and_ends_at_three():
    game = pong.Pong()
    state = begin(game)
    state[[pong.MINE, pong.X, pong.Y, pong.VX, pong.VY]] = 0.9, 0.97, 0.2, 0.05, 0
    state, reward = play(game, state, [0])  # past the paddle, which is far away
    assert (reward, state[pong.LOST], state[pong.X]) == (-1, 1, 0.5)
    state[[pong.OTHER, pong.X, pong.Y, pong.VX, pong.VY]] = 0.9, 0.02, 0.2, -0.05, 0
    state, reward = play(game, state, [0])
    assert (reward, state[pong.MADE]) == (1, 1)
    state[pong.MADE] = pong.POINTS
    rest, reward = play(game, state, *[[1]] * 100)
    assert reward == 0
    assert rest[[pong.X, pong.Y]].tolist() == state[[pong.X, pong.Y]].tolist()


def test_pong_reflects_the_ball_by_where_it_is_hit():
    game = pong.Pong()
    state = begin(game)
    for offset in (-0.06, 0.0, 0.06):
        state[[pong.MINE, pong.X, pong.Y, pong.VX, pong.VY]] = 0.5, 0.92, 0.5 + offset, 0.022, 0
        after, reward = play(game, state, [0])
        assert reward == 0
        assert after[pong.VX] == -0.022
        assert np.sign(after[pong.VY]) == np.sign(offset)


def test_coins_hang_at_heights_and_crates_trip():
    game = coinrun.Coinrun()
    state = begin(game)
    game._heights[:], game._crates[:] = 0.05, False
    _, reward = play(game, state, *[[0]] * 100)
    assert reward == 11  # 100 steps of 0.115
    game._heights[:] = 0.5
    assert play(game, state, *[[0]] * 100)[1] == 0  # nobody jumped
    game._crates[0, 0] = True
    after, _ = play(game, state, *[[0]] * 14)  # the crate at 1.5 is reached in step 14
    assert after[coinrun.STUMBLING] == coinrun.STUMBLE
    assert play(game, after, *[[0]] * 12)[0][coinrun.X] == after[coinrun.X]
    over, _ = play(game, state, *[[0]] * 9, *[[1]] * 5)
    assert over[coinrun.STUMBLING] == 0


def test_a_full_jump_reaches_the_highest_coin():
    game = coinrun.Coinrun()
    state, heights = begin(game), []
    for _ in range(9):
        state, _ = play(game, state, [1])
        heights.append(state[coinrun.HEIGHT])
    assert 0.5 - coinrun.REACH < max(heights) < 0.8


def test_the_cowboy_falls_off_and_climbs_back():
    game = cowboy.Cowboy()
    state = begin(game)
    state[[cowboy.LEAN, cowboy.SPEED]] = cowboy.LIMIT, 0.1
    state, reward = play(game, state, [0])
    assert (reward, state[cowboy.WALKING], state[cowboy.LEAN]) == (0, cowboy.BACK, 0)
    state, reward = play(game, state, *[[0]] * (cowboy.BACK - 1))
    assert reward == 0
    assert play(game, state, [0])[1] == pytest.approx(1, abs=0.05)


def test_a_shot_takes_the_lowest_asteroid_above():
    game = spaceship.Spaceship()
    state = begin(game)
    game._start[:], game._fall[:], game._x[:] = 1000, 0.01, 0.9
    game._x[0, :2], game._start[0, :2] = 0.5, [-60, -30]  # one at 0.44, one at 0.74
    state[spaceship.X] = 0.5
    state, reward = play(game, state, [0, 0])
    assert reward == 1
    assert state[spaceship.ALIVE][:3].tolist() == [0, 1, 1]
    assert play(game, state, *[[0, 0]] * (spaceship.RELOAD - 1))[1] == 0
    assert play(game, state, *[[0, 0]] * spaceship.RELOAD)[1] == 1


def test_flying_into_an_asteroid_costs_a_point():
    game = spaceship.Spaceship()
    state = begin(game)
    game._start[:], game._fall[:], game._x[:] = 1000, 0.01, 0.9
    game._x[0, 0], game._start[0, 0] = 0.5, -90
    state[[spaceship.X, spaceship.Y, spaceship.LOADING]] = 0.5, 0.13, 3
    state, reward = play(game, state, [0, 0])
    assert (reward, state[spaceship.ALIVE][0]) == (-1, 0)


def test_a_bird_is_hit_or_pecks():
    game = bird_attack.BirdAttack()
    state = begin(game)
    game._start[:], game._waves[:] = 10_000, 0
    game._start[0, 0] = 0
    state[bird_attack.X] = state[bird_attack.PLACE][0] = 0.5
    after, reward = play(game, state, *[[0, -1]] * 90)
    assert (reward, after[bird_attack.ALIVE].sum()) == (-1, bird_attack.BIRDS - 1)
    after, reward = play(game, state, *[[0, 1]] * 90)
    assert (reward, after[bird_attack.ALIVE].sum()) == (1, bird_attack.BIRDS - 1)


def test_a_crash_on_the_highway_takes_speed_and_points():
    game = highway.Highway()
    state = begin(game)
    game._lane[:], game._start[:], game._pace[:] = 0, 1000, 0.012
    state[[highway.X, highway.SPEED]] = 1, highway.FAST
    assert play(game, state, *[[0, 1]] * 500)[1] == pytest.approx(10)
    game._lane[0, 0], game._start[0, 0] = 1, 0.12
    state, reward = play(game, state, [0, 1])
    assert reward == pytest.approx(10 * 0.006 / highway.FAST / 500 - highway.CRASH_COST)
    assert state[[highway.SPEED, highway.SPARED]].tolist() == [0.006, highway.SAFE]


def test_only_a_gentle_landing_on_the_pad_counts():
    game = landing.Landing()
    state = begin(game)
    for vy, aside, tilt, whole in ((-0.005, 0, 0, 1), (-0.05, 0, 0, 0), (-0.005, 0.2, 0, 0), (-0.005, 0, 1, 0)):
        state[:8] = state[landing.PAD_X] + aside, landing.FLOOR + 0.004, 0, vy, tilt, 0, 0, 0
        after, reward = play(game, state, [-1, 0])
        assert (after[landing.LANDED], after[landing.CRASHED], reward) == (whole, 1 - whole, whole)
        assert play(game, after, *[[1, 1]] * 10)[1] == 10 * whole


def test_goals_count_and_the_puck_is_served_again():
    game = air_hockey.AirHockey()
    state = begin(game)
    for y, vy, reward in ((0.97, 0.05, 1), (0.03, -0.05, -1)):
        state[air_hockey.PLACE], state[air_hockey.VELOCITY] = [0.5, y], [0, vy]
        state[air_hockey.MINE], state[air_hockey.OTHER] = [0.1, 0.2], [0.9, 0.8]
        after, got = play(game, state, [0, 0])
        assert got == reward
        assert np.sign(after[air_hockey.PLACE][1] - 0.5) == reward
        state[air_hockey.PLACE] = [0.05, y]  # beside the goal it bounces
        after, got = play(game, state, [0, 0])
        assert got == 0
        assert np.sign(after[air_hockey.VELOCITY][1]) == -np.sign(vy)


def test_a_mallet_drives_the_puck_away():
    game = air_hockey.AirHockey()
    state = begin(game)
    state[air_hockey.MINE], state[air_hockey.PLACE], state[air_hockey.VELOCITY] = [0.5, 0.2], [0.5, 0.32], 0
    after, _ = play(game, state, [0, 1])
    assert after[air_hockey.VELOCITY][1] > air_hockey.SPEED
    assert (
        np.linalg.norm(after[air_hockey.PLACE] - after[air_hockey.MINE]) >= air_hockey.MALLET + air_hockey.PUCK - 1e-9
    )


def test_a_star_is_taken_once():
    game = rocket_collect.RocketCollect()
    state = begin(game)
    state[:2] = game.stars[0, 0]
    game.stars[0, 1] = game.stars[0, 0] + [0.3, 0]
    state, reward = play(game, state, [0, 0])
    assert (reward, state[rocket_collect.TAKEN]) == (1, 1)
    assert play(game, state, [0, 0])[1] == 0


def test_chasing_and_evading_have_opposite_rewards():
    game = chase_evade.ChaseEvade()
    state = begin(game)
    for time, sign in ((10, 1), (110, -1), (210, 1)):
        state[chase_evade.ME], state[chase_evade.OTHER], state[chase_evade.TIME] = [0.5, 0.5], [0.5, 0.5], time
        assert game.reward(state[None])[0] == pytest.approx(0.1 * sign)
        state[chase_evade.OTHER] = [0.5, 1.4]
        assert game.reward(state[None])[0] == pytest.approx(-0.1 * sign)


def test_a_coconut_hits_whoever_stands_below():
    game = coconut_dodge.CoconutDodge()
    state = begin(game)
    game._start[:] = 1000
    game._start[0, 0], game._x[0, 0], game._speed[0, 0] = 0, 0.5, 0.02
    state[coconut_dodge.X] = 0.5
    assert play(game, state, *[[0]] * 100)[1] == -1
    assert play(game, state, *[[1]] * 100)[1] == 0


def test_a_pole_at_rest_keeps_standing_and_one_that_leans_falls():
    game = cartpole.CartPole()
    begin(game)
    still = np.zeros(5)
    after, reward = play(game, still, *[[0]] * 50)
    assert reward == pytest.approx(50)
    assert after[cartpole.ANGLE] == 0
    leaning = still.copy()
    leaning[cartpole.ANGLE] = 0.1
    assert abs(play(game, leaning, *[[0]] * 20)[0][cartpole.ANGLE]) > 0.5
    sparse = cartpole.CartPole(sparse=True)
    begin(sparse)
    assert play(sparse, still, *[[0]] * 50)[1] == 50
    hanging = begin(cartpole.CartPole(hanging=True))
    assert abs(abs(hanging[cartpole.ANGLE]) - np.pi) <= 0.1
    wall, _ = play(game, still, *[[1]] * 100)
    assert wall[cartpole.X] == cartpole.TRACK


def test_a_tremor_shakes_the_cart_and_is_seen():
    game = cartpole.CartPole(tremor=True)
    begin(game)
    state = np.zeros(5)
    assert play(game, state, *[[0]] * 5)[0][cartpole.X] != 0
    assert game.observe(state[None])[0, 5] != 0
    assert np.abs(game._shaking(np.arange(500.0))).max() <= cartpole.TREMOR


def test_the_reacher_is_paid_inside_the_target():
    game = reacher.Reacher(radius=0.05)
    state = begin(game)
    state[:] = 0, 0, 0, 0, reacher.UPPER + reacher.LOWER, 0  # stretched out to the right, onto the target
    assert play(game, state, [0, 0])[1] == 1
    assert game.observe(state[None])[0, 6:8] == pytest.approx([0, 0])
    state[reacher.TARGET_Y] = 0.06
    assert play(game, state, [0, 0])[1] == 0


def test_walls_of_a_maze_stop_the_point_across_them_only():
    game = GAMES["point-maze"](layout="var4")
    state = begin(game)
    state[:2] = 1, 5  # the top corridor, which leads right
    after, _ = play(game, state, *[[1, 1]] * 10)
    assert after[0] == pytest.approx(2)
    assert after[1] < 5.4
    state[:2] = state[2:]
    arrived = game.step(state[None], np.zeros((1, 2)))
    assert game.success(arrived)[0]
    assert game.reward(arrived)[0] == 0
