"""The stages, with images in the place of states."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.agent import Agent
from pipeline.results import read_curves
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from tests.pixels.painter import SIZE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_stages_train_on_images_alone(encoder_folder: Path, tmp_path: Path):
    """Meta-World drawn by EGL: demonstrations, vectors, cloning from images, a resumable online run, scores."""
    try:
        env = registry.make(registry.get(["mw-reach"])[0], 39, 4, SIZE)
        env.reset(seed=0)
        env.render()
        env.close()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    params = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    params["tasks"] |= {"train": ["mw-reach"], "held_out": [], "pairs": []}
    params["vision"] = {"observe": "pictures", "encoder": str(encoder_folder), "size": SIZE, "batch_size": 64}
    params["pretrain"] |= {"updates": 120, "log_every": 20, "eval_every": 120, "eval_episodes": 1, "save_every": 120}
    params["finetune"] |= {"env_steps": 120, "log_every": 60, "eval_every": 120, "eval_episodes": 1, "save_every": 120}
    params["evaluate"] |= {"episodes": 2, "open_loop_steps": [], "video_size": 0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "my_tasks").mkdir()
    for stage in ("demos", "embed", "pretrain", "finetune", "evaluate"):
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    vectors = tmp_path / "datasets/picture_vectors/mw-reach.safetensors"
    assert vectors.exists()
    losses = read_curves(tmp_path / "checkpoints/pretrain/metrics")["train/bc_loss"].values
    assert losses[-1] < 0.8 * losses[0]
    agent = Agent.from_pretrained(tmp_path / "checkpoints/finetune/model")
    assert agent.vision is not None
    assert agent.vision.observe == "pictures"
