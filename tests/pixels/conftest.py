"""A small image encoder and a task that can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.pixels.encoder import FrozenEncoder
from pipeline.pixels.pixel_encoder import PixelEncoder
from pipeline.tasks.spec import TaskSpec
from tests.pixels.painter import SIZE, SOURCE, make_painter


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small DINOv2 of random weights: vectors of 16 values from images of 28 x 28 pixels."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("encoders") / "tiny-dinov2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
        Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)).save_pretrained(folder)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


@pytest.fixture
def pixel_encoder(encoder_folder: Path) -> PixelEncoder:
    return PixelEncoder(FrozenEncoder(str(encoder_folder), SIZE, 8), "both")


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSpec:
    (tmp_path / "eft_painter.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return make_painter("painter", 4)
