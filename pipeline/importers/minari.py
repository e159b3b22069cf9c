"""Minari data sets, read by their files' form: HDF5 (needs h5py, the extra `minari`) or parquet, one group per episode.

Source: https://minari.farama.org (dataset standards), version 0.5
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import read_json
from pipeline.importers.episodes import Recorded, Source, check_arrays
from pipeline.tasks.spec import TaskSpec

PATTERNS = ["data/metadata.json", "data/main_data.hdf5", "data/*/*.parquet"]
_COLUMNS = {"observations", "actions", "rewards", "terminations", "truncations"}


def read_demos(folder: str | Path, spec: TaskSpec) -> Source:
    """Find the episodes of a Minari data set, `folder/data/` or that folder itself.

    Observations are flattened as Gymnasium does it; actions are scaled from the data set's bounds to [-1, 1].

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: its form or spaces are none that we know.
        ImportError: it is HDF5, and h5py is not installed.
    """
    folder = Path(folder)
    data = folder / "data" if (folder / "data/metadata.json").is_file() else folder
    about = read_json(data / "metadata.json", "minari")
    if not isinstance(about, dict):
        raise ValueError(f"{data / 'metadata.json'} is not the description of a Minari data set.")
    form = about.get("data_format", "hdf5")
    observation, action = (_space(about.get(f"{name}_space"), data) for name in ("observation", "action"))
    low, high = _bounds(action, spec, data)
    if form == "hdf5":
        files = [data / "main_data.hdf5"]
        numbers = _hdf5_numbers(files[0])
        episodes, total = _hdf5_episodes(files[0], numbers, spec, observation, low, high), len(numbers)
    elif form == "parquet":
        files = sorted((path for path in data.glob("*/*.parquet") if path.parent.name.isdecimal()), key=_number)
        episodes, total = _parquet_episodes(files, spec, observation, low, high), len(files)
    else:
        raise ValueError(f"{data}: Minari's form {form!r} is not read, only hdf5 and parquet.")
    if not total:
        raise FileNotFoundError(f"{data} holds no episodes.")
    return Source(
        form="minari",
        files=[data / "metadata.json", *files],
        episodes=episodes,
        total=total,
        ignored=["infos (but infos/success)"],
        notes=[
            f"data set {about.get('dataset_id', 'without a name')}, made by {about.get('algorithm_name', 'unknown')}"
        ],
    )


def _space(text: Any, data: Path) -> Any:
    """Read a space's description. Only Boxes, and Dicts of them, become numbers; nothing is built from it."""
    if text is None:
        return None
    try:
        space = json.loads(text)
        _leaves(space)
    except (TypeError, ValueError, KeyError, RecursionError):
        raise ValueError(f"{data}: the space {str(text)[:80]!r} is no Box and no Dict of Boxes.") from None
    return space


def _leaves(space: Any, path: str = "") -> list[str]:
    """Return the paths of a space's Boxes, in the order in which Gymnasium flattens them: by key."""
    if space["type"] == "Dict":
        return [
            leaf for key in sorted(space["subspaces"]) for leaf in _leaves(space["subspaces"][key], f"{path}/{key}")
        ]
    if space["type"] != "Box":
        raise ValueError(space["type"])
    return [path]


def _bounds(space: Any, spec: TaskSpec, data: Path) -> tuple[np.ndarray, np.ndarray]:
    if space is None:
        return -np.ones(spec.action_dim), np.ones(spec.action_dim)
    try:
        low, high = (np.asarray(space[side], np.float64).ravel() for side in ("low", "high"))
        sound = space["type"] == "Box" and low.shape == high.shape == (spec.action_dim,)
    except (TypeError, ValueError, KeyError):
        sound, low, high = False, np.zeros(0), np.zeros(0)
    if not sound or not (np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()):
        raise ValueError(f"{data}: the action space is no Box of {spec.action_dim} bounded values, as {spec.name} has.")
    return low, high


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path} is HDF5: install h5py, `pip install 'eft[minari]'`.") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is not readable HDF5, it may be cut short: {error}") from None


def _hdf5_numbers(path: Path) -> list[int]:
    with _open(path) as file:
        names = [str(name).removeprefix("episode_") for name in file if str(name).startswith("episode_")]
    return sorted(int(name) for name in names if name.isdecimal())


