"""Demonstrations once more in the form of LeRobot, v3.0, which the Hub shows episode by episode.

All tasks are in one data set, their vectors padded with zeros to the widest. An episode of L steps has L + 1 frames,
one for each observation. The last frame repeats the last action, which nobody executed there, and no reward follows it.

Source: https://huggingface.co/docs/lerobot (LeRobotDataset v3.0)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.episode import Episode
from pipeline.extras import needs
from pipeline.files import write_json
from pipeline.pixels.demonstrations import replay_frames
from pipeline.progress import Progress
from pipeline.tasks.registry import make
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.video import write_video

with needs("pipeline"):
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

FPS = 10  # nominal: a frame is one agent step, whatever its time in the simulator
_CAMERA = "observation.images.main"
_CHUNK = 1000  # files of a folder
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_SCALARS = {
    "next.reward": pa.float32(), "next.done": pa.bool_(), "next.terminated": pa.bool_(), "next.success": pa.bool_(),
    "timestamp": pa.float32(), "frame_index": pa.int64(), "episode_index": pa.int64(), "index": pa.int64(),
    "task_index": pa.int64(),
}  # fmt: skip
Shown = Mapping[str, tuple[TaskSpec, Sequence[Episode]]]


@dataclass(frozen=True)
class LeRobotForm:
    """How much is written in LeRobot's form.

    Attributes:
        episodes: the first of each task.
        video_size: pixels of a side of their videos; 0 writes none.
    """

    episodes: int
    video_size: int


def write_lerobot(folder: Path, shown: Shown, size: int) -> list[str]:
    """Write `meta/`, `data/` and, with pictures, `videos/`.

    Args:
        folder: of the data set.
        shown: by task, its specification and the episodes to write.
        size: pixels of a side of the videos; 0 for none.

    Returns:
        The tasks whose frames are black, since they could not be drawn.

    Raises:
        ValueError: two of the tasks have one text.
    """
    texts = [spec.text() for spec, _ in shown.values()]
    if len(set(texts)) < len(texts):
        raise ValueError("two of the tasks have one text, which is all that tells them apart in LeRobot's form.")
    widths = tuple(
        max(getattr(episode, name).shape[1] for _, episodes in shown.values() for episode in episodes)
        for name in ("obs", "action")
    )
    rewarded = any(episode.rewarded for _, episodes in shown.values() for episode in episodes)
    tables, rows, frames = [], [], 0
    for number, (_, episodes) in enumerate(shown.values()):
        table = _table(episodes, widths, number, len(rows), frames)
        table = table if rewarded else table.drop_columns(["next.reward"])
        path = folder / _file("data", number, "parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        rows += _episode_rows(episodes, texts[number], number, len(rows), frames)
        frames += table.num_rows
        tables.append(table)
    drawn, black = _write_videos(folder, shown, size) if size else ([], [])
    videos = bool(drawn)
    if videos:
        _add_videos(rows)
    _write_meta(folder, pa.concat_tables(tables), rows, texts, size if videos else 0)
    return black if videos else []


def _file(kind: str, number: int, suffix: str) -> str:
    return f"{kind}/chunk-{number // _CHUNK:03d}/file-{number % _CHUNK:03d}.{suffix}"


def _table(episodes: Sequence[Episode], widths: tuple[int, ...], task: int, first: int, frames: int) -> pa.Table:
    """Return the frames of a task's episodes; `first` episodes and `frames` frames come before them."""
    lengths = [len(episode.obs) for episode in episodes]

    def vectors(name: str, width: int) -> pa.Array:
        parts = [getattr(episode, name) for episode in episodes]
        parts = [part if name == "obs" else np.concatenate([part, part[-1:]]) for part in parts]
        padded = np.pad(np.concatenate(parts), ((0, 0), (0, width - parts[0].shape[1])))
        return pa.FixedSizeListArray.from_arrays(pa.array(padded.ravel()), width)

    within = np.concatenate([np.arange(length) for length in lengths])
    is_last = within == np.repeat(lengths, lengths) - 1

    def at_end(values: Sequence[bool]) -> np.ndarray:
        return is_last & np.repeat(values, lengths)

    # No reward follows the last frame; where rewards are unknown it is unknown too.
    reward = [np.append(episode.reward, 0.0 if episode.rewarded else np.nan) for episode in episodes]
    scalars = {
        "next.reward": np.concatenate(reward),
        "next.done": at_end([True] * len(episodes)),
        "next.terminated": at_end([episode.terminated for episode in episodes]),
        "next.success": at_end([episode.success for episode in episodes]),
        "timestamp": within / FPS,
        "frame_index": within,
        "episode_index": np.repeat(first + np.arange(len(episodes)), lengths),
        "index": frames + np.arange(sum(lengths)),
        "task_index": np.full(sum(lengths), task),
    }
    obs, action = widths
    columns = {
        "observation.state": vectors("obs", obs),
        "action": vectors("action", action),
        "expert_action": vectors("expert_action", action),
    }
    columns |= {name: pa.array(scalars[name]).cast(kind) for name, kind in _SCALARS.items()}
    return pa.table(columns)


