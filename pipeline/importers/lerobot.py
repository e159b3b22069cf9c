"""The tabular part of LeRobot data sets, v2.0 to v3, read by their files' form: meta/*, data/*/*.parquet.

A frame holds the observation before its action, and no frame follows the last action: the last action of an episode
is left out, since nothing says where it led. So are frames after the first with `next.done`, images and videos.

Source: https://huggingface.co/docs/lerobot (LeRobotDataset v2.1 and v3.0)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import near
from pipeline.extras import needs
from pipeline.files import read_json
from pipeline.importers.actions import as_corners, say_corners
from pipeline.importers.episodes import Recorded, Source, check_arrays, choose, first_end, success_at
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

TEXTS = ("meta/tasks.parquet", "meta/tasks.jsonl")  # of the tasks: in v3, and before
PATTERNS = ["meta/info.json", *TEXTS, "data/*/*.parquet"]
_REWARD, _SUCCESS = "next.reward", "next.success"
_ENDS = ("next.done", "next.truncated", "next.terminated")
_EXPERT = "expert_action"
_ACTIONS = ("action", "actions")  # LeRobot's own name, and that of openpi's data sets
_COUNTS = ("episode_index", "frame_index", "task_index")
_OWN = (_REWARD, _SUCCESS, *_ENDS, "index", "timestamp")  # of every data set, and nothing that is observed


def read_demos(folder: str | Path, spec: TaskSpec, only: str | None = None, features: Sequence[str] = ()) -> Source:
    """Find the episodes of a LeRobot data set.

    Args:
        folder: holds `meta/` and `data/`.
        spec: the task they are of.
        only: take the episodes with this text as their task; None if there is but one.
        features: what is observed, in this order; none for every vector whose name begins with `observation.`.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: it is of another version, lacks what a world model learns from, or its widths do not fit.
    """
    folder = Path(folder)
    about = _features(folder)
    acted = next((name for name in _ACTIONS if name in about), None)
    if acted is None:
        raise ValueError(f"{folder} has no `action`. It has: {', '.join(about)}.")
    widths = {name: math.prod(one["shape"]) for name, one in about.items() if _is_array(one)}
    choices = spec.action_dim if widths.get(acted) == 1 < spec.action_dim and "int" in about[acted]["dtype"] else 0
    if widths.get(acted, 0) < spec.action_dim and not choices:
        raise ValueError(f"{folder}: `{acted}` is {about[acted]}, {spec.name} takes vectors of {spec.action_dim}.")
    observed = _observed(folder, about, widths, acted, features, spec)
    files = sorted(path for path in (folder / "data").glob("*/*.parquet") if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{folder} holds no data/*/*.parquet.")
    texts = next((folder / name for name in TEXTS if (folder / name).is_file()), None)
    if texts is None:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(TEXTS)}: its tasks have no texts.")
    task = _task(texts, only)
    intended = [_EXPERT] if widths.get(_EXPERT) == widths[acted] else []
    used = [*observed, acted, *intended, *(name for name in (_REWARD, _SUCCESS, *_ENDS) if name in about)]
    table = _read(files, [*used, *_COUNTS])
    table = table.rename_columns(["action" if name == acted else name for name in table.column_names])
    table = table.filter(pc.equal(table["task_index"], task))  # pyright: ignore[reportAttributeAccessIssue]
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    numbers = table["episode_index"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1)) if len(numbers) else np.zeros(0, int)
    return Source(
        form="lerobot",
        files=[folder / "meta/info.json", texts, *files],
        episodes=_episodes(table, starts, observed, choices),
        total=len(starts),
        ignored=sorted(set(about) - set(used) - set(_COUNTS)),
        notes=[
            f"observations: {' + '.join(observed)}",
            "the last action of every episode is left out, since no observation follows it",
            *([say_corners([choices])] if choices else []),
        ],
    )


def _observed(
    folder: Path, about: Mapping[str, Any], widths: Mapping[str, int], acted: str, features: Sequence[str],
    spec: TaskSpec,
) -> list[str]:  # fmt: skip
    """Return what is observed, in order: matrices and what is not called an observation if the user names it alone."""
    named = {
        name: width
        for name, width in widths.items()
        if name in features or (name.split(".")[0] == "observation" and len(about[name]["shape"]) == 1)
    }
    if len(named) == 1 and max(named.values()) > spec.obs_dim:  # padded with zeros, or the episodes are refused
        return list(named)
    others = {name: width for name, width in widths.items() if name not in (acted, _EXPERT, *_COUNTS, *_OWN)}
    try:
        if not named and not features:
            listed = ", ".join(f"{name} {width}" for name, width in others.items())
            raise ValueError(
                f"none of its vectors is called an observation; say which are, --features NAME: {listed}."
                if others
                else "nothing but images can be observed in it, which are not read."
            )
        parts = others if features else named
        return choose(list(parts), parts, features, spec)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _features(folder: Path) -> dict[str, Any]:
    """Return what meta/info.json says about every column and video."""
    info = read_json(folder / "meta/info.json", "lerobot")
    version = str(info.get("codebase_version")) if isinstance(info, dict) else "unknown"
    if not version.startswith(("v2.", "v3.")):
        raise ValueError(
            f"{folder} is LeRobot data of version {version!r}; v2.0, v2.1 and v3 are read. LeRobot's own scripts "
            "convert older ones."
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(about, dict) for about in features.values()):
        raise ValueError(f"{folder / 'meta/info.json'}: `features` is not an object of features.")
    return features


def _is_array(about: dict[str, Any]) -> bool:
    """Whether a feature is a vector, or an array that can be made one."""
    shape = about.get("shape")
    if not (isinstance(shape, list) and shape and all(isinstance(size, int) and size > 0 for size in shape)):
        return False
    numbers = re.fullmatch(r"(float|u?int)(8|16|32|64)|bool", str(about.get("dtype")))
    return numbers is not None and math.prod(shape) < 65536


def _task(path: Path, only: str | None) -> int:
    """Return the index of the task to take."""
    texts = _texts(path)
    if only is None and len(texts) == 1:
        return next(iter(texts.values()))
    if only not in texts:
        listed = "; ".join(str(text) for text in texts)
        said = f"none of its tasks is {only!r}.{near(only, list(texts))}" if only else "it holds several tasks."
        raise ValueError(f"{path}: {said} Choose one with --only: {listed}")
    return texts[only]


def _texts(path: Path) -> dict[str, int]:
    """Return the index of every task by its text."""
    if path.suffix == ".parquet":
        table = _read([path], None)
        names = [name for name in table.column_names if name != "task_index"]
        if "task_index" not in table.column_names or len(names) != 1:
            found = ", ".join(table.column_names)
            raise ValueError(f"{path}: expected `task_index` and the tasks' texts, found {found}.")
        return dict(zip(table[names[0]].to_pylist(), table["task_index"].to_pylist(), strict=True))
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return {str(row["task"]): int(row["task_index"]) for row in rows}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected one {{task_index, task}} per line: {type(error).__name__}: {error}."
        ) from None


def _read(paths: list[Path], columns: list[str] | None) -> pa.Table:
    tables = []
    for path in paths:
        try:
            there = pq.read_schema(path).names
            if missing := [name for name in columns or [] if name not in there]:
                raise ValueError(f"{path}: the column `{missing[0]}` is missing.")
            table = pq.read_table(path, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not readable: {str(error).splitlines()[0]}") from None
        tables.append(table.select(columns) if columns else table)
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()  # of files of several authors
    except pa.ArrowException as error:
        raise ValueError(f"{paths[0].parent}: the files have different columns: {str(error).splitlines()[0]}") from None


def _episodes(
    table: pa.Table, starts: np.ndarray, observed: list[str], choices: int
) -> Iterator[Recorded | tuple[int, str]]:
    """Yield the episodes; with `choices`, the action of each frame is one of so many."""
    for first, after in zip(starts, [*starts[1:], table.num_rows], strict=True):
        part = table.slice(first, after - first)
        number = int(part["episode_index"][0].as_py())
        try:
            check_arrays(part.num_rows, 1, "data")
            if part["frame_index"].to_pylist() != list(range(part.num_rows)):
                raise ValueError("its frames are not counted from 0 without a gap")
            ends = {name: _scalars(part, name) if name in part.column_names else None for name in _ENDS}
            frames, cut = first_end(part.num_rows, **ends)
            part = part.slice(0, frames)
            if frames < 2:
                raise ValueError(f"it has one frame, so no action with a known outcome{f' ({cut})' if cut else ''}")
            obs = np.concatenate([_vectors(part, name) for name in observed], 1)
            reward = _scalars(part, _REWARD) if _REWARD in part.column_names else np.full(frames, np.nan)
            success = success_at(_scalars(part, _SUCCESS) if _SUCCESS in part.column_names else None, -1)
            # `next.done` does not tell an end for good from the time limit.
            over = ends["next.terminated"]
            terminated = over is not None and bool(over[frames - 1])
            action = _vectors(part, "action")[:-1]
            expert = _vectors(part, _EXPERT)[:-1] if _EXPERT in part.column_names else None
            if choices:
                action = as_corners(action, [choices], [0])
                expert = None if expert is None else as_corners(expert, [choices], [0])
            yield Recorded(number, obs, action, reward[:-1], terminated, success, cut=cut, expert=expert)
        except (ValueError, TypeError, pa.ArrowException) as error:
            yield number, str(error).splitlines()[0]


def _vectors(table: pa.Table, name: str) -> np.ndarray:
    """Return a column as (rows, width); LeRobot writes vectors of one number as numbers."""
    column: Any = table[name].combine_chunks()
    flat = column
    while pa.types.is_fixed_size_list(flat.type) or pa.types.is_list(flat.type) or pa.types.is_large_list(flat.type):
        if flat.null_count:
            missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            raise ValueError(f"`{name}` is missing at step {missing[0]}" if len(missing) else f"`{name}` has gaps")
        flat = flat.flatten()
    if len(flat) % len(column):
        raise ValueError(f"`{name}` is no list of vectors of one width")
    return _numbers(flat, name).reshape(len(column), -1)


def _scalars(table: pa.Table, name: str) -> np.ndarray:
    vectors = _vectors(table, name)
    if vectors.shape[1] != 1:
        raise ValueError(f"`{name}` holds {vectors.shape[1]} numbers for each frame, expected one")
    return vectors[:, 0]


def _numbers(values: Any, name: str) -> np.ndarray:
    """Return numbers; what is missing is NaN, as in floats."""
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or kind == pa.null()):
        raise ValueError(f"`{name}` holds {kind}, expected numbers")
    if values.null_count:
        values = (values.cast(pa.uint8()) if pa.types.is_boolean(kind) else values).cast(pa.float64())
    return values.to_numpy(zero_copy_only=False)
