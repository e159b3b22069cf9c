"""What our own Box2D tasks, the Atari games and the unending MuJoCo tasks do."""

import numpy as np
import pytest

pytest.importorskip("Box2D")
pytest.importorskip("ale_py")
pytest.importorskip("mujoco")

from gymnasium.envs.box2d.lunar_lander import heuristic

from pipeline.tasks.atari import Atari
from pipeline.tasks.box2d import Box2D, _relief
from pipeline.tasks.gymnasium_mujoco import GymnasiumMuJoCo


def observe(task):
    out = np.zeros(task.obs_dim, np.float32)
    task.observe(out)
    return out


def test_the_five_grounds_differ_as_their_names_say():
    rough = {
        ground: np.abs(np.diff(_relief(ground, np.random.default_rng(0)))) for ground in ("flat", "rugged", "hills")
    }
    assert not rough["flat"].any()
    assert rough["rugged"].max() > 0.3 > rough["hills"].max() > 0.02
    heights = _relief("hills", np.random.default_rng(0))
    assert np.ptp(heights) > 0.8
    for ground in ("rugged", "hills"):
        assert not _relief(ground, np.random.default_rng(0))[:20].any()  # it starts on level ground


def test_a_walker_that_falls_pays_and_terminates():
    walker = Box2D("walker/flat", {})
    walker.reset(0)
    for _ in range(300):
        reward, terminated, truncated, _ = walker.step(np.zeros(4))
        if terminated:
            break
    assert (reward, terminated, truncated) == (-100, True, False)


def fly(mission, control, num_steps=500):
    lander = Box2D(f"lander/{mission}", {})
    lander.reset(1)
    rewards = []
    for _ in range(num_steps):
        reward, terminated, *_ = lander.step(control(lander.env, observe(lander)))
        rewards.append(reward)
        if terminated:
            break
    return rewards


def hold_height(_, state):
    tilt = np.clip(0.5 * state[0] + state[2], -0.4, 0.4)
    turn = 0.5 * (tilt - state[4]) - state[5]
    return np.clip([20 * (0.9 - state[1] - 1.5 * state[3]), -20 * turn], -1, 1)


@pytest.mark.parametrize(
    ("mission", "control"), [("land", heuristic), ("hover", hold_height), ("takeoff", hold_height)]
)
def test_a_simple_pilot_earns_most_of_each_mission(mission, control):
    rewards = fly(mission, control)
    assert len(rewards) == 500  # a lander at rest goes on
    assert max(rewards) <= 1
    assert 330 < sum(rewards) < 500
    assert sum(fly(mission, lambda *_: np.zeros(2))) < 150


def test_an_unknown_mission_or_game_names_near_ones():
    with pytest.raises(ValueError, match="Did you mean `lander/land`"):
        Box2D("lander/lands", {})
    with pytest.raises(ValueError, match="Did you mean .*`ALE/Pong-v5`"):
        Atari("ALE/Ponk-v5", {})
    with pytest.raises(ValueError, match="Did you mean `Ant-v5`"):
        GymnasiumMuJoCo("Ant-v4", {})


def test_a_game_starts_over_exactly_and_ends():
    pong = Atari("ALE/Pong-v5", {})
    pong.reset(3)
    first, rewards = observe(pong), []
    assert 0 < first.max() <= 1
    terminated = False
    while not terminated:
        reward, terminated, *_ = pong.step(np.array([1.0, np.pi / 2, 1.0]))
        rewards.append(reward)
    assert sum(rewards) <= -20  # a paddle held up loses every rally
    pong.reset(3)
    np.testing.assert_array_equal(observe(pong), first)


def test_the_joystick_moves_as_its_angle_says():
    boxing = Atari("ALE/Boxing-v5", {})
    seen = {}
    for name, angle in {"right": 0.0, "up": np.pi / 2, "left": np.pi}.items():
        boxing.reset(0)
        for _ in range(20):
            boxing.step(np.array([1.0, angle, 0.0]))
        seen[name] = observe(boxing)[[32, 34]] * 255  # where the white boxer stands, across and down
    boxing.reset(0)
    for _ in range(20):
        boxing.step(np.array([0.3, 0.0, 0.0]))  # within the dead zone
    still = observe(boxing)[[32, 34]] * 255
    assert seen["right"][0] > still[0] + 10
    assert seen["left"][0] <= still[0] < seen["right"][0]
    assert seen["up"][1] <= still[1]


def test_a_fallen_hopper_goes_on_and_pays():
    hopper = GymnasiumMuJoCo("Hopper-v5", {})
    hopper.reset(0)
    steps = [hopper.step(np.zeros(3)) for _ in range(300)]
    assert not any(terminated or truncated for _, terminated, truncated, _ in steps)
    assert steps[0][0] > 0
    assert steps[-1][0] == -1


def test_a_fallen_pole_earns_nothing_and_goes_on():
    pendulum = GymnasiumMuJoCo("InvertedPendulum-v5", {})
    pendulum.reset(0)
    steps = [pendulum.step(np.ones(1)) for _ in range(100)]
    assert (steps[0][0], steps[-1][0]) == (1, 0)
    assert not any(step[1] for step in steps)
