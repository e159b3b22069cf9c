"""What to say when an update is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.shapes import Batch

if TYPE_CHECKING:
    from pipeline.learn.learner import Learner


def describe_not_finite(learner: Learner, update: int, pieces: Sequence[Any], metrics: dict[str, Tensor]) -> str:
    """Return which loss, values and tasks of an update are at fault; every rank calls this and gets the same text."""
    metrics = {name: value for name, value in metrics.items() if value.numel() == 1 and name != "lr"}
    losses = {name: value for name, value in metrics.items() if not name.endswith("grad_norm")}
    faulty = not all(bool(value.isfinite().all()) for value in losses.values())
    found = learner.ranks.collect((faulty, _describe_own(learner, update, pieces, metrics)))
    if learner.ranks.count == 1:
        return found[0][1]
    # Where every loss was finite, a gradient overflowed, and nobody can say whose.
    anyone = any(bad for bad, _ in found)
    said = [f"rank {rank}: {text}" for rank, (bad, text) in enumerate(found) if bad or not anyone]
    return "all ranks stopped before the optimiser's step; " + "; ".join(said)


def _describe_own(learner: Learner, update: int, pieces: Sequence[Any], values: dict[str, Tensor]) -> str:
    def names(task: Tensor) -> str:
        return ", ".join(learner.table.names[row] for row in task.unique().tolist())

    listed = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
    said = f"update {update} is not finite ({listed}); the weights were left as they were."
    for batch in pieces:
        if not isinstance(batch, Batch):
            continue
        for part in ("obs", "action", "expert_action", "reward", "terminated"):
            value = getattr(batch, part)
            bad = ~torch.isfinite(value).reshape(value.shape[0], value.shape[1], -1).all(-1).all(0)
            if part == "reward":
                bad &= batch.rewarded
            if bad.any():
                return f"{said} The batch holds {part} values that are not finite, of {names(batch.task[bad])}."
    tasks = torch.cat([piece.task if isinstance(piece, Batch) else piece for piece in pieces])
    return (
        f"{said} The batch itself is finite; its tasks are {names(tasks)}. Lower learning.lr, or look at the scale of "
        "these tasks' rewards."
    )
