"""Robomimic's HDF5, written here as its documentation lays it out."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.data.demos import load_demos
from pipeline.importers import robomimic
from pipeline.importers.episodes import Reading, Report, import_episodes
from pipeline.tasks.spec import SUCCESS, TaskSpec

WIDTHS = {"object": 4, "robot0_eef_pos": 3, "robot0_gripper_qpos": 2}


def make_spec(obs_dim: int = 9) -> TaskSpec:
    return TaskSpec(
        name="lift", suite="gymnasium", env_id="tests:tests/None-v0", embodiment="An arm.", instructions=("Lift it.",),
        obs_dim=obs_dim, action_dim=2, action_repeat=1, episode_length=8, score=SUCCESS,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three demonstrations of 5, 6 and 7 steps; the last is done two steps early."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "low_dim.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
        for number, length in ((0, 5), (2, 6), (10, 7)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"], demo["states"] = rng.uniform(-1, 1, (length, 2)), rng.normal(size=(length, 32))
            demo["rewards"] = (np.arange(length) == length - 1).astype(np.float64)
            demo["dones"] = (np.arange(length) >= length - (3 if number == 10 else 1)).astype(np.int64)
            for name, width in WIDTHS.items():
                values = rng.normal(size=(length + 1, width))
                demo[f"obs/{name}"], demo[f"next_obs/{name}"] = values[:-1], values[1:]
            demo["obs/agentview_image"] = np.zeros((length, 8, 8, 3), np.uint8)
        file["mask/train"] = np.array([b"demo_0"])
    return tmp_path / "low_dim.hdf5"


def write(path: Path, spec: TaskSpec, features=(), reading: Reading | None = None) -> Report:
    source = robomimic.read_demos(path, spec, features)
    return import_episodes(source, spec, "x", None, reading or Reading(successful=True), path.parent)


def test_demonstrations_keep_their_last_observation(path: Path) -> None:
    report = write(path, make_spec())
    assert (report.found, report.kept, report.steps) == (3, 3, 5 + 6 + 5)
    assert report.cut == [{"episode": 10, "reason": "2 steps after its end: `dones` is true at step 4"}]
    assert report.ignored == ["obs/agentview_image", "states"]
    assert "observations: object + robot0_eef_pos + robot0_gripper_qpos" in report.notes
    with h5py.File(path) as file:
        for episode, name in zip(load_demos(path.parent, "lift"), ("demo_0", "demo_2", "demo_10"), strict=True):
            demo, length = file["data"][name], len(episode.action)
            before, after = (
                np.concatenate([demo[kind][part][:length] for part in WIDTHS], 1) for kind in ("obs", "next_obs")
            )
            np.testing.assert_allclose(episode.obs, [*before, after[-1]], rtol=1e-6)
            np.testing.assert_allclose(episode.action, demo["actions"][:length], rtol=1e-6)
            assert episode.success


def test_keys_are_chosen(path: Path) -> None:
    write(path, make_spec(5), ["robot0_eef_pos", "robot0_gripper_qpos"])
    assert load_demos(path.parent, "lift")[0].obs.shape == (6, 5)
    with pytest.raises(ValueError, match="lift observes 6(.|\n)*--features object robot0_gripper_qpos"):
        robomimic.read_demos(path, make_spec(6))


def test_without_next_obs_the_last_action_is_left_out(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["next_obs"]
    report = write(path, make_spec())
    assert report.steps == 4 + 5 + 4
    assert any("no `next_obs`" in note for note in report.notes)


def test_what_a_world_model_cannot_learn_from_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="say --successful"):
        write(path, make_spec(), reading=Reading())
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["obs"]
    with pytest.raises(ValueError, match=r"dataset_states_to_obs\.py"):
        write(path, make_spec())


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("rewards", np.zeros(6), "it has 6 rewards for 5 actions"),
        ("rewards", np.zeros((5, 2)), "its rewards have the shape (5, 2)"),
        ("dones", np.array([0, np.nan, 0, 0, 1]), "`dones` is missing at step 1"),
    ],
)
def test_what_is_not_told_once_for_each_action_is_left_out(path: Path, name: str, values, reason: str) -> None:
    with h5py.File(path, "a") as file:
        del file[f"data/demo_0/{name}"]
        file[f"data/demo_0/{name}"] = values
    report = write(path, make_spec())
    assert [one["episode"] for one in report.left_out] == [0]
    assert reason in str(report.left_out[0]["reason"])


def test_next_observations_must_be_one_for_each_action(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_0/next_obs"]
        file["data/demo_0/next_obs/object"] = np.zeros((6, 4))
    report = write(path, make_spec(4), ["object"])
    assert report.left_out == [{"episode": 0, "reason": "it cannot be read: it has 6 next observations for 5 actions"}]


def test_demonstrations_may_be_counted_with_zeros_before(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for number in (0, 2, 10):
            file["data"].move(f"demo_{number}", f"demo_{number:03d}")
    assert write(path, make_spec()).kept == 3