def _episode_rows(episodes: Sequence[Episode], text: str, task: int, first: int, frames: int) -> list[dict[str, Any]]:
    """Return what meta/episodes says of a task's episodes: where each lies."""
    rows = []
    for number, episode in enumerate(episodes):
        place = {"chunk_index": task // _CHUNK, "file_index": task % _CHUNK}
        rows.append(
            {
                "episode_index": first + number,
                "tasks": [text],
                "length": len(episode.obs),
                **{f"data/{name}": value for name, value in place.items()},
                "dataset_from_index": frames,
                "dataset_to_index": frames + len(episode.obs),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        frames += len(episode.obs)
    return rows


def _add_videos(rows: list[dict[str, Any]]) -> None:
    """Say of each episode which part of its task's video is its own."""
    passed: dict[tuple[int, int], int] = {}  # frames of each video before this episode
    for row in rows:
        place = row["data/chunk_index"], row["data/file_index"]
        start = passed.get(place, 0)
        passed[place] = start + row["length"]
        row[f"videos/{_CAMERA}/chunk_index"], row[f"videos/{_CAMERA}/file_index"] = place
        row[f"videos/{_CAMERA}/from_timestamp"] = start / FPS
        row[f"videos/{_CAMERA}/to_timestamp"] = passed[place] / FPS


def _write_videos(folder: Path, shown: Shown, size: int) -> tuple[list[str], list[str]]:
    """Film every task; return which could be drawn, and which are black. Where none could, there are no videos."""
    drawn: list[str] = []
    black: list[str] = []
    for number, (task, (spec, episodes)) in enumerate(shown.items()):
        path = folder / _file(f"videos/{_CAMERA}", number, "mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_video(path, _frames(spec, episodes, size), FPS)
            drawn.append(task)
        except (RenderingUnavailable, ValueError) as error:
            print(f"publish: no pictures of {task}: {error}", file=sys.stderr)
            black.append(task)
    for number, (task, (_, episodes)) in enumerate(shown.items()):
        if drawn and task in black:
            frames = sum(len(episode.obs) for episode in episodes)
            path = folder / _file(f"videos/{_CAMERA}", number, "mp4")
            write_video(path, (np.zeros((size, size, 3), np.uint8) for _ in range(frames)), FPS)
    return drawn, black


def _frames(spec: TaskSpec, episodes: Sequence[Episode], size: int) -> Iterator[np.ndarray]:
    """Play demonstrations again from their seeds and draw every observation."""
    env = make(spec, spec.obs_dim, spec.action_dim, size)
    try:
        with Progress(f"videos of {spec.name}", len(episodes), "episodes") as progress:
            for number, episode in enumerate(episodes):
                yield from replay_frames(env, episode, f"{spec.name}: demonstration {number}")
                progress.update(1)
    finally:
        env.close()


def _write_meta(folder: Path, frames: pa.Table, rows: list[dict[str, Any]], texts: list[str], size: int) -> None:
    """Write meta/: what the columns are, the tasks' texts, where every episode lies, statistics."""
    meta = folder / "meta"
    (meta / "episodes/chunk-000").mkdir(parents=True, exist_ok=True)
    features: dict[str, Any] = {}
    for field in frames.schema:
        width = field.type.list_size if pa.types.is_fixed_size_list(field.type) else 1
        kind = field.type.value_type if pa.types.is_fixed_size_list(field.type) else field.type
        dtype = {"float": "float32"}.get(str(kind), str(kind))
        features[field.name] = {"dtype": dtype, "shape": [width], "names": None}
    if size:
        about = {"height": size, "width": size, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
        about |= {"fps": FPS, "channels": 3}
        features[_CAMERA] = {
            "dtype": "video",
            "shape": [size, size, 3],
            "names": ["height", "width", "channels"],
            "info": {**{f"video.{name}": value for name, value in about.items()}, "has_audio": False},
        }
    write_json(
        meta / "info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(rows),
            "total_frames": frames.num_rows,
            "total_tasks": len(texts),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": FPS,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if size else None,
            "features": features,
        },
    )
    # LeRobot finds a task by the index of the table, which is its text.
    pd.DataFrame({"task_index": range(len(texts))}, index=pd.Index(texts)).to_parquet(meta / "tasks.parquet")
    pq.write_table(pa.Table.from_pylist(rows), meta / "episodes/chunk-000/file-000.parquet")
    write_json(meta / "stats.json", {name: _statistics(frames[name].combine_chunks()) for name in frames.column_names})


def _statistics(column: Any) -> dict[str, list]:
    """Return what LeRobot's policies normalise by, of the frames where it is known."""
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    values = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float64)
    values = values[~np.isnan(values).any(1)]
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    found |= {name: np.quantile(values, share, axis=0) for name, share in _QUANTILES.items()}
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}
