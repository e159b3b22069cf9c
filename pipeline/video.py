"""Small mp4 videos that every browser plays: H.264, yuv420p."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.extras import needs
from pipeline.files import atomic_file

with needs("video"):
    import av


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write RGB frames as mp4, atomically.

    Args:
        path: the file, replaced if it is there.
        frames: (height, width, 3) uint8 each, all of one size; they are consumed one by one. An odd height or width is
            padded by repeating the last row or column, since H.264 stores colour at half the resolution.
        fps: frames per second.

    Raises:
        ValueError: there are no frames, or one has another type or size than the first.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    _check(path, first, first.shape)
    odd_rows, odd_columns = first.shape[0] % 2, first.shape[1] % 2
    with atomic_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        # The index goes first, so that a page can play the file before it has all of it.
        container.options["movflags"] = "faststart"
        stream = container.add_stream("libx264", rate=fps, options={"crf": "26", "preset": "medium"})
        stream.height, stream.width = first.shape[0] + odd_rows, first.shape[1] + odd_columns
        stream.pix_fmt = "yuv420p"
        for frame in itertools.chain([first], frames):
            _check(path, frame, first.shape)
            padded = np.pad(frame, ((0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode())


def _check(path: str | Path, frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise ValueError(
            f"{path}: expected uint8 frames of shape (height, width, 3), all like the first, which has {shape}; "
            f"got {frame.dtype} {frame.shape}"
        )
