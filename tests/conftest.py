"""What holds for every test."""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The tensors of tests are tiny: more threads would only wait for each other. Set before torch is imported, and passed
# on to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, a process ignores Ctrl-C and hands that on; the tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a rare tie of two plans must not fail somebody else's change.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Files are dealt to the workers one by one: those that take minutes come first, so that none is left alone with them.
_LONGEST = ("test_tiny_pipeline.py", "test_seeing.py", "test_killed.py", "test_ranks.py", "test_without_demos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in its order."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def picture_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small DINOv2 of random weights: vectors of 16 values from pictures of 28 x 28 pixels."""
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
