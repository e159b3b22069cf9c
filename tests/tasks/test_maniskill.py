"""ManiSkill's tasks beyond what every task must do: missing files and drivers, our variants, objects of the YCB set."""

import json

import numpy as np
import pytest

from pipeline.tasks import domains, registry
from pipeline.tasks.vector import VectorEnv, WorkerError

pytestmark = pytest.mark.slow
ACTION, OBS = 12, 128


@pytest.fixture
def make():
    """Return a function that builds a task by name, or skips where ManiSkill or its files are not there."""
    pytest.importorskip("mani_skill", reason=f"mani_skill is not installed: {domains.install('maniskill')}")
    made = []

    def build(name):
        try:
            env = registry.make(registry.get([name])[0], OBS, ACTION)
        except (domains.AssetsUnavailable, domains.DomainUnavailable) as error:
            pytest.skip(f"{name}: {error}")
        made.append(env)
        return env

    yield build
    for env in made:
        env.close()


def test_missing_files_are_named_with_the_command_that_fetches_them(make, tmp_path, monkeypatch):
    make("ms-push-cube")
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    for name, what in (("ms-pick-apple", "ycb"), ("ms-reach-xarm6", "xarm6")):
        with pytest.raises(WorkerError, match=f"AssetsUnavailable.*{tmp_path}.*download_asset {what}"):
            VectorEnv(registry.get([name]), OBS, ACTION, 0, num_workers=1)


def test_a_missing_driver_is_named_with_its_package(make, tmp_path, monkeypatch):
    make("ms-push-cube")
    (tmp_path / "none.json").write_text("{}")
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(variable, str(tmp_path / "none.json"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(WorkerError, match=r"found no Vulkan device[\s\S]*mesa-vulkan-drivers"):
        VectorEnv(registry.get(["ms-push-cube"]), OBS, ACTION, 0, num_workers=1)


def test_objects_of_the_ycb_set_are_read_from_where_maniskill_keeps_them(make, tmp_path, monkeypatch):
    make("ms-push-cube")
    trimesh = pytest.importorskip("trimesh")
    folder, info = tmp_path / "data/assets/mani_skill2_ycb", {}
    for model in ("013_apple", "016_pear"):  # boxes in the form of the set, whose scans are not ours to ship
        (folder / "models" / model).mkdir(parents=True)
        box = trimesh.creation.box((0.06, 0.06, 0.06))
        box.export(folder / "models" / model / "collision.ply")
        box.export(folder / "models" / model / "textured.obj")
        info[model] = {"bbox": {"min": [-0.03] * 3, "max": [0.03] * 3}, "scales": [1.0], "density": 1000}
    (folder / "info_pick_v0.json").write_text(json.dumps(info))
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    specs = registry.get(["ms-pick-apple", "ms-push-pear"])
    with VectorEnv(specs, OBS, ACTION, 0, num_workers=1) as envs:
        first = envs.reset()
        for _ in range(3):
            step = envs.step(np.zeros((2, ACTION), np.float32))
        assert np.isfinite(step.obs).all()
        assert ((step.reward >= 0) & (step.reward <= 2)).all()
        np.testing.assert_array_equal(envs.reset(), first)


def test_reach_succeeds_where_the_tool_is_at_the_goal_and_still(make):
    env = make("ms-reach")
    obs, _ = env.reset(seed=0)
    rewards, success = [], False
    for _ in range(env.task.episode_length):
        toward = obs[28:31]  # goal minus tool, in the robot's own axes, which are the world's
        action = np.zeros(ACTION, np.float32)
        action[:3] = np.clip(toward * 3, -1, 1)
        obs, reward, _, _, info = env.step(action)
        rewards.append(reward)
        success = info["success"]
    assert success
    assert rewards[0] < 1 < rewards[-1] == pytest.approx(2)


def test_an_ant_succeeds_when_it_is_fast_and_on_its_feet(make):
    env = make("ms-ant-walk")
    env.reset(seed=0)
    assert not env.step(np.zeros(ACTION, np.float32))[-1]["success"]
    inner = env.simulator.env
    inner.SPEED = -1.0  # so that it is fast enough where it stands
    assert bool(inner.evaluate()["success"])
    torso = inner.agent.robot.get_pose().sp
    torso.set_p(torso.p - [0, 0, 0.3])
    inner.agent.robot.set_pose(torso)
    assert not bool(inner.evaluate()["success"])


def test_a_sparse_cartpole_pays_only_upright_near_the_middle(make):
    env = make("ms-cartpole-balance-sparse")
    env.reset(seed=0)
    inner = env.simulator.env
    for position, angle, expected in ((0.0, 0.0, 1), (0.0, 0.2, 0), (0.4, 0.0, 0), (0.2, 0.05, 1)):
        inner.agent.robot.set_qpos(np.array([[position, angle]], np.float32))
        assert float(inner.compute_dense_reward(None, None, {})) == expected


def test_it_draws_without_a_display(make):
    make("ms-push-cube")
    env = registry.make(registry.get(["ms-push-cube"])[0], OBS, ACTION, render_size=64)
    env.reset(seed=0)
    image = env.render()
    env.close()
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
