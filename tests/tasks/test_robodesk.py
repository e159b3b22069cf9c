"""RoboDesk's adapter: its own physics, without its oversights."""

import numpy as np
import pytest

pytest.importorskip("robodesk")

from pipeline.tasks.robodesk import RoboDesk


@pytest.fixture(scope="module")
def desk():
    simulator = RoboDesk("open_slide", {})
    yield simulator
    simulator.close()


def test_a_seed_determines_the_start_and_leaves_the_global_generator_alone(desk):
    before = np.random.get_state()[1].tolist()
    starts = []
    for seed in (0, 1, 0):
        desk.reset(seed)
        starts.append(desk.physics.data.qpos.copy())
    assert np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], starts[1])
    assert np.random.get_state()[1].tolist() == before


def test_places_and_velocities_of_objects_are_seen(desk):
    desk.reset(0)
    seen = np.zeros(desk.obs_dim, np.float32)
    desk.observe(seen)
    named = desk.physics.named.data
    np.testing.assert_allclose(seen[18:21], named.site_xpos["end_effector"], rtol=1e-6)
    np.testing.assert_allclose(seen[22], named.qpos["slide_joint"][0], rtol=1e-6)
    np.testing.assert_allclose(seen[43:46], named.qpos["flat_block"][:3], rtol=1e-6)


def test_a_block_that_moved_is_known_to_have_moved(desk):
    desk.reset(0)
    assert desk.desk._did_not_move("ball")
    desk.physics.named.data.qpos["ball"][0] += 0.1
    desk.physics.forward()
    assert not desk.desk._did_not_move("ball")


def test_success_is_the_open_door(desk):
    desk.reset(0)
    assert not desk.step(np.zeros(5))[3]
    desk.physics.named.data.qpos["slide_joint"] = 0.58
    reward, terminated, truncated, success = desk.step(np.zeros(5))
    assert success
    assert not terminated
    assert not truncated
    assert 0.5 < reward <= 1


def test_an_unknown_task_names_its_neighbours():
    with pytest.raises(ValueError, match="`push_red`"):
        RoboDesk("push_reds", {})
