"""Networks copied per cluster of tasks: every row of a batch is computed by the copy of its task's cluster.

Rows are sorted by cluster once per context, so that each copy multiplies the rows of its cluster in one piece: as many
multiplications as one network needs, in as many products as there are clusters.

Source: Mixture-of-World Models (arXiv 2602.01270).
"""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.model.layers import MLP
from pipeline.model.world_model import PARTS, WorldModel

COLUMN = "cluster"  # of the task table, (n,) int64: the cluster of each task


class Groups:
    """Which of n rows belong to which cluster. All networks of a context share it, so that it is found once.

    Args:
        cluster: (n,) int64, of each row's task.

    Attributes:
        present: the clusters that occur, in ascending order.
        members: for each of these the rows that are its own.
        inverse: (n,) where each row is found when the members stand one after the other.
        place: (n,) where each row is found within its cluster.
    """

    def __init__(self, cluster: Tensor):
        self.cluster = cluster
        order = cluster.argsort(stable=True)
        counts = torch.bincount(cluster).tolist()
        self.present = tuple(number for number, count in enumerate(counts) if count)
        sizes = [counts[number] for number in self.present]
        self.members = order.split(sizes)
        self.inverse = order.argsort()
        self.place = torch.cat([torch.arange(size, device=cluster.device) for size in sizes])[self.inverse]
        self._taken: tuple[Tensor, Groups] | None = None

    def take(self, rows: Tensor) -> Groups:
        """Repeat the rows as `rows` (B,) says; asked again for the same tensor, the answer is the same object."""
        if self._taken is None or self._taken[0] is not rows:
            self._taken = rows, Groups(self.cluster.index_select(0, rows))
        return self._taken[1]


# A context has one column, which all its networks are given: tensors are compared by identity here.
_groups_of = lru_cache(maxsize=1)(Groups)


class ClusterInput(NamedTuple):
    """What n tasks contribute to the copies of a network. It is stale once the weights change."""

    parts: tuple[Any, ...]  # what `condition` of the copies gave, for the clusters in `groups.present`
    groups: Groups

    def take(self, rows: Tensor) -> ClusterInput:
        """Repeat the tasks as `rows` (B,) says."""
        groups, known = self.groups.take(rows), dict(zip(self.groups.present, self.parts, strict=True))
        place = self.groups.place.index_select(0, rows)
        parts = [
            known[number].take(place.index_select(0, members))
            for number, members in zip(groups.present, groups.members, strict=True)
        ]
        return ClusterInput(tuple(parts), groups)


class Clustered(nn.ModuleList):
    """One network per cluster, of equal form; called like one of them."""

    @property
    def copies(self) -> int:
        """How many networks there are."""
        return len(self)

    def condition(self, task_emb: Tensor, columns: dict[str, Tensor] | None = None) -> ClusterInput:
        """Compute what each copy is given by the tasks (n, E) of its cluster, which `columns` says."""
        known = columns or {}
        assert COLUMN in known, "networks per cluster need the cluster of each task"
        groups = _groups_of(known[COLUMN])
        parts = [
            cast("MLP", self[number]).condition(task_emb.index_select(0, members), columns)
            for number, members in zip(groups.present, groups.members, strict=True)
        ]
        return ClusterInput(tuple(parts), groups)

    def forward(self, tasks: ClusterInput, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); `tasks` comes from `condition`."""
        parts, groups = tasks
        copies = [self[number] for number in groups.present]
        if len(copies) == 1:
            return copies[0](parts[0], x, a)
        found = [
            one(part, x.index_select(-2, rows), None if a is None else a.index_select(-2, rows))
            for one, part, rows in zip(copies, parts, groups.members, strict=True)
        ]
        return torch.cat(found, -2).index_select(-2, groups.inverse)


def split(model: WorldModel, clusters: config.Clusters) -> dict[nn.Parameter, nn.Parameter]:
    """Replace the parts that `clusters` names by a copy per cluster, in place, target Q included.

    Args:
        model: the world model.
        clusters: parts and number of clusters.

    Returns:
        for each new parameter the one it is a copy of.

    Raises:
        ValueError: the number is yet to be found, or the model has clusters already.
    """
    if model.config.clusters is not None:
        raise ValueError("this model has its networks per cluster already")
    if clusters.num == "auto":
        raise ValueError("a model is made with a number of clusters; `auto` stands for one found in pretraining")
    origins: dict[nn.Parameter, nn.Parameter] = {}

    def copies(network: nn.Module) -> Clustered:
        made = Clustered(copy.deepcopy(network) for _ in range(int(clusters.num)))
        for one in made:
            origins.update(zip(one.parameters(), network.parameters(), strict=True))
        return made

    for part in clusters.parts:
        if part == "q":
            for ensemble in (model.q_heads, model.target_q_heads):
                for member, head in enumerate(list(ensemble)):
                    ensemble[member] = copies(head)
        else:
            setattr(model, PARTS[part], copies(getattr(model, PARTS[part])))
    model.config = model._hub_mixin_config = dataclasses.replace(model.config, clusters=clusters)
    return origins
