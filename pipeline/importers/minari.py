"""Minari data sets, read by their files' form: HDF5 (needs h5py, the extra `minari`) or parquet, one group per episode.

Source: https://minari.farama.org (dataset standards), version 0.5
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.extras import needs
from pipeline.files import read_json
from pipeline.importers.actions import as_corners, say_corners
from pipeline.importers.episodes import Recorded, Source, check_arrays, check_rewards, choose, first_end, success_at
from pipeline.importers.hdf5 import array, member, open_hdf5
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    import pyarrow as pa
    import pyarrow.parquet as pq

PATTERNS = ["data/metadata.json", "data/main_data.hdf5", "data/*/*.parquet"]
_NEEDED = ["observations", "actions"]
_ENDS = ("terminations", "truncations")
_MOST_CHOICES = 65536
Choices = tuple[list[int], list[int]]  # among how many each is chosen, and the lowest number of each
_ENDS_UNKNOWN = "no `terminations` in it: every episode is taken for one that its time limit ended"


class Leaf(NamedTuple):
    """A part of a space: how many values it is, and among how many it chooses if it is a choice."""

    width: int
    choices: Choices | None

    def flat(self, values: np.ndarray) -> np.ndarray:
        """Return values (L, ...) as (L, width), choices as Gymnasium flattens them: 1 for what is chosen, else 0."""
        wide = values.reshape(len(values), -1)
        return (as_corners(wide, *self.choices) + 1) / 2 if self.choices else wide


def read_demos(folder: str | Path, spec: TaskSpec, features: Sequence[str] = ()) -> Source:
    """Find the episodes of a Minari data set, `folder/data/` or that folder itself.

    Observations are flattened as Gymnasium does it, or are the given parts of a Dict; actions are scaled from the data
    set's bounds to [-1, 1]. An episode ends with the first step at which it was terminated or truncated.

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
    try:
        choices, leaves = _choices(action, spec), _observed(observation, features, spec)
    except ValueError as error:
        raise ValueError(f"{data}: {error}") from None
    low, high = (-1.0, 1.0) if choices else _bounds(action, spec, data)
    notes = [f"data set {about.get('dataset_id', 'without a name')}, made by {about.get('algorithm_name', 'unknown')}"]
    unread = [leaf for leaf in (_leaves(observation) if observation else {}) if leaf not in leaves]
    notes += [f"observations: {' + '.join(leaves)}"] if list(leaves) != [""] else []
    notes += [say_corners(choices[0])] if choices else []
    if form == "hdf5":
        files = [data / "main_data.hdf5"]
        numbers = _hdf5_numbers(files[0])
        episodes, total = _hdf5_episodes(files[0], numbers, leaves, choices, notes), len(numbers)
    elif form == "parquet":
        there = (path for path in data.glob("*/*.parquet") if not path.name.startswith("."))
        files = sorted((path for path in there if path.parent.name.isdecimal()), key=_number)
        episodes, total = _parquet_episodes(files, leaves, choices, notes), len(files)
    else:
        raise ValueError(f"{data}: Minari's form {form!r} is not read, only hdf5 and parquet.")
    if not total:
        raise FileNotFoundError(f"{data} holds no episodes.")
    return Source(
        form="minari",
        files=[data / "metadata.json", *files],
        episodes=episodes,
        total=total,
        ignored=["infos (but infos/success)", *unread],
        notes=notes,
        low=low,
        high=high,
    )


def _space(text: Any, data: Path) -> Any:
    """Read a space's description. Those that become numbers are known; nothing is built from it."""
    if text is None:
        return None
    try:
        space = json.loads(text)
        _leaves(space)
    except (TypeError, ValueError, KeyError, RecursionError):
        raise ValueError(
            f"{data}: the space {str(text)[:80]!r} is no Box, Discrete, MultiDiscrete, MultiBinary, and no Dict or "
            "Tuple of these."
        ) from None
    return space