def _hdf5_episodes(
    path: Path, numbers: list[int], spec: TaskSpec, space: Any, low: np.ndarray, high: np.ndarray
) -> Iterator[Recorded | tuple[int, str]]:
    import h5py

    leaves = _leaves(space) if space else [""]
    with _open(path) as file:
        for number in numbers:
            try:
                group = _member(file, f"episode_{number}", h5py.Group)
                obs = [_array(group, f"observations{leaf}", spec) for leaf in leaves]
                actions, rewards = _array(group, "actions", spec), _array(group, "rewards", spec)
                infos = group.get("infos", getlink=True) is not None and _member(group, "infos", h5py.Group)
                told = infos and infos.get("success", getlink=True) is not None
                success = _array(infos, "success", spec) if told else None
                terminated = bool(_array(group, "terminations", spec)[-1])
                seed = int(group.attrs.get("seed", -1))
                yield _recorded(number, obs, actions, rewards, terminated, success, seed, low, high)
            except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
                yield number, f"it cannot be read: {error}"


def _member(group: Any, name: str, kind: Any) -> Any:
    """Return a member of an HDF5 group, by no link: one could lead into another file of this machine."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"`{name}` is a link to elsewhere, which is not followed")
    member = group[name]
    if not isinstance(member, kind):
        raise ValueError(f"`{name}` is not of the expected kind")
    return member


def _array(group: Any, path: str, spec: TaskSpec) -> np.ndarray:
    import h5py

    *folders, last = path.split("/")
    for name in folders:
        group = _member(group, name, h5py.Group)
    dataset = _member(group, last, h5py.Dataset)
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"`{path}` lies in another file, which is not read")
    if dataset.dtype.kind not in "fiub" or dataset.ndim < 1:
        raise ValueError(f"`{path}` holds {dataset.dtype}, expected numbers")
    check_arrays(dataset.shape[0], int(np.prod(dataset.shape[1:], dtype=np.float64)), spec, path)
    return dataset[()]


def _parquet_episodes(
    paths: list[Path], spec: TaskSpec, space: Any, low: np.ndarray, high: np.ndarray
) -> Iterator[Recorded | tuple[int, str]]:
    for path in paths:
        number = _number(path)
        try:
            with pq.ParquetFile(path) as file:
                check_arrays(file.metadata.num_rows, 1, spec, path.name)
                columns = set(file.schema_arrow.names)
                if missing := _COLUMNS - {"truncations"} - columns:
                    raise ValueError(f"the column {min(missing)} is missing")
                table = file.read(sorted((_COLUMNS | {"infos"}) & columns)).combine_chunks()
            leaves = _leaves(space) if space else [""]
            obs = [_column(table, "observations", leaf) for leaf in leaves]
            success = None
            if "infos" in table.column_names and pa.types.is_struct(table.schema.field("infos").type):
                info = table.schema.field("infos").type
                success = _column(table, "infos", "/success") if info.get_field_index("success") >= 0 else None
            # Everything but the observations is padded by one row.
            actions, rewards = _column(table, "actions")[:-1], _column(table, "rewards")[:-1]
            terminated = bool(_column(table, "terminations")[:-1][-1])
            about = path.with_name("metadata.json")
            seed = read_json(about, "minari").get("seed", -1) if about.is_file() else -1
            yield _recorded(number, obs, actions, rewards, terminated, success, int(seed), low, high)
        except (ValueError, TypeError, AttributeError, IndexError, OSError, pa.ArrowException) as error:
            yield number, f"it cannot be read: {str(error).splitlines()[0]}"


def _column(table: pa.Table, name: str, leaf: str = "") -> np.ndarray:
    """Return a column, or a field within it, as (rows,) or (rows, width)."""
    values: Any = table.column(name).combine_chunks()
    for part in filter(None, leaf.split("/")):
        values = values.field(part)
    kind = values.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        flat = values.flatten()
        if values.null_count or flat.null_count or len(values) == 0 or len(flat) % len(values):
            raise ValueError(f"`{name}{leaf}` is no list of vectors of one width")
        return _numbers(flat, name + leaf).reshape(len(values), -1)
    return _numbers(values, name + leaf)


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"`{name}` holds {values.type}, expected numbers")
    return values.to_numpy(zero_copy_only=False)


def _recorded(
    number: int,
    obs: list[np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: bool,
    success: np.ndarray | None,
    seed: int,
    low: np.ndarray,
    high: np.ndarray,
) -> Recorded:
    flat = np.concatenate([part.reshape(len(part), -1) for part in obs], 1)
    actions = actions.reshape(len(actions), -1).astype(np.float64)
    if actions.shape[1] != len(low):
        raise ValueError(f"its actions are {actions.shape[1]} wide, its action space says {len(low)}")
    scaled = 2 * (actions - low) / (high - low) - 1
    ended_well = None if success is None else bool(np.ravel(success)[-1])
    return Recorded(number, flat, scaled, np.ravel(rewards), terminated, ended_well, seed)


def _number(path: Path) -> int:
    return int(path.parent.name)
