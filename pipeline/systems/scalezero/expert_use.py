"""Which tasks use which experts: counted in every update, logged as tables, watched for routers that collapse.

The table `expert_use/<layer>` of a row of the metrics has, for each task, the part of all the layer's choices since
the row before that were of this task and each expert: [expert 0, expert 1, ...]. All of them sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREFIX = "experts/"  # of the counts among an update's metrics, and of what is logged of them
TABLE = "expert_use/"  # before the names of the tables
_TOO_MUCH = 0.9  # of all rows on one expert: the router has collapsed
_LONG = 5  # log lines without a row, after which an expert counts as dead


def count_use(chosen: Mapping[str, Tensor], task: Tensor, num_tasks: int, num_experts: int) -> dict[str, Tensor]:
    """Count which task's rows went to which expert.

    Args:
        chosen: by layer, the experts (rows, k) of rows, of which row i is of slice i modulo B.
        task: (B,) rows of the task table.
        num_tasks: n, of the table.
        num_experts: E.

    Returns:
        by PREFIX and layer, (n, E) float32, the part of all choices that were of this task and this expert: they sum
        to 1, so that averages over pieces, updates and processes by their sizes are again such parts.
    """
    found = {}
    for layer, experts in chosen.items():
        of_task = task.repeat(len(experts) // len(task)).unsqueeze(1)
        cells = torch.bincount((of_task * num_experts + experts).flatten(), minlength=num_tasks * num_experts)
        found[PREFIX + layer] = cells.view(num_tasks, num_experts) / experts.numel()
    return found


def tables(use: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return the tables to log of averaged counts; tasks without any row are left out."""
    return {
        TABLE + layer.removeprefix(PREFIX): {
            name: [float(f"{part:.4g}") for part in parts]
            for name, parts in zip(names, counts, strict=True)
            if parts.sum() > 0
        }
        for layer, counts in use.items()
    }


def overall(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return each layer's shares (E,) over all tasks, from the tables of a row of the metrics."""
    return {
        name.removeprefix(TABLE): np.sum(list(table.values()), axis=0)
        for name, table in row.items()
        if name.startswith(TABLE)
    }


class RouterWatch:
    """Says once when a router has collapsed or experts have died, and again when that changes.

    All it knows follows from the logged tables, so that a resumed run says what an undisturbed one would.

    Args:
        before: the rows of the metrics so far, oldest first.
    """

    def __init__(self, before: Iterable[Mapping[str, Any]] = ()):
        self._idle: dict[str, np.ndarray] = {}  # by layer, log lines in a row without a row of data (E,)
        self._told: dict[str, tuple[int | None, tuple[int, ...]]] = {}
        for row in before:
            self.see(overall(row))

    def see(self, shares: Mapping[str, np.ndarray]) -> list[str]:
        """Look at a log line's shares (E,) by layer; return what there is to say."""
        return [line for layer, share in shares.items() if (line := self._look(layer, share))]

    def _look(self, layer: str, share: np.ndarray) -> str:
        if len(share) == 1:
            return ""
        self._idle[layer] = np.where(share > 0, 0, self._idle.get(layer, 0) + 1)
        most = int(share.argmax())
        taken = most if share[most] > _TOO_MUCH else None
        dead = tuple(np.flatnonzero(self._idle[layer] >= _LONG).tolist())
        before, self._told[layer] = self._told.get(layer, (None, ())), (taken, dead)
        if before == (taken, dead):
            return ""
        told = []
        if taken is not None:
            told.append(f"expert {taken} takes {share[most]:.0%} of the rows of all tasks")
        if dead:
            told.append(f"no row has gone to expert {', '.join(map(str, dead))} for {_LONG} log lines")
        if not told:
            return f"the router of {layer} spreads its rows again: {share.min():.0%} to {share.max():.0%} per expert."
        return (
            f"the router of {layer} has collapsed: {'; '.join(told)}. A larger model.experts.balance_coef spreads them."
        )
