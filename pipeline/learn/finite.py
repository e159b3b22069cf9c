"""Losses and gradients that are not finite: nothing is learned from them, and the run stops and says which they were.

Whether a step may be made is decided where it is made: `found` is 1 from the first loss or gradient on that is not
finite, and Adam's fused kernel leaves the weights as they are where it is 1. So the processor need not wait for the
device to know. It reads `found` some updates later, when a copy has long arrived, and before anything is logged,
evaluated or saved; on a CPU at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pipeline.learn.diagnosis import describe_not_finite

if TYPE_CHECKING:
    from pipeline.learn.learner import Learner

_BEHIND = 4  # steps after which a device's verdict is read: the same number on all ranks, which stop together


class Verdict(NamedTuple):
    """What is needed to say what was wrong with a step."""

    found: Tensor  # (1,) in the processor's memory, 1 where the step or one before it was not finite
    arrived: Any  # the event after the copy of `found`; None on a CPU
    update: int
    pieces: Sequence[Any]
    metrics: dict[str, Tensor]


class FiniteWatch:
    """Watches the steps of one learner.

    Args:
        device: of the learner.
        behind: steps after which a verdict is read; None: at once on a CPU, else some later.

    Attributes:
        found: () float32 on the device, 1 from the first step on that was not finite.
    """

    def __init__(self, device: torch.device, behind: int | None = None):
        self.found = torch.zeros((), dtype=torch.float32, device=device)  # as Adam reads it
        self._behind = (0 if device.type == "cpu" else _BEHIND) if behind is None else behind
        self._pending: deque[Verdict] = deque()

    def judge(self, loss: Tensor, norm: Tensor) -> None:
        """Set `found` where a loss () or the norm () of its gradient is not finite."""
        both = loss + norm
        self.found.logical_or_(both - both)  # 0 of what is finite, else NaN, which counts as true

    def note(self, learner: Learner, pieces: Sequence[Any], metrics: dict[str, Tensor]) -> None:
        """Remember a step that was judged, and read what is due.

        Raises:
            FloatingPointError: this step, or one that was made some steps ago, was not finite.
        """
        if self.found.is_cuda:
            copy, arrived = torch.empty((), pin_memory=True), torch.cuda.Event()
            copy.copy_(self.found, non_blocking=True)
            arrived.record()
        else:
            copy, arrived = self.found.clone(), None
        self._pending.append(Verdict(copy, arrived, learner.updates, pieces, metrics))
        self.settle(learner, self._behind)

    def settle(self, learner: Learner, left: int = 0) -> None:
        """Read all verdicts but the newest `left`; every rank calls this alike.

        Raises:
            FloatingPointError: a step was not finite. Nothing was learned from it, nor since.
        """
        while len(self._pending) > left:
            verdict = self._pending.popleft()
            if verdict.arrived is not None:
                verdict.arrived.synchronize()
            if verdict.found.numpy():
                self._pending.clear()
                self.found.zero_()
                raise FloatingPointError(describe_not_finite(learner, verdict.update, verdict.pieces, verdict.metrics))
