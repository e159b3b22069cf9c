"""The ensemble of Q heads, and which two of them a value is read from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.model.blocks import MLP, Conditioned
from pipeline.model.clusters import Groups, tell
from pipeline.model.compute import PLAIN, Compute


class QEnsemble(nn.ModuleList):
    """M independent MLPs. They stay apart: one batched product over all members loses on a CPU."""

    def condition(
        self,
        task_emb: Tensor,
        compute: Compute = PLAIN,
        members: Sequence[int] | None = None,
        groups: Groups | None = None,
    ) -> tuple[Conditioned, ...]:
        """Tell the named members (None: all) their tasks (n, E); `groups` says their clusters, where there are any."""
        heads = self.members
        chosen = heads if members is None else [heads[m] for m in members]
        return tuple(tell(head, task_emb, compute, groups) for head in chosen)

    def forward(
        self, told: tuple[Conditioned, ...], z: Tensor, a: Tensor, members: Sequence[int] | None = None
    ) -> Tensor:
        """Evaluate the named members (None: all) at z (..., n, Z), a (..., n, A): logits (M', ..., n, K)."""
        return torch.stack([told[m](z, a) for m in (range(len(told)) if members is None else members)])

    @property
    def members(self) -> list[MLP]:
        """The M heads."""
        return cast("list[MLP]", list(self))


def make_target(online: QEnsemble) -> QEnsemble:
    """Copy an ensemble, adapters included, into one that no optimiser moves."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float, frozen: bool = False) -> None:
    """Move `target`, a copy of `online`, the fraction tau towards it, where the online parameters can change.

    With `frozen`, also where they cannot: they could before, and the target has yet to arrive where they stopped.
    """
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    moving = [(old, new) for old, new in pairs if frozen or new.requires_grad]
    if moving:
        old, new = zip(*moving, strict=True)
        get_ema_multi_avg_fn(1 - tau)(list(old), list(new), 0)


def draw_members(num_q: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw two members at random without replacement."""
    first, second = torch.randperm(num_q, generator=generator, device=generator.device)[:2].tolist()
    return first, second
