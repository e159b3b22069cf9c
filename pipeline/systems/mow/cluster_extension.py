"""Clusters of tasks, found during a warm-up; then each has a copy of its own of some networks.

A task's gradient is that of pretraining's loss on slices of this task alone, averaged over several batches, by the
networks that are to be copied per cluster. Gradients of one moment depend on the weights of that moment, and those of
other seeds on other weights; so similarities are averaged over several points of the warm-up.

Source: Mixture-of-World Models (arXiv 2602.01270).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.learn.extension import Extension, Extensions
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.model import products
from pipeline.model.world_model import PARTS, WorldModel
from pipeline.progress import Progress
from pipeline.run.ranks import RANK_SEEDS
from pipeline.shapes import Batch
from pipeline.systems.mow.clustering import Clustering, group, similarity
from pipeline.systems.mow.clusters import COLUMN, split
from pipeline.systems.mow.task_losses import TaskLosses

if TYPE_CHECKING:
    from pipeline.learn.replay import ReplayBuffer

SEED = 29  # apart from other uses of the run's seed
_POINT_SEED = 7_919  # apart, from point to point


class ClusterExtension(Extension):
    """Compares the tasks' gradients during the warm-up, and at its end gives each cluster its copy of the networks.

    What is drawn follows from the seed alone, so that a run killed on the way finds the same clusters.

    Args:
        clusters: settings; `num` may be "auto".
        demos: demonstrations of every task.
        seed: of the run.
        folder: where clusters.json is to be written; None for nowhere.
    """

    name = "clusters"

    def __init__(self, clusters: config.Clusters, demos: ReplayBuffer, seed: int, folder: Path | None = None):
        self._clusters, self._demos, self._run_seed, self._folder = clusters, demos, seed, folder

    def attach(self, learner: Learner) -> None:
        """Take the learner whose tasks are clustered: its model still shares all networks."""
        self._learner = learner
        self._seed = self._run_seed + SEED + RANK_SEEDS * learner.ranks.rank
        num_tasks = len(learner.table.names)
        self._points, self._similarity = 0, np.zeros((num_tasks, num_tasks))  # seen, and the sum over them
        assert COLUMN in learner.table.columns, "the table needs a column that takes the clusters"

    def before_update(self, batch_size: int) -> list[str]:
        """Compare the tasks' gradients if that is due; at the last point, split the model."""
        found = self.look(batch_size) if self.due else None
        return [] if found is None else [found.describe()]

    @property
    def due(self) -> bool:
        """Whether the warm-up has come to a point that was not looked at."""
        clusters, learner = self._clusters, self._learner
        if learner.model.config.clusters is not None:
            return False
        return learner.updates * clusters.points >= (self._points + 1) * clusters.warmup_updates

    def look(self, batch_size: int) -> Clustering | None:
        """Compare the tasks' gradients of now; at the last point, split the learner's model and return the clusters.

        Args:
            batch_size: slices of each batch, this process's share.
        """
        clusters, learner, ranks = self._clusters, self._learner, self._learner.ranks
        generator = torch.Generator().manual_seed(self._seed + _POINT_SEED * self._points)
        gradients = task_gradients(learner, self._demos, clusters, batch_size, generator, quiet=not ranks.is_main)
        self._similarity += similarity(gradients)
        self._points += 1
        if self._points < clusters.points:
            return None
        mean = self._similarity / self._points
        found = ranks.from_main(group(learner.table.names, mean, clusters.num, clusters.max_num))
        self.split(torch.from_numpy(found.cluster))
        if ranks.is_main and self._folder is not None:
            found.write(self._folder)
        return found

    def split(self, cluster: Tensor) -> None:
        """Give every cluster of tasks its own copy of the networks, Adam's moments included.

        Args:
            cluster: (n,) int64 of the table's tasks, numbered from 0. It is written into the table, which actors share.
        """
        learner = self._learner
        origins = split(learner.model, replace(self._clusters, num=int(cluster.max()) + 1))
        learner.rebuild_optimizers(origins)
        learner.table.columns[COLUMN].copy_(cluster)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what was seen so far, and after the split the cluster of each task."""
        state = {"points": torch.tensor([self._points]), "similarity": torch.from_numpy(self._similarity)}
        if self._learner.model.config.clusters is not None:
            state["cluster"] = self._learner.table.columns[COLUMN]
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned: the model is split if it was; nothing of a run without clusters."""
        if not state:
            return
        self._points, self._similarity = int(state["points"]), state["similarity"].cpu().numpy().copy()
        if "cluster" in state and self._learner.model.config.clusters is None:
            self.split(state["cluster"])


def layers(model: WorldModel, parts: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of some parts by layer: a linear map and the normalisation behind it are one."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{PARTS[part]}.") for part in parts):
            found.setdefault(name.rsplit(".", 2)[0], []).append(parameter)
    return found


def task_gradients(
    learner: Learner,
    demos: ReplayBuffer,
    clusters: config.Clusters,
    batch_size: int,
    generator: torch.Generator,
    quiet: bool = False,
) -> list[Tensor]:
    """Return the mean gradient of every task, layer by layer: (n, parameters of the layer) each, on the CPU.

    They take 4 bytes per task and parameter together.
    """
    by_layer = layers(learner.model, clusters.parts)
    parameters = [parameter for layer in by_layer.values() for parameter in layer]
    sizes = [sum(parameter.numel() for parameter in layer) for layer in by_layer.values()]
    num_tasks, device = len(learner.table.names), learner.model.bins.device
    found = [torch.zeros(num_tasks, size) for size in sizes]
    with Progress("clustering tasks", num_tasks, "tasks", quiet=quiet) as progress:
        for task in range(num_tasks):
            own, total = demos.only(task), torch.zeros(sum(sizes), device=device)
            for _ in range(clusters.batches):
                batch = own.sample(batch_size, generator).to(device)
                total += _gradient(learner, batch, generator, parameters)
            for rows, part in zip(found, total.cpu().div_(clusters.batches).split(sizes), strict=True):
                rows[task] = part
            progress.update(1)
    return found


def _gradient(learner: Learner, batch: Batch, generator: torch.Generator, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of pretraining's loss by all parameters in a row, averaged over ranks; nothing is changed."""
    # What weighs the tasks or tells them apart is left out: it is not what their networks learn.
    alone = copy.copy(learner)
    alone.extensions = Extensions(one for one in learner.extensions if not isinstance(one, TaskLosses))
    draws = UpdateDraws.sample(batch, learner.table.num_phrasings, learner.model.config.num_q, generator)
    with products.use(learner.mode), learner.ranks.autocast():
        loss, _ = alone.model_loss(batch, draws, learner.learning.bc_coef, [])
    found = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
    return learner.ranks.weighted_mean(torch.cat([part.flatten() for part in found]), len(batch.task))