def _leaves(space: Any, path: str = "") -> dict[str, Leaf]:
    """Return the parts of a space by path, in the order in which Gymnasium flattens them: a Dict's by key."""
    if space["type"] in ("Dict", "Tuple"):
        parts = space["subspaces"]
        within = (
            sorted(parts.items()) if space["type"] == "Dict" else [(f"_index_{i}", one) for i, one in enumerate(parts)]
        )
        return {leaf: about for key, one in within for leaf, about in _leaves(one, f"{path}/{key}".strip("/")).items()}
    if space["type"] in ("Discrete", "MultiDiscrete"):
        counts = [int(count) for count in np.ravel(space["n" if space["type"] == "Discrete" else "nvec"])]
        start = [int(first) for first in np.ravel(space.get("start") or [0] * len(counts))]
        if min(counts) < 1 or len(start) != len(counts) or sum(counts) > _MOST_CHOICES:
            raise ValueError(counts)
        return {path: Leaf(sum(counts), (counts, start))}
    if space["type"] == "MultiBinary":
        return {path: Leaf(math.prod(int(size) for size in np.ravel(space["n"])), None)}
    if space["type"] == "Text" and path:  # beside others it is left out
        return {path: Leaf(0, None)}
    if space["type"] != "Box":
        raise ValueError(space["type"])
    return {path: Leaf(math.prod(int(size) for size in space["shape"]), None)}


def _observed(space: Any, features: Sequence[str], spec: TaskSpec) -> dict[str, Leaf]:
    """Return the parts of `observations` to take, by path; the empty one is the whole."""
    leaves = _leaves(space) if space else {"": Leaf(spec.obs_dim, None)}
    if list(leaves) != [""]:
        widths = {path: leaf.width for path, leaf in leaves.items() if leaf.width}
        return {path: leaves[path] for path in choose(list(widths), widths, features, spec)}
    if features:
        raise ValueError("its observations are one vector, of which --features cannot choose a part.")
    return leaves


def _choices(space: Any, spec: TaskSpec) -> Choices | None:
    """Return among how many an action chooses, where it does."""
    if space is None or space["type"] not in ("Discrete", "MultiDiscrete"):
        return None
    (leaf,) = _leaves(space).values()
    if leaf.width != spec.action_dim:
        counts = " + ".join(map(str, leaf.choices[0])) if leaf.choices else ""
        raise ValueError(f"its actions choose among {counts}, {spec.name} has {spec.action_dim} action dims.")
    return leaf.choices


