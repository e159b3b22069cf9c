"""Plain arrays: `.npz` or `.parquet`, a file or a folder of them, by the names that most people give their arrays.

A file holds one episode, or several side by side with the number of each row's episode in `episode` (or, as diffusion
policy has it, where each ends in `episode_ends`), or an array with one more dimension in front, or (parquet) one row
per episode with lists in it. Where there are as many observations as actions, and no next observations, the last
action of an episode is left out: nothing says where it led.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.extras import needs
from pipeline.importers.actions import as_corners, say_corners
from pipeline.importers.episodes import Recorded, Source, check_arrays, check_rewards, choose, first_end, success_at
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    import pyarrow as pa
    import pyarrow.parquet as pq

NAMES = {
    "obs": ("obs", "observations", "observation"),
    "next_obs": ("next_obs", "next_observations", "next_observation"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminations", "terminals", "terminal"),
    "truncated": ("truncated", "truncations", "timeouts", "timeout"),
    "done": ("done", "dones"),
    "success": ("success", "is_success"),
    "episode": ("episode", "episode_index"),
    "episode_ends": ("episode_ends",),
}
PATTERNS = ["*.npz", "*.parquet"]
_ENDS = ("terminated", "truncated", "done")
_ROWS = ("obs", "next_obs", "action")  # of every step, where others may be of the whole episode
_MOST_BYTES = 2**31  # of one file, unpacked
Columns = dict[str, np.ndarray]


def read_demos(path: str | Path, spec: TaskSpec, features: Sequence[str] = ()) -> Source:
    """Read the episodes of plain files.

    Args:
        path: a file, or a folder of them, read by name.
        spec: the task they are of.
        features: arrays to join into the observation, in this order; none for the one called `obs`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, or lacks actions or observations.
    """
    path = Path(path)
    there = sorted(one for form in PATTERNS for one in path.glob(form) if not one.name.startswith("."))
    files = [path] if path.is_file() else there
    if not files:
        raise FileNotFoundError(f"{path} is neither a .npz or .parquet file nor a folder of them.")
    episodes: list[Recorded | tuple[int, str]] = []
    ignored: set[str] = set()
    notes: list[str] = []
    for file in files:
        for columns in _load(file):
            try:
                named = _name(columns, spec, features, notes)
                parts = list(_split(named))
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            ignored |= columns.keys() - {name for names in NAMES.values() for name in names} - set(features)
            for part in parts:
                number = len(episodes)
                try:
                    episodes.append(_recorded(number, part, notes))
                except ValueError as error:
                    episodes.append((number, str(error)))
    return Source("plain", files, episodes, len(episodes), sorted(ignored), notes)


def _name(columns: Columns, spec: TaskSpec, features: Sequence[str], notes: list[str]) -> Columns:
    """Return the columns by our names, the observation joined from its parts."""
    named = {}
    for ours, theirs in NAMES.items():
        there = [name for name in theirs if name in columns]
        if len(there) > 1:
            raise ValueError(f"it holds {' and '.join(there)}, which both would be {ours}. Remove one.")
        if there:
            named[ours] = columns[there[0]]
    if "action" in named:
        _check_rows("action", named["action"])
        named["action"] = _chosen(named["action"], spec, notes)
    if features:
        # Of several episodes at once, arrays have one dimension more.
        front = max(named["action"].ndim - 1, 1) if "action" in named else 1
        vectors = {
            name: array.reshape(*array.shape[:front], -1) for name, array in columns.items() if array.ndim >= front
        }
        chosen = choose(list(vectors), {name: array.shape[-1] for name, array in vectors.items()}, features, spec)
        named["obs"] = np.concatenate([vectors[name] for name in chosen], -1)
        named.pop("next_obs", None)
        _note(notes, f"observations: {' + '.join(chosen)}")
    if missing := [name for name in ("obs", "action") if name not in named]:
        raise ValueError(f"it has no `{missing[0]}`. It has: {', '.join(columns)}.")
    return named


def _chosen(action: np.ndarray, spec: TaskSpec, notes: list[str]) -> np.ndarray:
    """Return choices, one whole number a step, as actions of a task that takes several numbers; others as they are."""
    single = action.ndim == 1 or (action.ndim > 1 and action.shape[-1] == 1)
    if action.dtype.kind not in "iu" or not single or spec.action_dim == 1:
        return action
    _note(notes, say_corners([spec.action_dim]))
    return as_corners(action[:, None] if action.ndim == 1 else action, [spec.action_dim], [0])


def _split(columns: Columns) -> Iterator[Columns]:
    """Yield the columns of each episode."""
    if columns["action"].ndim == 3:
        yield from _whole(columns)
        return
    if "episode_ends" in columns:
        columns |= {"episode": _numbered(columns.pop("episode_ends"), len(columns["action"]))}
    if "episode" not in columns:
        yield columns
        return
    ids, rows = np.ravel(columns.pop("episode")), len(columns["action"])
    if (missing := np.isnan(ids)).any():
        raise ValueError(f"`episode` is missing at step {int(missing.argmax())}.")
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    if len(ids) != rows or len(np.unique(ids)) != len(starts):
        raise ValueError(
            f"`episode` must say for each of the {rows} steps which episode it is of, and the steps of one must stand "
            f"side by side; it has {len(ids)} values, in {len(starts)} runs of {len(np.unique(ids))} episodes."
        )
    for name, values in columns.items():
        if values.ndim < 1 or len(values) not in ((rows,) if name in _ROWS else (rows, len(starts))):
            raise ValueError(f"`{name}` has the shape {values.shape} for {rows} steps of {len(starts)} episodes.")
    for number, (first, after) in enumerate(zip(starts, [*starts[1:], rows], strict=True)):
        part = {}
        for name, values in columns.items():
            part[name] = values[first:after] if len(values) == rows else values[number]
        part["several"] = np.ones(1)
        yield part


def _whole(columns: Columns) -> Iterator[Columns]:
    """Yield the columns of each episode where arrays have a dimension for them in front."""
    count = len(columns["action"])
    rest = {name: values for name, values in columns.items() if name not in ("episode", "episode_ends")}
    for name, values in rest.items():
        if values.ndim < 1 or len(values) != count:
            raise ValueError(f"`{name}` has the shape {values.shape}, expected a row for each of {count} episodes.")
    for number in range(count):
        yield {name: values[number] for name, values in rest.items()}


def _numbered(ends: np.ndarray, rows: int) -> np.ndarray:
    """Return the number of each step's episode, of the numbers of steps up to the end of each episode."""
    lengths = np.diff(np.ravel(ends).astype(np.float64), prepend=0)
    if not len(lengths) or not (lengths > 0).all() or not np.equal(lengths, lengths.round()).all():
        raise ValueError(f"`episode_ends` is {ends}: expected the steps up to the end of each episode, rising.")
    if lengths.sum() != rows:
        raise ValueError(f"`episode_ends` ends with {lengths.sum():g}, there are {rows} steps.")
    return np.repeat(np.arange(len(lengths)), lengths.astype(int))


