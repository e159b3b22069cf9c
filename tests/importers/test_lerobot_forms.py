"""LeRobot data sets of others: other types, names and files than those that LeRobot's recorder writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.demos import load_demos
from pipeline.importers import lerobot
from pipeline.importers.episodes import Reading, Report
from tests.importers.test_choices import DATA, as_v21, lerobot_folder, make_spec, write

TABLE = "data/chunk-000/file-000.parquet"
FRAMES = 18


def describe(folder: Path, **features: dict[str, Any] | None) -> None:
    """Change what meta/info.json says of features, whose dots are `_0_` here; None takes one out."""
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    for name, about in features.items():
        info["features"].pop(name.replace("_0_", "."), None)
        if about is not None:
            info["features"][name.replace("_0_", ".")] = {"names": None, **about}
    path.write_text(json.dumps(info))


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        kept = table.drop_columns([name]) if name in table.column_names else table
        return kept.append_column(name, values)

    return change


def imported(folder: Path, out: Path, obs_dim: int = 6, action_dim: int = 2, features=(), **reading) -> Report:
    spec = make_spec("push", obs_dim, action_dim, 9)
    return write(lerobot.read_demos(folder, spec, "push the block", features), spec, out, Reading(**reading))


def first(out: Path) -> Any:
    return load_demos(out, "push")[0]


def vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


@pytest.mark.parametrize("as_list", [False, True])
def test_a_vector_of_one_number_may_be_a_number(as_list: bool, tmp_path: Path) -> None:
    values = np.arange(FRAMES, dtype=np.float32)
    column = vectors(values[:, None]) if as_list else pa.array(values)
    folder = lerobot_folder(tmp_path / "set", with_column("observation.gripper", column))
    describe(folder, observation_0_gripper={"dtype": "float32", "shape": [1]})
    imported(folder, tmp_path, obs_dim=7)
    assert np.array_equal(first(tmp_path).obs[:, 6], values[:5])


def test_actions_and_observations_may_be_whole_numbers_or_flags(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path / "set", with_column("action", pa.array(np.arange(FRAMES) % 4)))
    table = with_column("observation.environment_state", vectors(np.arange(2 * FRAMES).reshape(-1, 2) % 2 == 0))
    pq.write_table(table(pq.read_table(folder / TABLE)), folder / TABLE)
    describe(
        folder,
        action={"dtype": "int64", "shape": [1]},
        observation_0_environment_state={"dtype": "bool", "shape": [2]},
    )
    imported(folder, tmp_path, action_dim=1, low=[0], high=[3])
    np.testing.assert_allclose(first(tmp_path).action[:, 0], [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    assert sorted(np.unique(first(tmp_path).obs[:, 4:])) == [0, 1]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64(), 2), pa.list_(pa.float32()), pa.large_list(pa.float32())])
def test_files_of_one_set_may_differ_in_their_types(kind: pa.DataType, tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path / "set")
    table = pq.read_table(folder / TABLE)
    pq.write_table(table.slice(0, 9), folder / TABLE)
    (folder / "data/chunk-001").mkdir()
    rest = table.slice(9)
    rest = with_column("action", rest["action"].cast(kind))(rest)
    pq.write_table(rest, folder / "data/chunk-001/file-000.parquet")
    (folder / "data/chunk-001/._file-000.parquet").write_bytes(b"left there by another system")
    imported(folder, tmp_path / "one")
    imported(DATA / "lerobot", tmp_path / "other")
    for one, other in zip(*(load_demos(tmp_path / name, "push") for name in ("one", "other")), strict=True):
        assert np.array_equal(one.action, other.action)


def test_other_names_of_actions_and_observations(tmp_path: Path) -> None:
    def renamed(table: pa.Table) -> pa.Table:
        table = table.drop_columns(["observation.environment_state"])
        names = {"action": "actions", "observation.state": "state"}
        return table.rename_columns([names.get(name, name) for name in table.column_names])

    folder = lerobot_folder(tmp_path / "set", renamed)
    four, two = ({"dtype": "float32", "shape": [size]} for size in (4, 2))
    describe(folder, state=four, actions=two, action=None, observation_0_state=None)
    describe(folder, observation_0_environment_state=None)
    with pytest.raises(ValueError, match="none of its vectors is called an observation(.|\n)*--features NAME: state 4"):
        imported(folder, tmp_path, obs_dim=4)
    with pytest.raises(ValueError, match="no `stat` to observe"):
        imported(folder, tmp_path, obs_dim=4, features=["stat"])
    imported(folder, tmp_path, obs_dim=4, features=["state"])
    assert first(tmp_path).obs.shape == (5, 4)
    describe(folder, state=None)
    with pytest.raises(ValueError, match="nothing but images can be observed"):
        imported(folder, tmp_path, obs_dim=4)


def test_matrices_are_observed_only_where_they_are_named(tmp_path: Path) -> None:
    pose = np.arange(4 * FRAMES, dtype=np.float32).reshape(FRAMES, 2, 2)
    folder = lerobot_folder(tmp_path / "set", with_column("observation.pose", pa.array(pose.tolist())))
    describe(folder, observation_0_pose={"dtype": "float32", "shape": [2, 2]})
    assert "observation.pose" in imported(folder, tmp_path / "without").ignored
    imported(folder, tmp_path / "named", obs_dim=4, features=["observation.pose"])
    assert np.array_equal(first(tmp_path / "named").obs, pose[:5].reshape(5, 4))


def test_rewards_and_successes_that_are_missing_are_unknown(tmp_path: Path) -> None:
    def without(table: pa.Table) -> pa.Table:
        done = [None, *table["next.success"].to_pylist()[1:]]
        table = with_column("next.success", pa.array(done, pa.bool_()))(table)
        return with_column("next.reward", pa.nulls(FRAMES, pa.float32()))(table)

    report = imported(lerobot_folder(tmp_path / "set", without), tmp_path)
    assert report.kept == 2
    assert not first(tmp_path).rewarded


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    def without(table: pa.Table) -> pa.Table:
        return table.drop_columns(["next.reward"])

    with pytest.raises(ValueError, match=r"file-000\.parquet: the column `next\.reward` is missing"):
        imported(lerobot_folder(tmp_path / "set", without), tmp_path)
    folder = lerobot_folder(tmp_path / "texts")
    (folder / "meta/tasks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither meta/tasks\.parquet nor meta/tasks\.jsonl"):
        imported(folder, tmp_path)

    def gap(table: pa.Table) -> pa.Table:
        states = table["observation.state"].to_pylist()
        states[4] = None
        return with_column("observation.state", pa.array(states, pa.list_(pa.float32(), 4)))(table)

    report = imported(lerobot_folder(tmp_path / "gap", gap), tmp_path)
    assert report.left_out == [{"episode": 0, "reason": "`observation.state` is missing at step 4"}]


def test_an_episode_over_at_once_says_who_says_so(tmp_path: Path) -> None:
    folder = lerobot_folder(tmp_path / "set", with_column("next.done", pa.array([True] * FRAMES)))
    describe(folder, next_0_done={"dtype": "bool", "shape": [1]})
    with pytest.raises(ValueError, match=r"no action with a known outcome \(4 steps after its end: `next\.done`"):
        imported(folder, tmp_path)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.jsonl"])
def test_a_mark_before_the_text_is_no_part_of_it(name: str, tmp_path: Path) -> None:
    folder = as_v21(lerobot_folder(tmp_path / "set"))
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert imported(folder, tmp_path).kept == 2
