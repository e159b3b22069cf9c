"""The categorical autoencoder learns pictures of demonstrations, before anything is observed through it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imsave
from torch import Tensor

from pipeline import config
from pipeline.data.demos import FILE, load_demos
from pipeline.files import atomic_folder, read_json, write_json
from pipeline.progress import Progress
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.train.seeing import play_again
from pipeline.vision.autoencoder import Autoencoder

TRAINING, PICTURE = "training.json", "reconstructions.png"
_SHOWN = 8  # tasks in the picture


def make_autoencoder(
    folder: Path, demos: Path, specs: Sequence[TaskSpec], vision: config.Vision, seed: int, device: torch.device
) -> bool:
    """Train an autoencoder on frames of demonstrations and write it, unless it is there.

    Args:
        folder: takes config.json, model.safetensors, training.json and reconstructions.png, whole or not at all.
        demos: the folder of the demonstrations.
        specs: the tasks whose demonstrations are looked at.
        vision: sizes; `vision.autoencoder` is given.
        seed: of weights, batches and codes.
        device: where to compute.

    Returns:
        Whether it had to be made.

    Raises:
        ValueError: a demonstration does not come out as recorded when it is played again.
        RenderingUnavailable: this machine cannot draw.
    """
    settings = vision.autoencoder
    assert settings is not None
    key = _key(demos, specs, vision, seed)
    if (folder / TRAINING).is_file() and read_json(folder / TRAINING, "`dvc repro embed`").get("key") == key:
        return False
    frames = {spec.name: collect_frames(spec, demos, vision.size, settings.frames) for spec in specs}
    model, curve = train(frames, vision.size, settings, seed, device)
    with atomic_folder(folder) as partial:
        model.cpu().save(partial)
        errors = draw(model, frames, partial / PICTURE)
        write_json(partial / TRAINING, {"key": key, "shown": list(errors)[:_SHOWN], "error": errors, "curve": curve})
    return True


def collect_frames(spec: TaskSpec, demos: Path, size: int, most: int) -> np.ndarray:
    """Play a task's demonstrations again and return up to `most` of their frames, evenly spread, (n, S, S, 3) uint8."""
    episodes = load_demos(demos, spec.name)
    every = max(1, -(-sum(len(one.obs) for one in episodes) // most))
    env, found = make(spec, spec.obs_dim, spec.action_dim, size), []
    try:
        with Progress(f"frames of {spec.name}", len(episodes), "episodes") as progress:
            for number, episode in enumerate(episodes):
                pictures = play_again(env, episode, f"{spec.name}: demonstration {number}")
                found += list(islice(pictures, number % every, None, every))
                progress.update(1)
    finally:
        env.close()
    return np.stack(found)


def train(
    frames: Mapping[str, np.ndarray], size: int, settings: config.Autoencoder, seed: int, device: torch.device
) -> tuple[Autoencoder, list[dict[str, float]]]:
    """Return an autoencoder of frames (n, S, S, 3) uint8 by task, all tasks drawn alike, and its losses on the way."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(size, settings)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    generator, tasks = torch.Generator().manual_seed(seed), [torch.from_numpy(one) for one in frames.values()]
    counts, curve = torch.tensor([len(one) for one in tasks]), []
    with Progress("autoencoder", settings.updates, "updates") as progress:
        for update in range(1, settings.updates + 1):
            task = torch.randint(len(tasks), (settings.batch_size,), generator=generator)
            row = (torch.rand(settings.batch_size, generator=generator) * counts[task]).long()
            batch = torch.stack([tasks[t][r] for t, r in zip(task.tolist(), row.tolist(), strict=True)])
            losses = model.losses(as_pixels(batch, device), generator)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip_norm)
            if not torch.isfinite(losses.total + norm):
                raise FloatingPointError(
                    f"the autoencoder's update {update} is not finite: lower vision.autoencoder.lr"
                )
            optimizer.step()
            progress.update(1)
            if update % max(1, settings.updates // 20) == 0:
                curve.append({"updates": update, **{name: value.item() for name, value in losses._asdict().items()}})
    return model.eval(), curve


def as_pixels(pictures: Tensor, device: torch.device) -> Tensor:
    """Turn pictures (n, S, S, 3) uint8 into (n, 3, S, S) in [0, 1] on a device."""
    return pictures.to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


def draw(model: Autoencoder, frames: Mapping[str, np.ndarray], path: Path) -> dict[str, float]:
    """Write one frame of each of the first tasks above its reconstruction; return each task's mean absolute error."""
    shown, errors = [], {}
    for task, pictures in frames.items():
        some = as_pixels(torch.from_numpy(pictures[:: max(1, len(pictures) // 16)]), torch.device("cpu"))
        again = model.reconstruct(some)
        errors[task] = round(float((again - some).abs().mean()), 5)
        middle = len(some) // 2
        shown.append(torch.cat([some[middle], again[middle]], 1).permute(1, 2, 0))
    imsave(path, torch.cat(shown[:_SHOWN], 1).numpy())
    return errors


def _key(demos: Path, specs: Sequence[TaskSpec], vision: config.Vision, seed: int) -> str:
    """A hash of all that the autoencoder depends on."""
    assert vision.autoencoder is not None
    told = {"size": vision.size, "settings": dataclasses.asdict(vision.autoencoder), "seed": seed}
    for spec in specs:
        with (demos / spec.name / FILE).open("rb") as file:
            told[spec.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
