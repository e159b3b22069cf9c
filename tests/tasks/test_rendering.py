import ctypes.util
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

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
    monkeypatch.setenv("EFT_CANNOT_DRAW", "of before")
    env = make("pendulum-swingup")  # simulating needs no driver
    with pytest.raises(RenderingUnavailable, match=r"MUJOCO_GL=nothing is not known.*libegl1 libegl-mesa0"):
        env.render()
    env.close()


def test_a_scene_that_cannot_be_drawn_is_the_same_as_no_driver(monkeypatch):
    import mujoco

    def fails(*arguments):
        raise mujoco.FatalError("an OpenGL platform library has not been loaded")

    image_of(make("mw-reach"))  # or skip
    monkeypatch.setattr(mujoco, "MjrContext", fails)
    env = make("mw-reach")
    with pytest.raises(RenderingUnavailable, match="did not start .*an OpenGL platform library"):
        env.render()
    env.close()


ALONE = """
import pipeline.demonstrate.shaping
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.vector import VectorEnv

envs = []
for spec in registry.load_catalogue("own.yaml").values():
    if spec.name in ("mw-reach", "cheetah-run", "own"):
        envs.append(registry.make(spec, spec.obs_dim, spec.action_dim, render_size=32))
        envs[-1].reset(seed=0)
assert len(envs) == 3
print("states")
for env in 2 * envs:
    try:
        env.render()
        print("drawn")
    except RenderingUnavailable as error:
        print("cannot:", error)
try:
    with VectorEnv([envs[0].task], 39, 6, 0, 1, image_size=32) as vector:
        vector.reset()
except RuntimeError as error:
    print("worker:", str(error).replace(chr(10), " "))
"""
OWN = """
{name: own, suite: gymnasium, env_id: InvertedPendulum-v5, embodiment: A cart., instructions: [Balance.], obs_dim: 4,
action_dim: 1, action_repeat: 1, episode_length: 9, score: return/1000}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries are those of Linux")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUJOCO_GL": "osmesa"}, "MUJOCO_GL=osmesa needs libOSMesa.so, which is not on this machine"),
        ({"MUJOCO_GL": "OSMesa"}, "MUJOCO_GL=osmesa needs libOSMesa.so, which is not on this machine"),
        ({"MUJOCO_GL": "vulkan"}, "MUJOCO_GL=vulkan is not known"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "glx"}, "MUJOCO_GL=egl contradicts PYOPENGL_PLATFORM=glx"),
        ({"MUJOCO_GL": "off"}, "MUJOCO_GL=off turns it off"),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL"),
        ({"MUJOCO_GL": "glfw", "DISPLAY": ":99"}, "MUJOCO_GL"),
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"}, "MUJOCO_GL"),
        ({"MUJOCO_GL": "", "MUJOCO_EGL_DEVICE_ID": "99"}, "MUJOCO_GL"),
    ],
    ids=str,
)
def test_states_need_no_opengl_and_images_name_what_is_missing(variables, message, tmp_path):
    if variables["MUJOCO_GL"].lower() == "osmesa" and ctypes.util.find_library("OSMesa"):
        pytest.skip("it is on this machine")
    (tmp_path / "own.yaml").write_text(OWN)
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(Path.cwd())} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    states, *cannot, worker = done.stdout.splitlines()
    assert states == "states"
    assert len(cannot) == 6
    for line in (*cannot, worker):
        assert line.startswith(("cannot:", "worker:"))
        assert message in line
