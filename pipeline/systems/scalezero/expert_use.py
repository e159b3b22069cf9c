"""Which tasks use which experts: counted in every update, logged as a table, watched for routers that collapse.

The table `experts` has a row per log line, layer and task:
    layer  task  rows  expert_0  expert_1 ...
`rows` is the task's share of all rows the layer computed since the last line, `expert_j` the share of these rows'
choices that fell on expert j.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.extension import Extension, Metrics
from pipeline.learn.learner import Learner
from pipeline.shapes import Batch
from pipeline.systems.scalezero.experts import Routing, balance_loss, record_routing

PREFIX = "experts/"  # of the counts among an update's metrics, and of what is logged of them
TABLE = "experts"
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

    def log_tables(self, tables: Mapping[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the rows of the table, the largest and smallest share of each layer, and what to say of its router.

        Every rank calls this with the same averages, so that all of them save the same state.
        """
        counts = {name: table for name, table in tables.items() if name.startswith(PREFIX)}
        if not counts:
            return {}, []
        rows = table_rows(counts, names)
        shares = overall(rows)
        largest = {f"{PREFIX}{layer}_largest_share": float(share.max()) for layer, share in shares.items()}
        smallest = {f"{PREFIX}{layer}_smallest_share": float(share.min()) for layer, share in shares.items()}
        return {TABLE: rows, **largest, **smallest}, self._watch.see(shares)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what was said of the routers, so that a resumed run says the same as an undisturbed one."""
        return self._watch.state_tensors()

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._watch.load_state_tensors(state)

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


def table_rows(use: Mapping[str, np.ndarray], names: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of the table of averaged counts: tasks without any row are left out."""
    rows = []
    for layer, counts in use.items():
        for name, row in zip(names, counts, strict=True):
            if (total := row.sum()) > 0:
                shares = {f"expert_{expert}": f"{share:.4f}" for expert, share in enumerate(row / total)}
                rows.append({"layer": layer.removeprefix(PREFIX), "task": name, "rows": f"{total:.6f}", **shares})
    return rows


def overall(rows: Iterable[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Return each layer's shares (E,) over all tasks, from the rows of one log line."""
    shares: dict[str, np.ndarray] = {}
    for row in rows:
        of_task = np.array([float(value) for key, value in row.items() if key.startswith("expert_")])
        shares[row["layer"]] = shares.get(row["layer"], 0) + float(row["rows"]) * of_task
    return shares


class RouterWatch:
    """Says once when a router has collapsed or experts have died, and again when that changes."""

    def __init__(self) -> None:
        self._idle: dict[str, np.ndarray] = {}  # by layer, log lines in a row without a row of data (E,)
        self._said: dict[str, tuple[int | None, tuple[int, ...]]] = {}  # by layer, the expert that takes all; the dead

    def see(self, shares: Mapping[str, np.ndarray]) -> list[str]:
        """Look at a log line's shares (E,) by layer; return what there is to say."""
        return [line for layer, share in shares.items() if (line := self._look(layer, share))]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all it has seen and said."""
        state = {}
        for layer, (taken, dead) in self._said.items():
            state[f"{layer}.idle"] = torch.from_numpy(self._idle[layer].astype(np.int64))
            state[f"{layer}.taken"] = torch.tensor([-1 if taken is None else taken])
            state[f"{layer}.dead"] = torch.tensor(dead, dtype=torch.int64)
        return state

    def load_state_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        layers = [name.removesuffix(".idle") for name in state if name.endswith(".idle")]
        self._idle = {layer: state[f"{layer}.idle"].cpu().numpy().copy() for layer in layers}
        self._said = {}
        for layer in layers:
            taken, dead = int(state[f"{layer}.taken"]), tuple(state[f"{layer}.dead"].tolist())
            self._said[layer] = (None if taken < 0 else taken), dead

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
        return (
            f"the router of {layer} has collapsed: {'; '.join(found)}. A larger model.experts.balance_coef spreads "
            "them."
        )
