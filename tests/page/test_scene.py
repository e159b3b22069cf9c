"""MuJoCo's shapes and poses as the browser gets them."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tasks.physics import mujoco_of
from pipeline.tasks.registry import get, make

pytest.importorskip("viser", reason="the page needs the extra: pip install 'eft[play]'")
mujoco = pytest.importorskip("mujoco")

from pipeline.page.geometry import colour_of, shape_of, texture_of  # noqa: E402
from pipeline.page.scene import ImageScene, open_scene, update_scene, view_of  # noqa: E402

pytestmark = pytest.mark.slow  # simulators and a server run for real

SHAPES = """
<mujoco>
  <asset>
    <texture name="check" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="8" height="8"/>
    <material name="check" texture="check" texrepeat="4 4"/>
    <material name="red" rgba="1 0 0 1"/>
    <mesh name="tent" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/>
    <hfield name="hills" nrow="3" ncol="4" size="2 1 0.5 0.1" elevation="0 0 0 0 0 1 1 0 0 0 0 0"/>
  </asset>
  <worldbody>
    <geom name="plane" type="plane" size="2 3 0.1" material="check"/>
    <geom name="endless" type="plane" size="0 0 0.1"/>
    <geom name="hills" type="hfield" hfield="hills"/>
    <body>
      <geom name="sphere" type="sphere" size="0.3"/>
      <geom name="box" type="box" size="0.1 0.2 0.3" material="red"/>
      <geom name="capsule" type="capsule" size="0.1 0.4" material="red" rgba="0 1 0 1"/>
      <geom name="cylinder" type="cylinder" size="0.1 0.4"/>
      <geom name="ellipsoid" type="ellipsoid" size="0.1 0.2 0.3"/>
      <geom name="tent" type="mesh" mesh="tent"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(SHAPES)


def shape(model, name: str):
    geom = model.geom(name).id
    return shape_of(model, int(model.geom_type[geom]), model.geom_size[geom], geom)


def opened(server, task: str):
    """Return the environment of a task at the start of an episode, and its scene."""
    (spec,) = get([task])
    env = make(spec, spec.obs_dim, spec.action_dim, 64)
    env.reset(seed=0)
    return env, open_scene(server, env)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("sphere", [0.3, 0.3, 0.3]), ("box", [0.1, 0.2, 0.3]), ("capsule", [0.1, 0.1, 0.5]),
        ("cylinder", [0.1, 0.1, 0.4]), ("ellipsoid", [0.1, 0.2, 0.3]), ("plane", [2, 3, 0]),
    ],
)  # fmt: skip
def test_a_shape_is_as_large_as_mujoco_s_and_looks_outwards(model, name, half):
    found = shape(model, name)
    assert found is not None
    np.testing.assert_allclose(found.vertices.max(0), half, rtol=0.01, atol=1e-9)
    np.testing.assert_allclose(found.vertices.min(0), np.negative(half), rtol=0.01, atol=1e-9)
    a, b, c = (found.vertices[found.faces[:, corner]] for corner in range(3))
    normals, middles = np.cross(b - a, c - a), (a + b + c) / 3
    assert ((normals * middles).sum(1) >= -1e-12).all()


def test_meshes_and_hills_are_mujoco_s(model):
    tent, hills = shape(model, "tent"), shape(model, "hills")
    assert tent is not None
    assert hills is not None
    assert len(tent.faces) == 4
    np.testing.assert_allclose(np.ptp(tent.vertices, axis=0).max(), 2**0.5, rtol=0.5)
    np.testing.assert_allclose(hills.vertices.max(0), [2, 1, 0.5])
    assert len(hills.faces) == 2 * 2 * 3
    assert shape(model, "endless").vertices.max() > 10


def test_a_floor_repeats_its_texture_and_others_take_its_mean(model):
    floor = shape(model, "plane")
    assert floor is not None
    assert floor.uv is not None
    np.testing.assert_allclose(np.ptp(floor.uv, axis=0), [4, 4])  # four times over the whole side
    material = int(model.geom_matid[model.geom("plane").id])
    image = texture_of(model, material)
    assert image is not None
    assert image.shape == (8, 8, 3)
    np.testing.assert_allclose(colour_of(model, np.array([0.5, 0.5, 0.5, 1]), material), [0.5, 0, 0.5, 1], atol=0.01)


@pytest.mark.parametrize(("name", "expected"), [("box", [1, 0, 0, 1]), ("capsule", [0, 1, 0, 1])])
def test_a_geom_s_own_colour_counts_before_its_material_s(model, name, expected):
    geom = model.geom(name).id
    np.testing.assert_allclose(colour_of(model, model.geom_rgba[geom], int(model.geom_matid[geom])), expected)


@pytest.mark.parametrize(
    "name", ["walker-walk", "mw-reach", "og-point-maze", "og-ant", "mujoco-ant", "rd-push-red", "cup-catch"]
)
def test_bodies_are_drawn_where_mujoco_has_them(server, name):
    env, scene = opened(server, name)
    for step in range(3):
        env.step(np.full(env.task.action_dim, 0.5 * (-1) ** step, np.float32))
        scene = update_scene(server, scene, env)
    assert not isinstance(scene, ImageScene)
    _, data = mujoco_of(env)
    assert len(scene._frames) > 1
    for body, frame in scene._frames.items():
        np.testing.assert_allclose(frame.position, data.xpos[body], atol=1e-4)
        np.testing.assert_allclose(frame.wxyz, data.xquat[body], atol=1e-4)
    assert np.isfinite(view_of(env)).all()
    scene.remove()
    env.close()


def test_a_goal_that_a_new_episode_moves_is_drawn_anew(server):
    env, scene = opened(server, "og-point-maze")
    target = mujoco_of(env)[0].geom("target").id
    seen = set()
    for seed in range(1, 6):
        env.reset(seed=seed)
        scene = update_scene(server, scene, env)
        place = np.frombuffer(scene._drawn[f"geom{target}"])[3:5]  # after its size
        np.testing.assert_allclose(place, env.simulator.goal.target)
        seen.add(tuple(place))
    assert len(seen) > 1
    env.close()


def test_a_body_that_travels_stays_in_view(server):
    env, scene = opened(server, "cheetah-run")
    model, data = mujoco_of(env)
    data.qpos[0] = 30.0
    mujoco.mj_forward(model, data)
    update_scene(server, scene, env)
    torso = scene._followed
    assert abs(data.xpos[torso, 0] + scene._root.position[0]) < 1.1
    env.close()


def test_games_are_shown_as_images(server):
    (spec,) = get(["pygame-pong"])
    env = make(spec, spec.obs_dim, spec.action_dim, 64)
    env.reset(seed=0)
    scene = open_scene(server, env)
    assert isinstance(scene, ImageScene)
    assert update_scene(server, scene, env) is scene
    env.close()
