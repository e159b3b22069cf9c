"""Networks copied per cluster of tasks: every row of a batch is computed by the copy that its task's cluster has.

Rows are sorted by cluster once per context, so that each copy multiplies the rows of its cluster in one piece: as many
multiplications as one network needs, in as many products as there are clusters.

Source: Mixture-of-World Models (arXiv 2602.01270).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.compute import Compute


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


class ToldClusters(NamedTuple):
    """The copies of a network, each told the tasks of its own cluster. It is stale once the weights change."""

    parts: tuple[Any, ...]  # what `condition` of the copies gave, for the clusters in `groups.present`
    groups: Groups
    compute: Compute

    def __call__(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim)."""
        if len(self.parts) == 1:
            return self.parts[0](x, a)
        found = [
            part(x.index_select(-2, rows), None if a is None else a.index_select(-2, rows))
            for part, rows in zip(self.parts, self.groups.members, strict=True)
        ]
        return torch.cat(found, -2).index_select(-2, self.groups.inverse)

    def take(self, rows: Tensor) -> ToldClusters:
        """Repeat the tasks as `rows` (B,) says."""
        groups, known = self.groups.take(rows), dict(zip(self.groups.present, self.parts, strict=True))
        place = self.groups.place.index_select(0, rows)
        parts = [
            known[number].take(place.index_select(0, members))
            for number, members in zip(groups.present, groups.members, strict=True)
        ]
        return ToldClusters(tuple(parts), groups, self.compute)


class Clustered(nn.ModuleList):
    """One network per cluster, of equal form. It is told and asked like one of them."""

    def condition(self, task_emb: Tensor, compute: Compute, groups: Groups) -> ToldClusters:
        """Tell each copy the tasks (n, E) of its cluster."""
        told = [
            tell(self[number], task_emb.index_select(0, members), compute)
            for number, members in zip(groups.present, groups.members, strict=True)
        ]
        return ToldClusters(tuple(told), groups, compute)

    def forward(self, told: ToldClusters, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); `told` comes from `condition`."""
        return told(x, a)


def tell(module: Any, task_emb: Tensor, compute: Compute, groups: Groups | None = None) -> Any:
    """Condition a network on its tasks (n, E), be it one for all of them or a copy per cluster."""
    if isinstance(module, Clustered):
        assert groups is not None, "`WorldModel.context` groups the rows of every model with clusters"
        return module.condition(task_emb, compute, groups)
    return module.condition(task_emb, compute)


def copies(module: nn.Module, num: int) -> tuple[Clustered, dict[nn.Parameter, nn.Parameter]]:
    """Copy a network `num` times; also returns which parameter each new one is a copy of."""
    made = Clustered(copy.deepcopy(module) for _ in range(num))
    origins = {new: old for one in made for new, old in zip(one.parameters(), module.parameters(), strict=True)}
    return made, origins