def _recorded(number: int, part: Columns, notes: list[str]) -> Recorded:
    """Make an episode of its columns, cut at its end."""
    for name in _ROWS:
        if name in part:
            _check_rows(name, part[name])
    length = len(part["action"])
    several = part.pop("several", None) is not None
    flags = {name: _per_step(part[name], length) for name in _ENDS if name in part}
    ended, cut = first_end(length, **flags)
    if cut and not several:
        raise ValueError(
            f"it has {cut}. If the file holds several episodes, say which each step is of in `episode`: "
            "`episode = np.cumsum(np.r_[0, over[:-1]])` with the ends in `over`"
        )
    if "terminated" not in flags:
        _note(notes, "not told which episodes ended for good: each is taken for one that its time limit ended")
    obs, steps = _observed(part, length, ended)
    if steps < ended:
        _note(notes, "the last action of every episode is left out, since no observation follows it")
    terminated = "terminated" in flags and steps == ended and bool(flags["terminated"][ended - 1])
    reward = _rewarded(part, length, ended, steps)
    success = np.ravel(part["success"]) if "success" in part else None
    if success is not None and len(success) not in (1, length):
        raise ValueError(f"`success` is told for {len(success)} steps, there are {length}")
    ended_well = success_at(success, -1 if success is None or len(success) == 1 else ended - 1)
    action = part["action"].reshape(length, -1)
    return Recorded(number, obs, action[:steps], reward[:steps], terminated, ended_well, cut=cut)


