"""What was filmed is what plays: size, length, rate, colours; and nothing half-written."""

import av
import numpy as np
import pytest

from pipeline.video import write_video


def decode(path) -> tuple[av.VideoStream, list[np.ndarray]]:
    container = av.open(str(path))
    stream = container.streams.video[0]
    return stream, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_plays_what_was_filmed(tmp_path):
    shades = [20, 120, 220, 60]
    write_video(tmp_path / "a.mp4", (np.full((64, 96, 3), shade, np.uint8) for shade in shades), fps=25)
    stream, frames = decode(tmp_path / "a.mp4")
    assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 4
    assert [frame.mean() for frame in frames] == pytest.approx(shades, abs=4)


def test_colours_keep_their_order(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    write_video(tmp_path / "red.mp4", [red] * 3, fps=10)
    _, frames = decode(tmp_path / "red.mp4")
    assert frames[0][..., 0].mean() > 200
    assert frames[0][..., 2].mean() < 40


def test_an_odd_size_is_padded(tmp_path):
    write_video(tmp_path / "odd.mp4", [np.full((33, 35, 3), 90, np.uint8)] * 2, fps=10)
    _, frames = decode(tmp_path / "odd.mp4")
    assert frames[0].shape == (34, 36, 3)
    assert frames[0][-1].mean() == pytest.approx(90, abs=4)


def test_the_index_comes_before_the_images(tmp_path):
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, fps=10)
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame"),
        ([np.zeros((32, 32, 3), np.float32)], "float32"),
        ([np.zeros((32, 32), np.uint8)], r"\(32, 32\)"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 34, 3), np.uint8)], r"got uint8 \(32, 34, 3\)"),
    ],
)
def test_bad_frames_are_refused_and_the_old_file_stays(tmp_path, frames, message):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        write_video(path, frames, fps=10)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"
