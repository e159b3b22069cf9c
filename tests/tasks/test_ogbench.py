"""Our mazes on OGBench's bodies."""

import numpy as np
import pytest

pytest.importorskip("ogbench")

from pipeline.tasks.ogbench import LAYOUTS, OGBench


def started(env_id, seed=0):
    simulator = OGBench(env_id, {})
    simulator.reset(seed)
    return simulator


def test_the_point_moves_and_walls_stop_it():
    simulator = started("point/arena")
    before = simulator.env.data.qpos.copy()
    simulator.step(np.array([1.0, 0.5]))
    np.testing.assert_allclose(simulator.env.data.qpos - before, [0.2, 0.1], atol=0.02)
    for _ in range(200):
        simulator.step(np.array([-1.0, -1.0]))
    # Five cells of 4 m lie between the walls; the ball's radius is 0.7 m, and it is pushed 0.2 m into them.
    np.testing.assert_allclose(simulator.env.data.qpos, [-9.3, -9.3], atol=0.25)


def test_at_the_goal_the_reward_is_zero_and_elsewhere_it_counts_the_way():
    simulator = started("point/spiral")
    reward, *_, success = simulator.step(np.zeros(2))
    start = simulator.env.data.qpos[:2].copy()
    assert -1 <= reward < -0.5
    assert not success
    way = simulator.goal.left(start)
    assert way > 1.5 * np.linalg.norm(start - simulator.goal.target)  # around the walls
    simulator.env.set_xy(simulator.goal.target)
    reward, *_, success = simulator.step(np.zeros(2))
    assert (reward, success) == (0, True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_point_and_ant_see_where_the_goal_is(layout):
    point, ant = started(f"point/{layout}"), started(f"ant/{layout}")
    for simulator in (point, ant):
        seen = np.zeros(simulator.obs_dim, np.float32)
        simulator.observe(seen)
        np.testing.assert_allclose(seen[:2] + seen[-2:], simulator.goal.target, rtol=1e-5)
        np.testing.assert_allclose(simulator.env.model.geom("target").pos[:2], simulator.goal.target)


def test_the_ant_is_told_another_direction_every_hundred_steps():
    simulator = started("ant/run")
    seen = np.zeros(simulator.obs_dim, np.float32)
    directions = []
    for _ in range(201):
        simulator.observe(seen)
        directions.append(tuple(seen[-2:]))
        before = simulator.env.data.qpos[:2].copy()
        reward, *_ = simulator.step(np.zeros(8))
        assert reward == pytest.approx((simulator.env.data.qpos[:2] - before) @ np.array(directions[-1]), abs=1e-6)
    assert len(set(directions)) == 3
    assert len(set(directions[:100])) == 1
    assert np.linalg.norm(directions, axis=1) == pytest.approx(1)


def test_pushing_the_ball_onto_the_target_succeeds():
    simulator = started("ant/ball")
    qpos, qvel = simulator.env.data.qpos.copy(), simulator.env.data.qvel.copy()
    qpos[-7:-5] = simulator.goal.target + np.array([0.4, 0])
    simulator.env.set_state(qpos, 0 * qvel)
    assert simulator.step(np.zeros(8))[3]
    qpos[-7:-5] = simulator.goal.target + np.array([0.7, 0])
    simulator.env.set_state(qpos, 0 * qvel)
    assert not simulator.step(np.zeros(8))[3]


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="`point/spiral`"):
        OGBench("point/spirals", {})
    with pytest.raises(ValueError, match="without env_kwargs"):
        OGBench("point/spiral", {"cells": 3})