def _check_rows(name: str, values: np.ndarray) -> None:
    """Refuse what has no rows, or nothing in them."""
    if values.ndim < 1:
        raise ValueError(f"`{name}` is one number, expected a row for every step")
    if not values.size:
        raise ValueError(f"`{name}` is empty, its shape is {values.shape}")


def _rewarded(part: Columns, length: int, ended: int, steps: int) -> np.ndarray:
    """Return the rewards of at least `steps` steps; one number of the whole episode is that of its last step."""
    if "reward" not in part:
        return np.full(ended, np.nan)
    if np.size(part["reward"]) != 1:
        return check_rewards(part["reward"], length)
    if length > 1 and steps < ended:
        raise ValueError("its one reward is of its last action, which no observation follows: add the last one")
    return np.r_[np.full(ended - 1, np.nan), np.ravel(part["reward"]).astype(np.float64)]


def _observed(part: Columns, length: int, ended: int) -> tuple[np.ndarray, int]:
    """Return the observations up to the end, the last one included, and the steps whose outcome they show."""
    obs = part["obs"].reshape(len(part["obs"]), -1)
    if len(obs) == length + 1:
        return obs[: ended + 1], ended
    if len(obs) != length:
        raise ValueError(f"it has {len(obs)} observations for {length} actions")
    if "next_obs" not in part:
        return obs[:ended], ended - 1
    following = part["next_obs"].reshape(len(part["next_obs"]), -1)
    if len(following) != length:
        raise ValueError(f"it has {len(following)} next observations for {length} actions")
    return np.concatenate([obs[:ended], following[ended - 1 : ended]]), ended


def _per_step(flag: np.ndarray, length: int) -> np.ndarray:
    """Return a flag of every step; one number of the whole episode is that of its last step."""
    return np.r_[np.zeros(length - 1), np.ravel(flag)] if np.size(flag) == 1 else np.ravel(flag)


def _note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _load(path: Path) -> list[Columns]:
    """Return the numbers of a file, by name: of the whole, or of each row where a row is an episode."""
    if path.suffix == ".npz":
        return [_load_npz(path)]
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not readable parquet: {str(error).splitlines()[0]}") from None
    check_arrays(table.num_rows, 1, path.name)
    kinds = {field.name: field.type for field in table.schema}
    if any(_is_list(kind) and _is_list(kind.value_type) for kind in kinds.values()):
        rows = table.to_pylist()
        return [dict(_arrays(row, path)) for row in rows]
    return [dict(_arrays({name: _values(table[name]) for name in kinds}, path))]


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _values(column: Any) -> Any:
    """Return a column of numbers, or of lists of numbers, as an array or as lists."""
    return column.to_pylist() if _is_list(column.type) else column.to_numpy()


def _arrays(values: Mapping[str, Any], path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what is made of numbers; a missing one becomes NaN."""
    for name, value in values.items():
        if value is None:  # in this row
            continue
        try:
            array = np.asarray(value)
            if array.dtype == object:
                array = array.astype(np.float64)
        except (ValueError, TypeError):
            if any(name in names for names in NAMES.values()):
                raise ValueError(
                    f"{path}: `{name}` is made of lists of different lengths, or not of numbers."
                ) from None
            continue
        if array.dtype.kind in "fiub":
            yield name, array


def _load_npz(path: Path) -> Columns:
    columns = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"it unpacks to more than {_MOST_BYTES / 2**30:.0f} GiB")
            for info in archive.infolist():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"`{info.filename}` is packed as NumPy packs nothing")
                file = io.BytesIO(archive.read(info))
                short = np.lib.format.read_magic(file) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if short else np.lib.format.read_array_header_2_0
                shape, _, dtype = header(file)
                if dtype.hasobject or dtype.kind not in "fiub":
                    continue
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"`{info.filename}` says it is {shape}, which is more than the file holds")
                file.seek(0)
                columns[info.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
        MemoryError,
        ValueError,
        OSError,
        EOFError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:
        raise ValueError(f"{path} is no .npz of plain arrays; nothing in it was run: {error}") from None
    return columns
