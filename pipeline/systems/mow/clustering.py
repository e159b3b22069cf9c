"""Which tasks belong together: clusters of tasks whose gradients of the networks they share are alike.

Two tasks are as similar as the mean over layers of the cosines of their gradients: every layer counts alike, however
large it is. Clusters are those of agglomerative clustering with average linkage at the distance 1 - similarity.

Source: Mixture-of-World Models (arXiv 2602.01270), which leaves the clustering and the number of clusters open.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.extras import needs
from pipeline.files import write_json

with needs("pipeline"):
    from scipy.cluster.hierarchy import cut_tree, leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

FILE = "clusters.json"


class Clustering(NamedTuple):
    """What was found about n tasks."""

    names: tuple[str, ...]
    similarity: np.ndarray  # (n, n) in [-1, 1]
    cluster: np.ndarray  # (n,) int64, numbered by their first task
    order: np.ndarray  # (n,) rows of the tasks, neighbours being similar and clusters in one piece
    silhouette: dict[int, float]  # mean over tasks by number of clusters, of those that were tried

    @property
    def num(self) -> int:
        """How many clusters there are."""
        return int(self.cluster.max()) + 1

    def describe(self) -> str:
        """Return the clusters and their tasks as one line."""
        members = [
            [name for name, own in zip(self.names, self.cluster, strict=True) if own == k] for k in range(self.num)
        ]
        return f"{self.num} clusters of tasks: " + "; ".join(", ".join(tasks) for tasks in members)

    def write(self, folder: Path) -> None:
        """Write clusters.json, which the report draws."""
        write_json(
            folder / FILE,
            {
                "tasks": list(self.names),
                "cluster": self.cluster.tolist(),
                "order": self.order.tolist(),
                "similarity": self.similarity.round(4).tolist(),
                "silhouette": {str(num): round(value, 4) for num, value in self.silhouette.items()},
            },
        )


def check(
    clusters: config.Clustering, num_tasks: int, updates: int, section: str = "model.clusters", run: str = "pretrain"
) -> None:
    """Refuse what cannot be, before anything is trained.

    Args:
        clusters: what is asked for.
        num_tasks: n, tasks trained together.
        updates: of the whole training.
        section: of params.yaml, where `clusters` stands.
        run: the section where `updates` stands.

    Raises:
        ValueError: says what to change.
    """
    if clusters.num == "auto" and num_tasks < 3:
        raise ValueError(f"{section}.num is `auto`, which needs 3 tasks or more; {num_tasks} are trained")
    if clusters.num != "auto" and clusters.num > num_tasks:
        raise ValueError(
            f"{section}.num is {clusters.num}, but {num_tasks} tasks are trained: each cluster needs one. Choose "
            f"{num_tasks} or fewer, or `auto`."
        )
    if clusters.warmup_updates >= updates:
        raise ValueError(
            f"{section}.warmup_updates is {clusters.warmup_updates} and {run}.updates {updates}: the tasks are "
            "clustered after the first and trained so until the second, which must be larger"
        )


def similarity(gradients: Sequence[Tensor]) -> np.ndarray:
    """Return the mean over layers of the cosines (n, n) between the rows of each layer's gradients (n, size).

    A layer that gives some task no gradient at all has the cosine 0 there.
    """
    cosines = torch.zeros(len(gradients[0]), len(gradients[0]), dtype=torch.float64)
    for rows in gradients:
        unit = torch.nn.functional.normalize(rows, dim=1)
        cosines += (unit @ unit.t()).double()
    found = (cosines / len(gradients)).clamp(-1, 1).numpy()
    found = (found + found.T) / 2
    np.fill_diagonal(found, 1.0)
    return found


def group(names: Sequence[str], cosines: np.ndarray, num: int | Literal["auto"], max_num: int) -> Clustering:
    """Cluster tasks.

    Args:
        names: of the n tasks.
        cosines: (n, n) how similar they are.
        num: clusters; "auto" takes as many, from 2 to `max_num`, as give the largest mean silhouette coefficient.
        max_num: see `num`.
    """
    count = len(names)
    if count == 1:
        return Clustering(tuple(names), cosines, np.zeros(1, np.int64), np.zeros(1, np.int64), {})
    distance = 1 - cosines
    condensed = squareform(distance, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    tried = range(2, min(max_num, count - 1) + 1) if num == "auto" else [num]
    cuts = {k: cut_tree(tree, n_clusters=k).ravel() for k in tried}
    silhouette = {k: mean_silhouette(distance, cut) for k, cut in cuts.items() if 1 < k < count}
    chosen = max(silhouette, key=lambda k: silhouette[k]) if num == "auto" else num
    _, first, cluster = np.unique(cuts[chosen], return_index=True, return_inverse=True)
    cluster = first.argsort().argsort()[cluster].astype(np.int64)  # numbered by their first task
    return Clustering(tuple(names), cosines, cluster, leaves_list(tree).astype(np.int64), silhouette)


def mean_silhouette(distance: np.ndarray, cluster: np.ndarray) -> float:
    """Return the mean silhouette coefficient, in [-1, 1], of n points at distances (n, n) in clusters (n,).

    That of a point is (b - a) / max(a, b): a is its mean distance from the others of its cluster, b that from the
    nearest other cluster; a point alone in its cluster has 0. SciPy has no function for it.

    Source: Rousseeuw, Journal of Computational and Applied Mathematics 20 (1987).
    """
    member = cluster[:, None] == np.unique(cluster)  # (n, clusters)
    size = member.sum(0)
    total = distance @ member
    own = member.argmax(1)
    rows = np.arange(len(cluster))
    alone = size[own] == 1
    within = total[rows, own] / np.maximum(size[own] - 1, 1)
    others = np.where(member, np.inf, total / size).min(1)
    largest = np.maximum(within, others)
    return float(np.where(alone | (largest == 0), 0, (others - within) / np.where(largest == 0, 1, largest)).mean())
