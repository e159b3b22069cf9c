"""What an autoencoder per cluster of tasks gives over one for all: how well images come back that were not trained on.

    python -m benchmarks.pictures --root FOLDER    FOLDER holds datasets/ of a finished `dvc repro`; default: this one

Draws the demonstrations of the training tasks at 64 x 64, learns the published code (32 variables of 32 classes) from
every other frame, once for all tasks and once per cluster, with as many updates and images, and compares the square
errors on the frames between. Agreement of the clusters over seeds is the adjusted Rand index. Adds its claims to
results/systems.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clusters import agreement
from benchmarks.results import add, claim
from pipeline import config
from pipeline.pixels.autoencoder_training import TrainedAutoencoder, as_pixels, collect_frames, train
from pipeline.tasks import registry

SEEDS = (1, 2, 3)
SIZE = 64
SHARED = config.Autoencoder(
    groups=32, classes=32, width=16, uniform_mix=0.01, kl_coef=0.1, frames=300, updates=800, batch_size=32, lr=3e-4,
    grad_clip_norm=1000.0,
)  # fmt: skip
CLUSTERED = dataclasses.replace(
    SHARED, clusters=config.Clustering(num="auto", max_num=4, warmup_updates=200, batches=4, points=10)
)


def square_errors(trained: TrainedAutoencoder, frames: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return each task's mean square error of a pixel in [0, 1], over frames (n, S, S, 3) uint8."""
    found = {}
    for task, some in frames.items():
        pixels = as_pixels(torch.from_numpy(some), torch.device("cpu"))
        found[task] = float((trained.model.for_task(task).reconstruct(pixels) - pixels).square().mean())
    return found


def main() -> None:
    """Measure and add the claims to results/systems.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="holds datasets/ of a finished run (default: here)")
    options = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(1)
    tasks = config.load(config.Tasks)
    specs = registry.get(tasks.train, tasks.folder)
    frames = {spec.name: collect_frames(spec, options.root / "datasets/demos", SIZE, SHARED.frames) for spec in specs}
    learned_from = {name: some[::2] for name, some in frames.items()}
    others = {name: some[1::2] for name, some in frames.items()}
    errors: dict[str, dict[str, Any]] = {}
    ratios, clusters = [], []
    for seed in SEEDS:
        found = {}
        for way, settings in (("shared", SHARED), ("clustered", CLUSTERED)):
            begun = time.monotonic()
            trained = train(learned_from, SIZE, settings, seed, torch.device("cpu"))
            found[way] = square_errors(trained, others)
            errors.setdefault(str(seed), {})[way] = {
                "square_error": {task: round(value, 6) for task, value in found[way].items()},
                "seconds": round(time.monotonic() - begun, 1),
            }
            if trained.clustering is not None:
                clusters.append(trained.clustering.cluster)
                errors[str(seed)][way]["clusters"] = trained.clustering.describe()
        ratios.append(float(np.mean(list(found["clustered"].values())) / np.mean(list(found["shared"].values()))))
        print(f"seed {seed}: square error per cluster / for all {ratios[-1]:.3f}", flush=True)
    add(
        "systems",
        "pictures",
        "python -m benchmarks.pictures",
        time.monotonic() - started,
        {
            "square_error_ratio": claim(float(np.median(ratios)), 1.0, "below"),
            "adjusted_rand_over_seeds": claim(float(np.mean(agreement(clusters))), 0.75, "above"),
        },
        ratios=ratios,
        errors=errors,
    )


if __name__ == "__main__":
    main()
