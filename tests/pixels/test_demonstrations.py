"""Demonstrations are replayed to draw and encode their images, once, and checked when they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.demos import FILE, write_episodes
from pipeline.data.episode import Episode
from pipeline.pixels.demonstrations import check_bodies, encode_demonstrations, observed_demonstrations
from pipeline.pixels.pixel_encoder import PixelEncoder
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from tests.pixels.painter import image_of, make_painter


def record(spec: TaskSpec, seed: int) -> Episode:
    env = make(spec, spec.obs_dim, spec.action_dim)
    observations, done = [env.reset(seed=seed)[0]], False
    while not done:
        obs, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        observations.append(obs)
        done = terminated or truncated
    env.close()
    length = len(observations) - 1
    still, rewards = np.zeros((length, 1), np.float32), np.zeros(length, np.float32)
    return Episode(spec.name, np.stack(observations), still, still, rewards, True, False, 0.0, 0.0, seed, "scripted")


def test_demonstrations_are_encoded_once_and_checked(painter: TaskSpec, pixel_encoder: PixelEncoder, tmp_path: Path):
    demos, vectors = tmp_path / "demos", tmp_path / "vectors"
    vectors.mkdir()
    episodes = [record(painter, seed) for seed in (3, 4)]
    write_episodes(demos / painter.name / FILE, episodes)
    with pytest.raises(FileNotFoundError, match="dvc repro embed"):
        observed_demonstrations(vectors, demos, painter, episodes, pixel_encoder)
    assert encode_demonstrations(vectors, demos, painter, episodes, pixel_encoder)
    assert not encode_demonstrations(vectors, demos, painter, episodes, pixel_encoder)
    for episode, one in zip(
        episodes, observed_demonstrations(vectors, demos, painter, episodes, pixel_encoder), strict=True
    ):
        one.check()
        np.testing.assert_array_equal(one.obs[:, :2], episode.obs)
        images = np.stack([image_of(float(start), int(steps)) for start, steps in episode.obs])
        np.testing.assert_allclose(one.obs[:, 2:], pixel_encoder.encoder.encode(images), rtol=1e-4, atol=1e-5)
    assert observed_demonstrations(vectors, demos, painter, episodes, None) == episodes
    assert observed_demonstrations(vectors / "none", demos, painter, [], pixel_encoder) == []

    write_episodes(demos / painter.name / FILE, episodes[:1])  # other demonstrations than the vectors are of
    with pytest.raises(ValueError, match="dvc repro embed"):
        observed_demonstrations(vectors, demos, painter, episodes[:1], pixel_encoder)
    episodes[0].obs[1, 0] += 1
    with pytest.raises(ValueError, match="does not come out as recorded"):
        encode_demonstrations(vectors, demos, painter, episodes, pixel_encoder)


def test_a_body_that_no_demonstration_shows_is_refused(painter: TaskSpec):
    other = make_painter("other", 2)
    check_bodies(
        [painter, other], {"painter": [record(painter, 3)], "other": []}
    )  # one body, shown by one of its tasks
    with pytest.raises(ValueError, match="needs demonstrations of other"):
        check_bodies(
            [painter, replace(other, embodiment="It paints too.")], {"painter": [record(painter, 3)], "other": []}
        )
