"""Small mp4 videos that every browser plays: H.264, yuv420p."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from pipeline.files import atomic_file


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
    with atomic_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        # The index goes first, so that a page can play the file before it has all of it.
        container.options["movflags"] = "faststart"
        stream = None
        shape: tuple[int, ...] = ()
        for frame in frames:
            if stream is None:
                shape = _check(path, frame, frame.shape)
                stream = container.add_stream("libx264", rate=fps, options={"crf": "26", "preset": "medium"})
                stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
                stream.pix_fmt = "yuv420p"
            _check(path, frame, shape)
            padded = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        if stream is None:
            raise ValueError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())


def _check(path: str | Path, frame: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise ValueError(
            f"{path}: expected uint8 frames of shape (height, width, 3), all like the first, which has {shape}; "
            f"got {frame.dtype} {frame.shape}"
        )
    return frame.shape
