"""Images become vectors: by the model's own pooling, the same whatever the batch, refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pipeline import config
from pipeline.pixels.encoder import FrozenEncoder
from pipeline.pixels.pixel_encoder import PixelEncoder, check_picture, load_pixel_encoder

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), np.uint8)


def test_a_vector_is_the_class_token_of_the_normalised_image(encoder_folder: Path):
    encoder = FrozenEncoder(str(encoder_folder), 28, 8)
    vectors = encoder.encode(IMAGES)
    assert vectors.shape == (5, encoder.dim) == (5, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(IMAGES) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(encoder_folder).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_batches_and_calls_do_not_change_a_vector(encoder_folder: Path):
    whole, pairs = (FrozenEncoder(str(encoder_folder), 28, size) for size in (8, 2))
    np.testing.assert_array_equal(whole.encode(IMAGES), whole.encode(IMAGES))
    np.testing.assert_allclose(whole.encode(IMAGES), pairs.encode(IMAGES), rtol=1e-4, atol=1e-5)
    assert whole.encode(IMAGES[:0]).shape == (0, 16)


def test_the_id_follows_the_weights(encoder_folder: Path, tmp_path: Path):
    other = shutil.copytree(encoder_folder, tmp_path / "tiny-dinov2")
    assert FrozenEncoder(str(other), 28, 8).id == FrozenEncoder(str(encoder_folder), 28, 8).id
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert FrozenEncoder(str(other), 28, 8).id != FrozenEncoder(str(encoder_folder), 28, 8).id


def test_images_of_another_form_are_refused(encoder_folder: Path):
    encoder = FrozenEncoder(str(encoder_folder), 28, 8)
    for wrong in (IMAGES[:, :14], IMAGES.astype(np.float32), IMAGES[0]):
        with pytest.raises(ValueError, match=r"expected images \(n, 28, 28, 3\)"):
            encoder.encode(wrong)


def test_what_is_no_image_model_is_refused(encoder_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="expected a Hub id such as facebook/dinov2-base"):
        FrozenEncoder("no such folder", 28, 8)
    folder = shutil.copytree(encoder_folder, tmp_path / "odd")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": "grey"}))
    with pytest.raises(ValueError, match="three numbers"):
        FrozenEncoder(str(folder), 28, 8)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no image model"):
        FrozenEncoder(str(folder), 28, 8)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        FrozenEncoder(str(folder), 28, 8)


def test_an_encoder_that_is_not_to_be_had_says_how_to_go_on(monkeypatch, tmp_path: Path):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="set HF_HOME"):
        FrozenEncoder("facebook/dinov2-base", 224, 8)


def test_the_vector_stands_behind_the_state_or_in_its_place(encoder_folder: Path):
    encoder, tasks = FrozenEncoder(str(encoder_folder), 28, 8), ["walk", "run"]
    vectors = encoder.encode(IMAGES[:2])
    for observe, first in (("both", (3, 2)), ("pictures", (0, 0))):
        pixel_encoder = PixelEncoder(encoder, observe)
        obs = np.zeros((2, 24), np.float32)
        obs[0, :3], obs[1, :2] = [1, 2, 3], [4, 5]
        pixel_encoder.augment(obs, [3, 2], IMAGES[:2], tasks)
        for row, start in enumerate(first):
            np.testing.assert_array_equal(obs[row, start : start + 16], vectors[row])
            assert not obs[row, start + 16 :].any()
            assert pixel_encoder.width([3, 2][row]) == start + 16
        assert obs[0, 0] == (1 if observe == "both" else vectors[0, 0])


def test_a_picture_that_does_not_go_with_the_observation_is_refused(encoder_folder: Path):
    pixel_encoder = PixelEncoder(FrozenEncoder(str(encoder_folder), 28, 8), "both")
    assert check_picture(None, None, 2, 3, 19) is None
    np.testing.assert_array_equal(check_picture(pixel_encoder, IMAGES[0], 1, 3, 19), IMAGES[:1])
    np.testing.assert_array_equal(check_picture(pixel_encoder, IMAGES[:2], 2, 3, 19), IMAGES[:2])
    with pytest.raises(ValueError, match="observes states alone: leave out `picture`"):
        check_picture(None, IMAGES[0], 1, 3, 19)
    with pytest.raises(ValueError, match="give `picture`"):
        check_picture(pixel_encoder, None, 1, 3, 19)
    with pytest.raises(ValueError, match="`picture` is of 5 environments, `obs` of 2"):
        check_picture(pixel_encoder, IMAGES, 2, 3, 19)
    with pytest.raises(ValueError, match="a state of 4 and an image's vector of 16 values do not fit into the 19"):
        check_picture(pixel_encoder, IMAGES[0], 1, 4, 19)
    with pytest.raises(ValueError, match=r"expected images \(n, 28, 28, 3\)"):
        check_picture(pixel_encoder, IMAGES[0, :14], 1, 3, 19)


def test_without_images_nothing_is_loaded():
    assert load_pixel_encoder(config.Vision("state", "nobody/nothing", 224, 8), "cpu") is None
