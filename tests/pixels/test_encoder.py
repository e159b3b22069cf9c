"""Pictures become vectors: by the model's own pooling, the same whatever the batch, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pipeline import config
from pipeline.vision.encoder import PictureEncoder
from pipeline.vision.sight import Sight, load_sight

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)


def test_a_vector_is_the_class_token_of_the_normalised_picture(picture_encoder: Path):
    encoder = PictureEncoder(str(picture_encoder), 28, 8)
    vectors = encoder.encode(PICTURES)
    assert vectors.shape == (5, encoder.dim) == (5, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(PICTURES) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(picture_encoder).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_batches_and_calls_do_not_change_a_vector(picture_encoder: Path):
    whole, pairs = (PictureEncoder(str(picture_encoder), 28, size) for size in (8, 2))
    np.testing.assert_array_equal(whole.encode(PICTURES), whole.encode(PICTURES))
    np.testing.assert_allclose(whole.encode(PICTURES), pairs.encode(PICTURES), rtol=1e-4, atol=1e-5)
    assert whole.encode(PICTURES[:0]).shape == (0, 16)


def test_the_id_follows_the_weights(picture_encoder: Path, tmp_path: Path):
    other = shutil.copytree(picture_encoder, tmp_path / "tiny-dinov2")
    assert PictureEncoder(str(other), 28, 8).id == PictureEncoder(str(picture_encoder), 28, 8).id
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert PictureEncoder(str(other), 28, 8).id != PictureEncoder(str(picture_encoder), 28, 8).id


def test_pictures_of_another_form_are_refused(picture_encoder: Path):
    encoder = PictureEncoder(str(picture_encoder), 28, 8)
    for wrong in (PICTURES[:, :14], PICTURES.astype(np.float32), PICTURES[0]):
        with pytest.raises(ValueError, match=r"expected pictures \(n, 28, 28, 3\)"):
            encoder.encode(wrong)


def test_what_is_no_image_model_is_refused(picture_encoder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="expected a Hub id such as facebook/dinov2-base"):
        PictureEncoder("no such folder", 28, 8)
    folder = shutil.copytree(picture_encoder, tmp_path / "odd")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": "grey"}))
    with pytest.raises(ValueError, match="three numbers"):
        PictureEncoder(str(folder), 28, 8)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no image model"):
        PictureEncoder(str(folder), 28, 8)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        PictureEncoder(str(folder), 28, 8)


def test_an_encoder_that_is_not_to_be_had_says_how_to_go_on(monkeypatch, tmp_path: Path):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="set HF_HOME"):
        PictureEncoder("facebook/dinov2-base", 224, 8)


def test_the_vector_stands_behind_the_state_or_in_its_place(picture_encoder: Path):
    encoder = PictureEncoder(str(picture_encoder), 28, 8)
    vectors = np.arange(32, dtype=np.float32).reshape(2, 16) + 100
    for observe, first in (("both", (3, 2)), ("pictures", (0, 0))):
        sight = Sight(encoder, observe)
        obs = np.zeros((2, 24), np.float32)
        obs[0, :3], obs[1, :2] = [1, 2, 3], [4, 5]
        sight.look(obs, [3, 2], vectors)
        for row, start in enumerate(first):
            np.testing.assert_array_equal(obs[row, start : start + 16], vectors[row])
            assert not obs[row, start + 16 :].any()
            assert sight.width([3, 2][row]) == start + 16
        assert obs[0, 0] == (1 if observe == "both" else 100)


def test_without_pictures_nothing_is_loaded():
    assert load_sight(config.Vision("state", "nobody/nothing", 224, 8), "cpu") is None
