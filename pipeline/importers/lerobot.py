"""The tabular part of LeRobot v3 data sets, read by their files' form: meta/*, data/*/*.parquet.

A frame holds the observation before its action, and no frame follows the last action: the last action of an episode
is left out, since nothing says where it led. Pictures are left out.

Source: https://huggingface.co/docs/lerobot (LeRobotDataset v3.0)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import near
from pipeline.files import read_json
from pipeline.importers.episodes import Recorded, Source, check_arrays
from pipeline.tasks.spec import TaskSpec

PATTERNS = ["meta/info.json", "meta/tasks.parquet", "data/*/*.parquet"]
_REWARD, _SUCCESS, _DONE = "next.reward", "next.success", "next.done"


def read_demos(folder: str | Path, spec: TaskSpec, only: str | None = None) -> Source:
    """Find the episodes of a LeRobot data set.

    Args:
        folder: holds `meta/` and `data/`.
        spec: the task they are of.
        only: take the episodes with this text as their task; None if there is but one.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is of another version, lacks what a world model learns from, or its widths do not fit.
    """
    folder = Path(folder)
    info = read_json(folder / "meta/info.json", "lerobot")
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not str(version).startswith("v3."):
        raise ValueError(
            f"{folder} is LeRobot data of version {version!r}; v3 is read. Lerobot's own tools convert it."
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(about, dict) for about in features.values()):
        raise ValueError(f"{folder / 'meta/info.json'}: `features` is not an object of features.")
    observed = [name for name, about in features.items() if name.startswith("observation.") and _is_vector(about)]
    for name, why in (("action", "what was done"), (_REWARD, "a world model learns rewards")):
        if name not in features:
            raise ValueError(f"{folder} has no `{name}` ({why}). It has: {', '.join(features)}.")
    widths = {name: int(features[name]["shape"][0]) for name in [*observed, "action"] if _is_vector(features[name])}
    total = sum(widths[name] for name in observed)
    if total != spec.obs_dim or widths.get("action") != spec.action_dim:
        parts = ", ".join(f"{name} {width}" for name, width in widths.items()) or "no vectors"
        raise ValueError(
            f"{folder} has {parts}; {spec.name} observes {spec.obs_dim} values and takes {spec.action_dim} action dims."
        )
    files = sorted((folder / "data").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no data/*/*.parquet.")
    task = _task(folder / "meta/tasks.parquet", only)
    optional = [name for name in (_SUCCESS, _DONE) if name in features]
    used = [*observed, "action", _REWARD, *optional]
    table = _read(files, [*used, "episode_index", "frame_index", "task_index"])
    table = table.filter(pc.equal(table["task_index"], task))  # pyright: ignore[reportAttributeAccessIssue]
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    numbers = table["episode_index"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1)) if len(numbers) else np.zeros(0, int)
    return Source(
        form="lerobot",
        files=[folder / "meta/info.json", folder / "meta/tasks.parquet", *files],
        episodes=_episodes(table, starts, spec, observed),
        total=len(starts),
        ignored=sorted(set(features) - set(used) - {"episode_index", "frame_index", "task_index"}),
        notes=[
            f"observations: {' + '.join(observed)}",
            "the last action of every episode is left out, since no observation follows it",
        ],
    )


def _is_vector(about: dict[str, Any]) -> bool:
    shape = about.get("shape")
    floats = str(about.get("dtype")) in ("float32", "float64", "float16")
    return floats and isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) and 0 < shape[0] < 65536


def _task(path: Path, only: str | None) -> int:
    """Return the index of the task to take."""
    table = _read([path], None)
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(names) != 1:
        raise ValueError(f"{path}: expected `task_index` and the tasks' texts, found {', '.join(table.column_names)}.")
    texts = dict(zip(table[names[0]].to_pylist(), table["task_index"].to_pylist(), strict=True))
    if only is None and len(texts) == 1:
        return next(iter(texts.values()))
    if only not in texts:
        listed = "; ".join(str(text) for text in texts)
        said = f"none of its tasks is {only!r}.{near(only, list(texts))}" if only else "it holds several tasks."
        raise ValueError(f"{path}: {said} Choose one with --only: {listed}")
    return texts[only]


def _read(paths: list[Path], columns: list[str] | None) -> pa.Table:
    tables = []
    for path in paths:
        try:
            table = pq.read_table(path, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not readable: {str(error).splitlines()[0]}") from None
        if columns is not None and (missing := [name for name in columns if name not in table.column_names]):
            raise ValueError(f"{path}: the column {missing[0]} is missing.")
        tables.append(table.select(columns) if columns else table)
    try:
        return pa.concat_tables(tables).combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(f"{paths[0].parent}: the files have different columns: {str(error).splitlines()[0]}") from None


def _episodes(
    table: pa.Table, starts: np.ndarray, spec: TaskSpec, observed: list[str]
) -> Iterator[Recorded | tuple[int, str]]:
    for first, after in zip(starts, [*starts[1:], table.num_rows], strict=True):
        part = table.slice(first, after - first)
        number = int(part["episode_index"][0].as_py())
        try:
            check_arrays(part.num_rows, spec.obs_dim, spec, "data")
            if part.num_rows < 2:
                raise ValueError("it has one frame, so no action with a known outcome")
            if part["frame_index"].to_pylist() != list(range(part.num_rows)):
                raise ValueError("its frames are not counted from 0 without a gap")
            obs = np.concatenate([_vectors(part, name) for name in observed], 1)
            reward = _scalars(part, _REWARD)[:-1]
            success = bool(_scalars(part, _SUCCESS)[-1]) if _SUCCESS in part.column_names else None
            # `next.done` does not tell an end for good from the time limit.
            yield Recorded(number, obs, _vectors(part, "action")[:-1], reward, False, success)
        except (ValueError, TypeError, pa.ArrowException) as error:
            yield number, str(error).splitlines()[0]


def _vectors(table: pa.Table, name: str) -> np.ndarray:
    column: Any = table[name].combine_chunks()
    if not (pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)):
        raise ValueError(f"`{name}` holds {column.type}, expected vectors of numbers")
    flat = column.flatten()
    if column.null_count or len(flat) % len(column):
        raise ValueError(f"`{name}` is no list of vectors of one width")
    return _numbers(flat, name).reshape(len(column), -1)


def _scalars(table: pa.Table, name: str) -> np.ndarray:
    column: Any = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
        return _vectors(table, name)[:, 0]
    return _numbers(column, name)


def _numbers(values: Any, name: str) -> np.ndarray:
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)) or values.null_count:
        raise ValueError(f"`{name}` holds {kind}, expected numbers without gaps")
    return values.to_numpy(zero_copy_only=False)