def _bounds(space: Any, spec: TaskSpec, data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the action space's bounds; those of an unbounded space are infinite."""
    if space is None:
        return -np.ones(spec.action_dim), np.ones(spec.action_dim)
    try:
        low, high = (np.asarray(space[side], np.float64).ravel() for side in ("low", "high"))
        sound = space["type"] == "Box" and low.shape == high.shape == (spec.action_dim,)
    except (TypeError, ValueError, KeyError):
        sound, low, high = False, np.zeros(0), np.zeros(0)
    if not sound:
        raise ValueError(f"{data}: the action space is no Box of {spec.action_dim} values, as {spec.name} has.")
    return low, high


def _hdf5_numbers(path: Path) -> list[int]:
    with open_hdf5(path) as file:
        names = [str(name).removeprefix("episode_") for name in file if str(name).startswith("episode_")]
    return sorted(int(name) for name in names if name.isdecimal())


def _hdf5_episodes(
    path: Path, numbers: list[int], leaves: dict[str, Leaf], choices: Choices | None, notes: list[str]
) -> Iterator[Recorded | tuple[int, str]]:
    with needs("minari"):
        import h5py

    with open_hdf5(path) as file:
        for number in numbers:
            try:
                group = member(file, f"episode_{number}", h5py.Group)
                obs = [one.flat(array(group, f"observations/{leaf}".rstrip("/"))) for leaf, one in leaves.items()]
                infos = member(group, "infos", h5py.Group) if _has(group, "infos") else {}
                ends = {name: array(group, name) if _has(group, name) else None for name in _ENDS}
                success = array(infos, "success") if infos and _has(infos, "success") else None
                actions = array(group, "actions")
                rewards = array(group, "rewards") if _has(group, "rewards") else np.full(len(actions), np.nan)
                actions = _acted(actions, choices)
                yield _recorded(number, obs, actions, rewards, ends, success, group.attrs.get("seed"), notes)
            except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
                yield number, f"it cannot be read: {error}"


def _acted(actions: np.ndarray, choices: Choices | None) -> np.ndarray:
    """Return actions (L, a), choices as the actions that make them."""
    wide = actions.reshape(len(actions), -1)
    return as_corners(wide, *choices) if choices else wide


def _has(group: Any, name: str) -> bool:
    return group.get(name, getlink=True) is not None


def _parquet_episodes(
    paths: list[Path], leaves: dict[str, Leaf], choices: Choices | None, notes: list[str]
) -> Iterator[Recorded | tuple[int, str]]:
    for path in paths:
        number = _number(path)
        try:
            with pq.ParquetFile(path) as file:
                check_arrays(file.metadata.num_rows, 1, path.name)
                columns = set(file.schema_arrow.names)
                if missing := set(_NEEDED) - columns:
                    raise ValueError(f"the column {min(missing)} is missing")
                read = [*_NEEDED, "rewards", *_ENDS, "infos"]
                table = file.read([name for name in read if name in columns]).combine_chunks()
            obs = [one.flat(_column(table, "observations", leaf)) for leaf, one in leaves.items()]
            success = None
            if "infos" in table.column_names and pa.types.is_struct(table.schema.field("infos").type):
                info = table.schema.field("infos").type
                success = _column(table, "infos", "success") if info.get_field_index("success") >= 0 else None
            # Everything but the observations is padded by one row.
            actions = _column(table, "actions")[:-1]
            rewards = _column(table, "rewards")[:-1] if "rewards" in columns else np.full(len(actions), np.nan)
            ends = {name: _column(table, name)[:-1] if name in columns else None for name in _ENDS}
            actions = _acted(actions, choices)
            about = path.with_name("metadata.json")
            seed = read_json(about, "minari").get("seed") if about.is_file() else None
            yield _recorded(number, obs, actions, rewards, ends, success, seed, notes)
        except (ValueError, TypeError, AttributeError, IndexError, OSError, pa.ArrowException) as error:
            yield number, f"it cannot be read: {str(error).splitlines()[0]}"


def _column(table: pa.Table, name: str, leaf: str = "") -> np.ndarray:
    """Return a column, or a field within it, as (rows,) or (rows, width)."""
    label = f"{name}/{leaf}".rstrip("/")
    values: Any = table.column(name).combine_chunks()
    for part in filter(None, leaf.split("/")):
        values = values.field(part.removeprefix("_index_"))  # of a Tuple, which goes by number here
    kind = values.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        flat = values.flatten()
        if values.null_count or flat.null_count or len(values) == 0 or len(flat) % len(values):
            raise ValueError(f"`{label}` is no list of vectors of one width")
        return _numbers(flat, label).reshape(len(values), -1)
    return _numbers(values, label)


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise ValueError(f"`{name}` holds {values.type}, expected numbers")
    return values.to_numpy(zero_copy_only=False)


def _recorded(
    number: int,
    obs: list[np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray,
    ends: dict[str, np.ndarray | None],
    success: np.ndarray | None,
    seed: Any,
    notes: list[str],
) -> Recorded:
    flat = np.concatenate(obs, 1)
    rewards = check_rewards(rewards, len(actions))
    length, cut = first_end(len(actions), **ends)
    over = len(actions) - length
    actions = actions[:length]
    terminated = ends["terminations"] is not None and bool(np.ravel(ends["terminations"])[length - 1])
    ended_well = success_at(success, -1 - over)
    flat, rewards = flat[: len(flat) - over], rewards[:length]
    if ends["terminations"] is None and _ENDS_UNKNOWN not in notes:
        notes.append(_ENDS_UNKNOWN)
    known = isinstance(seed, (int, np.integer))  # else None, or the text "None"
    return Recorded(number, flat, actions, rewards, terminated, ended_well, int(seed) if known else -1, cut)


def _number(path: Path) -> int:
    return int(path.parent.name)
