"""Which tasks use which experts: counted in every update, logged as tables, watched for routers that collapse.

The table `expert_use/<layer>` of a row of the metrics has, for each task, the part of all the layer's choices since
the row before that were of this task and each expert: [expert 0, expert 1, ...]. All of them sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.extension import Described, Extension, Metrics
from pipeline.learn.learner import Learner
from pipeline.shapes import Batch
from pipeline.systems.scalezero.experts import Routing, balance_loss, record_routing

PREFIX = "experts/"  # of the counts among an update's metrics, and of what is logged of them
TABLE = "expert_use/"  # before the names of the tables
_TOO_MUCH = 0.9  # of all rows on one expert: the router has collapsed
_LONG = 5  # log lines without a row, after which an expert counts as dead


class Experts(Extension):
    """Learning with routed experts: their balance losses, and which tasks use which experts.

    Args:
        settings: of the model's experts.
    """

    name = "experts"

    def __init__(self, settings: config.Experts):
        self._settings = settings
        self._calls: dict[str, list[Routing]] = {}
        self._watch = RouterWatch()

    def attach(self, learner: Learner) -> None:
        """Record the routing of this learner's model."""
        self._learner = learner

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record where rows go."""
        with record_routing(self._learner.model) as self._calls:
            yield

    def model_loss(self, z: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor | None, Metrics]:
        """Return the balance losses of the layers that the model's loss has called, and who used them."""
        return self._loss("balance_loss", batch.task)

    def policy_loss(self, batch: Batch) -> tuple[Tensor | None, Metrics]:
        """Return the same of the policy's loss."""
        called = any(self._calls.values())
        return self._loss("policy_balance_loss", batch.task) if called else (None, {})

    def describe(self, averages: Mapping[str, Any], names: Sequence[str]) -> Described:
        """Return the tables of use, the largest and smallest share of each layer, and what to say of its router."""
        use = tables({name: counts for name, counts in averages.items() if name.startswith(PREFIX)}, names)
        shares = overall(use)
        largest = {f"{PREFIX}{layer}_largest_share": float(share.max()) for layer, share in shares.items()}
        smallest = {f"{PREFIX}{layer}_smallest_share": float(share.min()) for layer, share in shares.items()}
        return Described({**largest, **smallest}, use, self._watch.see(shares))

    def read_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Read what was said of the routers before, so that a resumed run says what an undisturbed one would."""
        self._watch = RouterWatch(rows)

    def _loss(self, name: str, task: Tensor) -> tuple[Tensor, Metrics]:
        settings, num_tasks = self._settings, len(self._learner.table.names)
        called = {layer: calls for layer, calls in self._calls.items() if calls}
        zero = torch.zeros((), device=task.device)
        balance = sum((balance_loss(calls, settings) for calls in called.values()), start=zero)
        chosen = {layer: torch.cat([call.chosen for call in calls]) for layer, calls in called.items()}
        use = count_use(chosen, task, num_tasks, settings.num)
        return settings.balance_coef * balance, {name: balance.detach()} | use


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
        self._said: dict[str, tuple[int | None, tuple[int, ...]]] = {}
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
        before, self._said[layer] = self._said.get(layer, (None, ())), (taken, dead)
        if before == (taken, dead):
            return ""
        found = []
        if taken is not None:
            found.append(f"expert {taken} takes {share[most]:.0%} of the rows of all tasks")
        if dead:
            found.append(f"no row has gone to expert {', '.join(map(str, dead))} for {_LONG} log lines")
        if not found:
            return f"the router of {layer} spreads its rows again: {share.min():.0%} to {share.max():.0%} per expert."
        advice = "A larger model.experts.balance_coef spreads them."
        return f"the router of {layer} has collapsed: {'; '.join(found)}. {advice}"
