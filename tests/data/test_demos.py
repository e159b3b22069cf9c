"""Demonstrations on disk: exact, unambiguous, and refused when damaged."""

import dataclasses

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.demos import FILE, load_demos, write_card, write_episodes
from pipeline.data.episode import Episode


def episode(task: str = "mw-reach", length: int = 7, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    reward = rng.normal(size=length).astype(np.float32)
    return Episode(
        task=task,
        obs=rng.normal(size=(length + 1, 39)).astype(np.float32),
        action=action,
        expert_action=action / 2,
        reward=reward,
        terminated=False,
        success=True,
        score=1.0,
        episode_return=float(reward.sum(dtype=np.float64)),
        seed=seed,
        method="scripted",
    )


def write(folder, episodes) -> None:
    write_episodes(folder / episodes[0].task / FILE, episodes)


def test_episodes_come_back_exactly(tmp_path):
    written = [episode(length=5, seed=1), episode(length=9, seed=2**32 - 1)]
    write(tmp_path, written)
    for before, after in zip(written, load_demos(tmp_path, "mw-reach"), strict=True):
        for field in dataclasses.fields(Episode):
            assert np.array_equal(getattr(before, field.name), getattr(after, field.name)), field.name


def test_datasets_streams_whole_episodes_of_one_task(tmp_path):
    write(tmp_path, [episode()])
    push = [episode("mw-push", length=3, seed=seed) for seed in (4, 5)]
    write(tmp_path, push)
    write_card(tmp_path, ["mw-reach", "mw-push"])
    rows = list(datasets.load_dataset(str(tmp_path), "mw-push", split="train", streaming=True))
    assert [row["seed"] for row in rows] == [4, 5]
    assert np.array_equal(np.array(rows[1]["obs"], np.float32), push[1].obs)
    assert np.shape(rows[1]["action"]) == (3, 4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "cut short"),
        ("nan", "not finite at step 3"),
        ("null", "not finite at step 3"),
        ("last observation", "last observation is missing"),
        ("steps", "cut short"),
        ("column", "columns"),
        ("narrow", "columns"),
        ("task", "of task mw-push, expected mw-reach"),
        ("empty", "holds no episode"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    write(tmp_path, [episode()])
    path = tmp_path / "mw-reach" / FILE
    table = pq.read_table(path)

    def replace(**columns) -> None:
        changed = table
        for name, values in columns.items():
            index = table.column_names.index(name)
            column = table.schema.field(index).type
            changed = changed.set_column(index, name, [pa.array([values], column)])
        pq.write_table(changed, path)

    row = table.to_pylist()[0]
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-40])
        case "nan":
            replace(reward=[*row["reward"][:3], float("nan"), *row["reward"][4:]])
        case "null":
            replace(reward=[*row["reward"][:3], None, *row["reward"][4:]])
        case "last observation":
            replace(obs=row["obs"][:-1])
        case "steps":
            replace(obs=row["obs"][:-1], **{name: row[name][:-1] for name in ("action", "expert_action", "reward")})
        case "column":
            pq.write_table(table.drop_columns(["reward"]), path)
        case "narrow":
            narrow = [values[:3] for values in row["expert_action"]]
            pq.write_table(table.set_column(3, "expert_action", [[narrow]]), path)
        case "task":
            write_episodes(path, [episode("mw-push")])
        case "empty":
            pq.write_table(table.slice(0, 0), path)
    with pytest.raises(ValueError, match=message) as refused:
        load_demos(tmp_path, "mw-reach")
    assert str(path) in str(refused.value)
    assert "dvc repro demos" in str(refused.value)


def test_missing_demonstrations_say_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro demos"):
        load_demos(tmp_path, "mw-reach")


def test_several_tasks_in_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one file holds one task"):
        write_episodes(tmp_path / FILE, [episode(), episode("mw-push")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("obs", np.zeros((9, 39), np.float32), r"`obs` has shape \(9, 39\)"),
        ("expert_action", np.zeros((7, 3), np.float32), "`expert_action` has shape"),
        ("reward", np.full(7, np.inf, np.float32), "`reward` holds a value that is not finite at step 0"),
        ("score", 1.5, "expected 0 to 1"),
        ("action", np.zeros((7, 4)), "expected float32"),
        ("action", np.full((7, 4), 1.5, np.float32), "leaves"),
        ("episode_return", 100.0, "rewards sum to"),
    ],
)
def test_an_episode_checks_itself(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(episode(), **{field: value}).check()
