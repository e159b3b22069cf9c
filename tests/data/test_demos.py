"""Demonstrations on disk: exact, unambiguous, and refused when damaged."""

import dataclasses

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.demos import FILE, load_demos, write_card, write_episodes
from pipeline.data.episode import Episode


def episode(task: str = "mw-reach", length: int = 7, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    return Episode(
        task=task,
        obs=rng.normal(size=(length + 1, 39)).astype(np.float32),
        action=action,
        expert_action=action / 2,
        reward=rng.normal(size=length).astype(np.float32),
        terminated=False,
        success=True,
        score=1.0,
        episode_return=3.5,
        seed=seed,
        method="scripted",
    )


def write(folder, episodes) -> None:
    (folder / episodes[0].task).mkdir(exist_ok=True)
    write_episodes(folder / episodes[0].task / FILE, episodes)


def test_episodes_come_back_exactly(tmp_path):
    written = [episode(length=5, seed=1), episode(length=9, seed=2)]
    write(tmp_path, written)
    for before, after in zip(written, load_demos(tmp_path, "mw-reach"), strict=True):
        for field in dataclasses.fields(Episode):
            assert np.array_equal(getattr(before, field.name), getattr(after, field.name)), field.name


def test_datasets_reads_one_config_per_task(tmp_path):
    write(tmp_path, [episode()])
    write(tmp_path, [episode("mw-push", length=3)])
    write_card(tmp_path, ["mw-reach", "mw-push"])
    rows = datasets.load_dataset(str(tmp_path), "mw-push", split="train", streaming=True)
    (row,) = rows
    assert row["length"] == 3
    assert np.shape(row["obs"]) == (4, 39)


@pytest.mark.parametrize("damage", ["cut", "nan", "missing observation", "other columns", "other task"])
def test_damaged_files_are_refused(tmp_path, damage):
    write(tmp_path, [episode()])
    path = tmp_path / "mw-reach" / FILE
    table = pq.read_table(path)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-40])
        case "nan":
            rewards = table["reward"].to_pylist()
            rewards[0][3] = float("nan")
            pq.write_table(table.set_column(table.column_names.index("reward"), "reward", [rewards]), path)
        case "missing observation":
            obs = [table["obs"].to_pylist()[0][:-1]]
            pq.write_table(table.set_column(table.column_names.index("obs"), "obs", [obs]), path)
        case "other columns":
            pq.write_table(table.drop_columns(["reward"]), path)
        case "other task":
            write_episodes(path, [episode("mw-push")])
    with pytest.raises(ValueError, match=r"episodes\.parquet.*dvc repro demos"):
        load_demos(tmp_path, "mw-reach")


def test_missing_demonstrations_say_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro demos"):
        load_demos(tmp_path, "mw-reach")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("obs", np.zeros((7, 39), np.float32), "obs of shape"),
        ("reward", np.full(7, np.inf, np.float32), "not finite"),
        ("score", 1.5, "expected one in"),
        ("action", np.zeros((7, 4)), "expected float32"),
    ],
)
def test_an_episode_checks_itself(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(episode(), **{field: value})
