"""Training of the categorical autoencoder on the images of demonstrations; afterwards it stays as it is.

With one autoencoder per cluster of tasks, all tasks share one during a warm-up. Then the tasks are clustered by the
gradients of their losses, as for the world model, and each cluster goes on with a copy of its own.

Source: Mixture-of-World Models (arXiv 2602.01270).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.data.demos import FILE, load_demos
from pipeline.extras import needs
from pipeline.files import atomic_folder, read_json, sha256, write_json
from pipeline.pixels.autoencoder import Autoencoder, Autoencoders, Losses
from pipeline.pixels.demonstrations import replay_frames
from pipeline.progress import Progress
from pipeline.systems.mow import clustering
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    from matplotlib.image import imsave

TRAINING, RECONSTRUCTIONS = "training.json", "reconstructions.png"
_SECTION = "vision.autoencoder"
_SHOWN = 8  # tasks in the image of reconstructions


class TrainedAutoencoder(NamedTuple):
    """What training gave."""

    model: Autoencoders
    curve: list[dict[str, float]]  # 20 points: updates and losses
    clustering: clustering.Clustering | None  # None where all tasks share one autoencoder


def make_autoencoder(
    folder: Path, demos: Path, specs: Sequence[TaskSpec], vision: config.Vision, seed: int, device: torch.device
) -> bool:
    """Train an autoencoder on frames of demonstrations and write it, unless it is there.

    Args:
        folder: takes config.json, model.safetensors, training.json, reconstructions.png and, where tasks are
            clustered, clusters.json; whole or not at all.
        demos: the folder of the demonstrations.
        specs: the tasks of the demonstrations.
        vision: sizes; `vision.autoencoder` is given.
        seed: of weights, batches and codes.
        device: where to compute.

    Returns:
        Whether it had to be made.

    Raises:
        ValueError: a demonstration does not come out as recorded when it is replayed, or there are too few tasks
            for the clusters.
        RenderingUnavailable: this machine cannot draw.
    """
    settings = vision.autoencoder
    assert settings is not None
    key = _key(demos, specs, vision, seed)
    if (folder / TRAINING).is_file() and read_json(folder / TRAINING, "`dvc repro embed`").get("key") == key:
        return False
    if settings.clusters is not None:
        clustering.check(settings.clusters, len(specs), settings.updates, _SECTION + ".clusters", _SECTION)
    frames = {spec.name: collect_frames(spec, demos, vision.size, settings.frames) for spec in specs}
    model, curve, found = train(frames, vision.size, settings, seed, device)
    with atomic_folder(folder) as partial:
        model.cpu().save(partial)
        errors = draw_reconstructions(model, frames, partial / RECONSTRUCTIONS)
        write_json(partial / TRAINING, {"key": key, "shown": list(errors)[:_SHOWN], "error": errors, "curve": curve})
        if found is not None:
            found.write(partial)
    return True


def collect_frames(spec: TaskSpec, demos: Path, size: int, most: int) -> np.ndarray:
    """Replay a task's demonstrations and return up to `most` of their frames, evenly spread, (n, S, S, 3) uint8."""
    episodes = load_demos(demos, spec.name)
    every = max(1, -(-sum(len(one.obs) for one in episodes) // most))
    env, found = make(spec, spec.obs_dim, spec.action_dim, size), []
    try:
        with Progress(f"frames of {spec.name}", len(episodes), "episodes") as progress:
            for number, episode in enumerate(episodes):
                found += replay_frames(env, episode, f"{spec.name}: demonstration {number}", number % every, every)
                progress.update(1)
    finally:
        env.close()
    return np.stack(found)


def train(
    frames: Mapping[str, np.ndarray], size: int, settings: config.Autoencoder, seed: int, device: torch.device
) -> TrainedAutoencoder:
    """Train on frames (n, S, S, 3) uint8 by task; every task is as likely in a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoders(size, settings).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    generator, tasks = torch.Generator().manual_seed(seed), [torch.from_numpy(one) for one in frames.values()]
    comparison = None if settings.clusters is None else _Comparison(list(frames), settings.clusters)
    found: clustering.Clustering | None = None
    curve = []
    with Progress("autoencoder", settings.updates, "updates") as progress:
        for update in range(1, settings.updates + 1):
            batch, task = _draw_batch(tasks, settings.batch_size, generator)
            cluster = torch.zeros_like(task) if found is None else torch.from_numpy(found.cluster)[task]
            losses = _update(model, optimizer, as_pixels(batch, device), cluster, generator, settings.grad_clip_norm)
            if not all(map(np.isfinite, losses.values())):
                raise FloatingPointError(f"the autoencoder's update {update} is not finite: lower {_SECTION}.lr")
            progress.update(1)
            if update % max(1, settings.updates // 20) == 0:
                curve.append({"updates": update, **losses})
            if comparison is not None and found is None and comparison.due(update):
                found = comparison.add(model.member(0), tasks, settings.batch_size, seed + update)
                if found is not None:
                    model, optimizer = _copy_per_cluster(model, optimizer, found)
                    print(f"autoencoder: {found.describe()}", file=sys.stderr)
    return TrainedAutoencoder(model.eval(), curve, found)


class _Comparison:
    """Compares the tasks' gradients at several points of the warm-up, and clusters the tasks at the last one."""

    def __init__(self, names: Sequence[str], clusters: config.Clustering):
        self._names, self._clusters = names, clusters
        self._points, self._similarity = 0, np.zeros((len(names), len(names)))  # so far, and the sum over them

    def due(self, update: int) -> bool:
        """Whether the next point is reached."""
        return update * self._clusters.points >= (self._points + 1) * self._clusters.warmup_updates

    def add(
        self, model: Autoencoder, tasks: Sequence[Tensor], batch_size: int, seed: int
    ) -> clustering.Clustering | None:
        """Compare the gradients of now; return the clusters at the last point, None before."""
        gradients = _task_gradients(model, tasks, batch_size, self._clusters.batches, seed)
        self._similarity, self._points = self._similarity + clustering.similarity(gradients), self._points + 1
        if self._points < self._clusters.points:
            return None
        mean = self._similarity / self._points
        return clustering.group(self._names, mean, self._clusters.num, self._clusters.max_num)


def _draw_batch(tasks: Sequence[Tensor], size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return frames (size, S, S, 3) uint8 and the number of each one's task (size,)."""
    counts = torch.tensor([len(one) for one in tasks])
    task = torch.randint(len(tasks), (size,), generator=generator)
    row = (torch.rand(size, generator=generator) * counts[task]).long()
    return torch.stack([tasks[t][r] for t, r in zip(task.tolist(), row.tolist(), strict=True)]), task


def _update(
    model: Autoencoders,
    optimizer: torch.optim.Adam,
    pixels: Tensor,
    cluster: Tensor,
    generator: torch.Generator,
    grad_clip_norm: float,
) -> dict[str, float]:
    """Take one step on images (n, 3, S, S), each autoencoder on those of its own cluster (n,); return mean losses."""
    optimizer.zero_grad(set_to_none=True)  # without images in the batch, an autoencoder stays as it is
    mean: dict[str, float] = dict.fromkeys((*Losses._fields, "norm"), 0.0)
    for number in cluster.unique().tolist():
        rows, member = cluster == number, model.member(number)
        losses = member.losses(pixels[rows.to(pixels.device)], generator)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(member.parameters(), grad_clip_norm)
        for name, value in {**losses._asdict(), "norm": norm}.items():
            mean[name] += value.item() * int(rows.sum()) / len(rows)
    optimizer.step()
    return mean


def _layers(model: Autoencoder) -> list[list[nn.Parameter]]:
    """Return the parameters by layer: a linear map or convolution and the normalisation behind it are one."""
    found: list[list[nn.Parameter]] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and (own[0].ndim > 1 or not found):
            found.append(own)
        elif own:
            found[-1] += own
    return found


def _task_gradients(
    model: Autoencoder, tasks: Sequence[Tensor], batch_size: int, batches: int, seed: int
) -> list[Tensor]:
    """Return the mean gradient of every task's loss, layer by layer: (n, parameters of the layer) each, on the CPU.

    They take 4 bytes per task and parameter together.
    """
    by_layer, generator = _layers(model), torch.Generator().manual_seed(seed)
    parameters = [parameter for layer in by_layer for parameter in layer]
    sizes = [sum(parameter.numel() for parameter in layer) for layer in by_layer]
    found, device = [torch.zeros(len(tasks), size) for size in sizes], parameters[0].device
    for task, frames in enumerate(tasks):
        total = torch.zeros(sum(sizes), device=device)
        for _ in range(batches):
            batch = frames[torch.randint(len(frames), (batch_size,), generator=generator)]
            loss = model.losses(as_pixels(batch, device), generator).total
            total += torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
        for rows, part in zip(found, total.cpu().div_(batches).split(sizes), strict=True):
            rows[task] = part
    return found


def _copy_per_cluster(
    model: Autoencoders, optimizer: torch.optim.Adam, found: clustering.Clustering
) -> tuple[Autoencoders, torch.optim.Adam]:
    """Give every cluster its copy of the warm autoencoder, Adam's moments included."""
    shared, device = model.member(0), next(model.parameters()).device
    split = Autoencoders(model.size, model.settings, dict(zip(found.names, found.cluster.tolist(), strict=True)))
    split.to(device)
    again = torch.optim.Adam(split.parameters(), lr=optimizer.param_groups[0]["lr"], fused=True)
    for number in range(found.num):
        member = split.member(number)
        member.load_state_dict(shared.state_dict())
        for old, new in zip(shared.parameters(), member.parameters(), strict=True):
            again.state[new] = {name: value.clone() for name, value in optimizer.state[old].items()}
    return split, again


def as_pixels(images: Tensor, device: torch.device) -> Tensor:
    """Turn images (n, S, S, 3) uint8 into (n, 3, S, S) in [0, 1] on a device."""
    return images.to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


def draw_reconstructions(model: Autoencoders, frames: Mapping[str, np.ndarray], path: Path) -> dict[str, float]:
    """Write one frame of each of the first tasks above its reconstruction; return each task's mean absolute error."""
    shown, errors = [], {}
    for task, images in frames.items():
        some = as_pixels(torch.from_numpy(images[:: max(1, len(images) // 16)]), torch.device("cpu"))
        again = model.for_task(task).reconstruct(some)
        errors[task] = round(float((again - some).abs().mean()), 5)
        middle = len(some) // 2
        shown.append(torch.cat([some[middle], again[middle]], 1).permute(1, 2, 0))
    imsave(path, torch.cat(shown[:_SHOWN], 1).numpy())
    return errors


def _key(demos: Path, specs: Sequence[TaskSpec], vision: config.Vision, seed: int) -> str:
    """Return a hash of all that the autoencoder depends on."""
    assert vision.autoencoder is not None
    content = {"size": vision.size, "settings": dataclasses.asdict(vision.autoencoder), "seed": seed}
    for spec in specs:
        content[spec.name] = sha256(demos / spec.name / FILE)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
