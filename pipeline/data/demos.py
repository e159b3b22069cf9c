"""Demonstrations on disk: parquet that the `datasets` library reads, one row per episode, one file per task.

A row holds one whole episode: `obs` is a list of L + 1 observations, `action`, `expert_action` and `reward` are lists
of L, so that nothing about the last observation is ambiguous and a stream yields whole episodes. The widths are part
of the file's schema. What is unknown of an episode (its rewards, and what follows from them) is null. Columns:
datasets/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.episode import Episode
from pipeline.extras import needs
from pipeline.files import atomic_file, read_json, write_json

with needs("pipeline"):
    import pyarrow as pa
    import pyarrow.parquet as pq

FILE = "episodes.parquet"
MISSING = "missing.json"  # task -> why it has no demonstrations, or fewer than wanted
_ROWS_PER_GROUP = 8  # what a reader must hold at once


def write_episodes(path: str | Path, episodes: Sequence[Episode]) -> None:
    """Write episodes of one task into one parquet file, atomically.

    Raises:
        ValueError: there are none, they are of several tasks or widths, or one is not valid.
    """
    if not episodes:
        raise ValueError(f"{path}: there are no episodes to write")
    schema = _schema(episodes[0].obs.shape[1], episodes[0].action.shape[1])
    for number, episode in enumerate(episodes):
        try:
            episode.check()
        except ValueError as error:
            raise ValueError(f"{path}: episode {number} of {episode.task} was not written: {error}") from None
        widths = episode.obs.shape[1], episode.action.shape[1]
        if episode.task != episodes[0].task or _schema(*widths) != schema:
            raise ValueError(
                f"{path}: one file holds one task: {episode.task} with widths {widths} beside {episodes[0].task}"
            )
    columns = [pa.array(_column(episodes, field), field.type) for field in schema]
    with atomic_file(path) as partial:
        pq.write_table(pa.table(columns, schema), partial, compression="zstd", row_group_size=_ROWS_PER_GROUP)


def read_episodes(path: str | Path, made_by: str) -> list[Episode]:
    """Read and check one parquet file of episodes.

    Args:
        path: the file.
        made_by: what writes it, for the errors.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is cut short, of another form, or holds an impossible episode; the message says what to do.
    """
    path = Path(path)
    again = f"Run {made_by} again."
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. It is made by {made_by}: run that first.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not readable parquet, it may be cut short: {error}. Delete it. {again}") from None
    expected = _schema(_width(table.schema, "obs"), _width(table.schema, "action"))
    if table.schema.remove_metadata() != expected:
        raise ValueError(
            f"{path}: its columns are not those of a demonstration: expected\n{expected}\n"
            f"found\n{table.schema.remove_metadata()}\n{again}"
        )
    if not table.num_rows:
        raise ValueError(f"{path} holds no episode. {again}")
    episodes = []
    for number, row in enumerate(_rows(table)):
        try:
            row.check()
        except ValueError as error:
            raise ValueError(f"{path}: episode {number} is not valid: {error}. {again}") from None
        episodes.append(row)
    return episodes


def load_demos(folder: str | Path, task: str) -> list[Episode]:
    """Load the demonstrations of one task from `folder/<task>/`, in the order they were collected.

    Returns:
        The episodes; none of a task that the collection went on without (`demos.missing: go_on`).

    Raises:
        FileNotFoundError: there are none of this task, and the collection did not go on without it.
        ValueError: the file is cut short, of another form or task, or holds an impossible episode.
    """
    path = Path(folder) / task / FILE
    if not path.exists() and task in read_missing(folder):
        return []
    episodes = read_episodes(path, "`dvc repro demos`")
    for number, episode in enumerate(episodes):
        if episode.task != task:
            raise ValueError(
                f"{path}: episode {number} is of task {episode.task}, expected {task}. Run `dvc repro demos` again."
            )
    return episodes


def write_missing(folder: str | Path, reasons: Mapping[str, str]) -> None:
    """Write which tasks have no demonstrations in `folder`, or fewer than wanted, and why."""
    write_json(Path(folder) / MISSING, dict(reasons))


def read_missing(folder: str | Path) -> dict[str, str]:
    """Return what `write_missing` wrote; nothing for a folder without it.

    Raises:
        ValueError: the file is not JSON of this form.
    """
    path = Path(folder) / MISSING
    reasons = read_json(path, "`dvc repro demos`") if path.exists() else {}
    if not isinstance(reasons, dict):
        raise ValueError(f"{path} should name tasks and reasons. Run `dvc repro --force demos`.")
    return reasons


def write_card(folder: str | Path, tasks: Sequence[str]) -> None:
    """Write the README.md by which the `datasets` library finds one configuration per task in `folder`."""
    configs = "".join(f"- config_name: {task}\n  data_files: {task}/{FILE}\n" for task in tasks)
    front = f"---\nconfigs:\n{configs}---\n\n" if tasks else ""
    example = (
        f'\n```python\ndatasets.load_dataset("datasets/demos", "{tasks[0]}", split="train")\n```\n' if tasks else ""
    )
    with atomic_file(Path(folder) / "README.md") as partial:
        partial.write_text(
            f"{front}# Demonstrations\n\nOne configuration per task, one row per episode; the columns are described in "
            f"the project's `datasets/README.md`.\n{example}",
            encoding="utf-8",
        )


def _schema(obs_dim: int, action_dim: int) -> pa.Schema:
    obs, action = (pa.list_(pa.list_(pa.float32(), width)) for width in (obs_dim, action_dim))
    fields = {
        "task": pa.string(),
        "obs": obs,
        "action": action,
        "expert_action": action,
        "reward": pa.list_(pa.float32()),
        "terminated": pa.bool_(),
        "success": pa.bool_(),
        "score": pa.float64(),
        "episode_return": pa.float64(),
        "seed": pa.int64(),
        "method": pa.string(),
    }
    return pa.schema(fields)


def _column(episodes: Sequence[Episode], field: pa.Field) -> list | pa.Array:
    values = [getattr(episode, field.name) for episode in episodes]
    if pa.types.is_floating(field.type):
        return [None if np.isnan(value) else value for value in values]
    if not pa.types.is_list(field.type):
        return values
    unknown = None  # of rewards, where there are episodes without
    if field.name == "reward" and not all(episode.rewarded for episode in episodes):
        unknown = pa.array([not episode.rewarded for episode in episodes])
        values = [value if episode.rewarded else value[:0] for value, episode in zip(values, episodes, strict=True)]
    flat = pa.array(np.concatenate(values).ravel())
    if pa.types.is_fixed_size_list(field.type.value_type):
        flat = pa.FixedSizeListArray.from_arrays(flat, type=field.type.value_type)
    ends = np.cumsum([0, *(len(value) for value in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), flat, type=field.type, mask=unknown)


def _width(schema: pa.Schema, name: str) -> int:
    """Return the width of a column of vectors, 1 where it is no such column."""
    index = schema.get_field_index(name)
    kind = schema.field(index).type if index >= 0 else None
    if kind is None or not pa.types.is_list(kind) or not pa.types.is_fixed_size_list(kind.value_type):
        return 1
    return kind.value_type.list_size


def _rows(table: pa.Table) -> list[Episode]:
    columns = {}
    for field in table.schema:
        column = table.column(field.name).combine_chunks()
        if not pa.types.is_list(field.type):
            values = column.to_pylist()
            floats = pa.types.is_floating(field.type)
            columns[field.name] = [math.nan if floats and value is None else value for value in values]
            continue
        width = field.type.value_type.list_size if pa.types.is_fixed_size_list(field.type.value_type) else None
        columns[field.name] = [_array(row.values, width) for row in column]
    for number, reward in enumerate(table.column("reward")):
        if not reward.is_valid:  # unknown
            columns["reward"][number] = np.full(len(columns["action"][number]), np.nan, np.float32)
    return [Episode(*values) for values in zip(*columns.values(), strict=True)]


def _array(values: pa.Array | None, width: int | None) -> np.ndarray:
    """Turn one row's list into numpy; a missing value becomes NaN, which the check then names."""
    if values is None:
        return np.zeros((0,) if width is None else (0, width), np.float32)
    flat = (values if width is None else values.flatten()).to_numpy(zero_copy_only=False).astype(np.float32)
    return flat if width is None else flat.reshape(-1, width)
