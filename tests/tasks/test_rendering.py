import dataclasses

import numpy as np
import pytest

from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real


def image_of(env):
    try:
        image = env.render()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    return image


def make(name):
    env = registry.make(registry.get([name])[0], 128, 16, render_size=96)
    env.reset(seed=0)
    return env


def mean_row(mask):
    return np.nonzero(mask)[0].mean()


def test_dm_control_images_are_upright():
    env = make("pendulum-swingup")
    rows = []
    for angle in (0.0, np.pi):  # the pole up, then down
        with env.simulator.physics.reset_context():
            env.simulator.physics.named.data.qpos["hinge"] = angle
        red, _, blue = image_of(env).astype(int).transpose(2, 0, 1)
        rows.append(mean_row(red > blue + 60))  # the pole is orange, the world blue
    env.close()
    assert rows[0] < rows[1] - 10


def test_meta_world_images_are_upright():
    env = make("mw-reach")
    rows = []
    for height in (1.0, -1.0):
        env.reset(seed=0)
        action = np.zeros(16, np.float32)
        action[2] = height
        for _ in range(15):
            env.step(action)
        red, green, blue = image_of(env).astype(int).transpose(2, 0, 1)
        rows.append(mean_row((red > green + 60) & (red > blue + 60)))  # the arm is red
    env.close()
    assert rows[0] < rows[1] - 1


def test_gymnasium_images_have_the_size_asked_for():
    spec = registry.get(["pendulum-swingup"])[0]
    values = {"suite": "gymnasium", "env_id": "InvertedPendulum-v5", "obs_dim": 4}
    env = registry.make(dataclasses.replace(spec, **values), 8, 2, render_size=96)
    env.reset(seed=0)
    assert image_of(env).std() > 0
    env.close()


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    env = make("pendulum-swingup")  # simulating needs no driver
    with pytest.raises(RenderingUnavailable, match="libegl1 libegl-mesa0 libgl1-mesa-dri"):
        env.render()
