"""The known tasks as tensors: text embeddings, action masks, discounts, observation statistics, constraints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# How a task is acted: by the policy alone, by plans that start from policy rollouts (tied), or by free plans.
CONSTRAINTS = ("policy", "tied", "free")
POLICY, TIED, FREE = range(3)
_PER_TASK = ("embeddings", "action_mask", "discount", "obs_mean", "obs_std", "constraint")


@dataclass(frozen=True)
class TaskTable:
    """One row per task.

    Raises:
        ValueError: the parts do not fit together, or a task has no action dim.
    """

    names: tuple[str, ...]
    embeddings: Tensor  # (n, P, E) float32, P phrasings of each text, the canonical one first
    action_mask: Tensor  # (n, A) float32, 1 on real action dims
    discount: Tensor  # (n,) float32 in (0, 1]
    obs_mean: Tensor | None = None  # (n, O) float32, per body; None: observations are not normalised
    obs_std: Tensor | None = None  # (n, O) float32, positive
    # (n,) int64 of CONSTRAINTS, on the CPU always; left out: all tied
    constraint: Tensor = field(default_factory=lambda: torch.zeros(0))
    columns: dict[str, Tensor] = field(default_factory=dict)  # (n,) int64 each: indices that some network reads

    def __post_init__(self) -> None:
        n = len(self.names)
        if not len(self.constraint):
            object.__setattr__(self, "constraint", torch.full((n,), TIED))
        if self.embeddings.ndim != 3 or self.action_mask.ndim != 2 or self.discount.ndim != 1:
            raise ValueError(
                "a task table takes embeddings (n, P, E), action_mask (n, A) and discount (n,); they came as "
                f"{tuple(self.embeddings.shape)}, {tuple(self.action_mask.shape)} and {tuple(self.discount.shape)}"
            )
        parts = {name: getattr(self, name) for name in ("embeddings", "action_mask", "discount", "constraint")}
        for name, part in {**parts, **self.columns}.items():
            if len(part) != n:
                raise ValueError(f"a task table of {n} names has {len(part)} rows of {name}")
        if (self.obs_mean is None) != (self.obs_std is None):
            raise ValueError("observation statistics are a mean and a std: one of them is missing")
        if self.obs_mean is not None and self.obs_std is not None:
            if len(self.obs_mean) != n or self.obs_mean.shape != self.obs_std.shape:
                raise ValueError(f"observation statistics of {n} tasks need (n, O) values, mean and std alike")
            self._refuse(~(self.obs_std > 0).all(1), "an observation std that is not above 0")
        if not torch.isfinite(self.embeddings).all():
            raise ValueError("a task embedding holds values that are not finite: run `dvc repro embed` anew")
        self._refuse(~self.action_mask.any(1), "no action dim: its action mask is all zero")
        self._refuse(~((self.discount > 0) & (self.discount <= 1)), "a discount outside (0, 1]")

    def _refuse(self, bad: Tensor, what: str) -> None:
        if bad.any():
            raise ValueError(f"{', '.join(self.names[i] for i in bad.nonzero().flatten().tolist())}: {what}")

    @property
    def num_phrasings(self) -> int:
        """P."""
        return self.embeddings.shape[1]

    def check(self, rows: Tensor) -> None:
        """Assert that rows (n,) are of this table; those on a device are taken as they are, or each look would wait."""
        if rows.device.type == "cpu":
            known = rows.numpy()
            outside = known[(known < 0) | (known >= len(self.names))]
            assert not len(outside), f"rows {outside.tolist()} of a table of {len(self.names)} tasks"

    def network_inputs(self) -> list[Tensor]:
        """Return the tensors of it that networks read."""
        own = (self.embeddings, self.action_mask, self.discount, self.obs_mean, self.obs_std, *self.columns.values())
        return [part for part in own if part is not None]

    def to(self, device: torch.device | str) -> TaskTable:
        """Return the table on a device; the constraints, by which the processor decides, stay in its memory."""
        parts = (part.to(device) for part in (self.embeddings, self.action_mask, self.discount))
        statistics = (part if part is None else part.to(device) for part in (self.obs_mean, self.obs_std))
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return TaskTable(self.names, *parts, *statistics, constraint=self.constraint, columns=columns)

    def select(self, rows: Sequence[int]) -> TaskTable:
        """Return the table of these rows, in this order."""
        kept = list(rows)
        parts = ((name, getattr(self, name)) for name in _PER_TASK)
        selected: dict[str, Any] = {name: part if part is None else part[kept] for name, part in parts}
        columns = {name: column[kept] for name, column in self.columns.items()}
        return TaskTable(tuple(self.names[row] for row in kept), **selected, columns=columns)

    def widened(self, obs_dim: int, action_dim: int) -> TaskTable:
        """Return the table for a model of wider observations and actions, which these tasks do not have."""
        more_obs = 0 if self.obs_mean is None else obs_dim - self.obs_mean.shape[1]
        return dataclasses.replace(
            self,
            action_mask=F.pad(self.action_mask, (0, action_dim - self.action_mask.shape[1])),
            obs_mean=None if self.obs_mean is None else F.pad(self.obs_mean, (0, more_obs)),
            obs_std=None if self.obs_std is None else F.pad(self.obs_std, (0, more_obs), value=1.0),
            constraint=self.constraint.clone(),
        )

    def extended(
        self,
        names: tuple[str, ...],
        embeddings: Tensor,
        action_dim: int,
        discount: float,
        obs_mean: Tensor | None,
        obs_std: Tensor | None,
        num_trained: int,
    ) -> TaskTable:
        """Return the table with one more task, whose constraint is "tied".

        Its `columns` are those of the nearest of the first `num_trained` tasks, by the cosine of their canonical texts.

        Args:
            names: of all n + 1 tasks.
            embeddings: (n + 1, P, E) of all.
            action_dim: of the new task.
            discount: of the new task.
            obs_mean: (n + 1, O) of all, or None.
            obs_std: (n + 1, O) of all, or None.
            num_trained: tasks, from the first row on, that the model was trained on.
        """
        mask = (torch.arange(self.action_mask.shape[1]) < action_dim).to(self.action_mask)
        canonical = embeddings[:, 0]
        nearest = torch.cosine_similarity(canonical[-1:], canonical[:num_trained]).argmax()
        return TaskTable(
            names,
            embeddings,
            torch.cat([self.action_mask, mask.unsqueeze(0)]),
            torch.cat([self.discount, self.discount.new_tensor([discount])]),
            obs_mean,
            obs_std,
            torch.cat([self.constraint, self.constraint.new_tensor([TIED])]),
            {name: torch.cat([column, column[nearest].unsqueeze(0)]) for name, column in self.columns.items()},
        )
