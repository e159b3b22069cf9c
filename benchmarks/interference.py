"""How much tasks are in each other's way in one model: gradient conflict, dormant units, what of the model each uses.

Everything is read off an update of a `Learner` that moves nothing (`probe`), on batches of slices. So whatever a
system computes differently, routed experts, networks per cluster of tasks, dynamics with history, is measured as it
learns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.problem import LEARNING, make_batch
from pipeline import config
from pipeline.learn.learner import Learner, RateSchedule
from pipeline.model.layers import Mish
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.shapes import Batch
from pipeline.systems.build import build_model, offline_extensions, task_columns

DORMANT = 0.025  # a unit is dormant whose mean activation is at most this part of its layer's mean
_TARGET = "target_"  # begins the names of the slowly following copies, which no loss trains


class Conflict(NamedTuple):
    """How the tasks' gradients lie to each other."""

    mean_cosine: float  # over all pairs of tasks
    negative_share: float  # of the pairs: their cosine is below 0
    parts: dict[str, float]  # mean cosine within each network, over the pairs that both reach it
    cosines: Tensor  # (n, n)


class Dormant(NamedTuple):
    """How many hidden units hardly ever answer."""

    share: float  # of all hidden units
    units: int  # there are
    layers: dict[str, float]  # share in each layer, by the name of its normalisation


def probe(model: WorldModel, table: TaskTable, learning: config.Learning) -> Learner:
    """Return a learner whose updates compute everything and move nothing.

    Tasks count alike in it and are not predicted: what is compared are the gradients of the model's own losses.
    """
    still = dataclasses.replace(learning, tau=0.0, weighting="even", task_id_coef=0.0)
    learner = Learner(model, table, still, extensions=offline_extensions(model, table, still))
    learner.rate = RateSchedule(still.lr, scale=0.0)
    return learner


def gradient_conflict(learner: Learner, batches: Sequence[Batch], seed: int = 0) -> Conflict:
    """Compare the tasks' gradients of the loss of pretraining, behaviour cloning included.

    Counted are the parameters that at least two tasks reach. One that a single task has for itself, as in networks
    per cluster, cannot be in dispute; neither can a routed expert that only one of a pair uses: its gradient of the
    other is 0, and the cosine the nearer to 0 for it.

    Args:
        learner: from `probe`.
        batches: one per task, each of that task alone, on the model's device.
        seed: of the draws, the same for every task.

    Raises:
        ValueError: there are fewer than two tasks, or a batch holds several.
    """
    if len(batches) < 2:
        raise ValueError(f"gradients conflict between tasks: two or more are needed, not {len(batches)}")
    for batch in batches:
        if len(batch.task.unique()) != 1:
            raise ValueError(f"each batch must be of one task; one holds the rows {batch.task.unique().tolist()}")
    found = [_gradients(learner, batch, seed) for batch in batches]
    names = sorted({name for one in found for name in one})
    shared = [name for name in names if sum(bool(one[name].any()) for one in found if name in one) >= 2]
    parts = {}
    for part in dict.fromkeys(name.split(".")[0] for name in shared):
        cosines = _cosines(found, [name for name in shared if name.split(".")[0] == part])
        pairs = _pairs(cosines)
        parts[part] = float(pairs[~pairs.isnan()].mean())
    cosines = _cosines(found, shared)
    pairs = _pairs(cosines)
    return Conflict(float(pairs.mean()), float((pairs < 0).float().mean()), parts, cosines)


def dormant_units(learner: Learner, batches: Iterable[Batch], threshold: float = DORMANT) -> Dormant:
    """Count the hidden units whose mean absolute activation is at most `threshold` of the mean over their layer.

    Counted are the units behind every LayerNorm and Mish of all networks but the target copies; the insides of routed
    experts, which have neither, are not. All rows of all batches count alike.

    Args:
        learner: from `probe`.
        batches: slices of any tasks, on the model's device.
        threshold: see above.

    Source: Sokar et al., The Dormant Neuron Phenomenon (arXiv 2302.12902), definition 3.1.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    with _watching(learner.model, sums, rows):
        for batch in batches:
            learner.update(batch, "pretrain", torch.Generator().manual_seed(0))
    layers, dormant, units = {}, 0, 0
    for name in sorted(sums):
        activation = sums[name] / rows[name]
        asleep = activation <= threshold * activation.mean()
        layers[name], dormant, units = float(asleep.float().mean()), dormant + int(asleep.sum()), units + len(asleep)
    return Dormant(dormant / units, units, layers)


def count_parameters(sizes: config.Model) -> tuple[int, int]:
    """Return how many parameters a model trains, and how many of them one transition of one task makes use of.

    The target copies count for neither. What is used is what a gradient reaches, counted by rows of each tensor: of
    routed experts those that were chosen, of networks per cluster those of one cluster.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(sizes)
        for parameter in model.parameters():  # what starts at 0 would stop the gradient
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
        text = torch.randn(1, 1, sizes.task_dim)
    ones = torch.ones(1, sizes.action_dim)
    table = TaskTable(("any",), text, ones, torch.tensor([0.99]), columns=task_columns(sizes, 1))
    batch = make_batch(table, sizes, batch_size=1, horizon=1)
    learner = probe(model, table, LEARNING)
    found = _gradients(learner, batch, 0)
    total = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(_TARGET))
    active = sum(_used(value) for value in found.values())
    return total, active


def _used(gradient: Tensor) -> int:
    """Count a parameter's entries in rows that a gradient reaches; a vector counts as one row."""
    rows = gradient.flatten(1) if gradient.ndim > 1 else gradient.unsqueeze(0)
    return int(rows.any(1).sum()) * rows.shape[1]


def _gradients(learner: Learner, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return the gradient of each parameter that the batch's loss reaches, clipped as a whole, which turns nothing."""
    learner.update(batch, "pretrain", torch.Generator().manual_seed(seed))
    found = {
        name: parameter.grad.clone()
        for name, parameter in learner.model.named_parameters()
        if parameter.grad is not None and not name.startswith(_TARGET)
    }
    learner.model.zero_grad(set_to_none=True)
    return found


def _cosines(found: Sequence[dict[str, Tensor]], names: Sequence[str]) -> Tensor:
    """Return the cosines (n, n) of the tasks' gradients of these parameters; NaN where a task has none of them."""
    shapes = {name: next(one[name] for one in found if name in one) for name in names}
    flat = torch.stack([
        torch.cat([one.get(name, torch.zeros_like(shape)).flatten().double() for name, shape in shapes.items()])
        for one in found
    ])  # fmt: skip
    flat = flat / flat.norm(dim=1, keepdim=True)
    return flat @ flat.T


def _pairs(cosines: Tensor) -> Tensor:
    first, second = torch.triu_indices(len(cosines), len(cosines), offset=1)
    return cosines[first, second]


@contextmanager
def _watching(model: WorldModel, sums: dict[str, Tensor], rows: dict[str, int]) -> Iterator[None]:
    """Add up the absolute activations of every hidden layer that is computed within this context, by its name."""

    class Watched(Mish):
        def __init__(self, name: str):
            self.name = name

        def __call__(self, x: Tensor) -> Tensor:
            out = super().__call__(x)
            seen = out.detach().flatten(0, -2).abs().double()
            sums[self.name] = sums.get(self.name, 0) + seen.sum(0)
            rows[self.name] = rows.get(self.name, 0) + len(seen)
            return out

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "activation", None), Mish) and not name.startswith(_TARGET)
    ]
    with ExitStack() as stack:
        for name, module in found:
            stack.enter_context(patch.object(module, "activation", Watched(f"{name}.norm")))
        yield
