"""The dimension letters and the small tuples that travel between packages.

Letters, used in every docstring and comment of the project:
    T  horizon: steps of a training slice or of a plan
    B  batch: slices
    N  environments stepping together
    O  padded observation        A  padded action
    Z  latent                    E  task embedding
    K  bins of a two-hot scalar  M  Q members           P  plan samples
    W  past steps seen by a model with history
Time comes first: a batch of observations is (T + 1, B, O).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """Slices of T transitions, sampled from a replay buffer or from demonstrations."""

    obs: Tensor  # (T + 1, B, O) float32, zero-padded
    action: Tensor  # (T, B, A) float32 in [-1, 1], what was executed, zero-padded
    expert_action: (
        Tensor  # (T, B, A) float32, what the behaviour-cloning term imitates (own data without labels: = action)
    )
    reward: Tensor  # (T, B) float32; NaN in all steps of a slice whose rewards are unknown
    terminated: Tensor  # (T, B) float32, 1 where the episode ended for good after this step
    task: Tensor  # (B,) int64, row of the task table
    imitation: Tensor  # (B,) float32 in [0, 1], weight of the online imitation term: 1 for demonstrations and labels
    value_target: Tensor | None = None  # (T, B) what Q should be at each step, where returns are kept
    past: Any = None  # or a NamedTuple of tensors: what came before each slice, for a model that reads it

    @property
    def rewarded(self) -> Tensor:
        """(B,) bool, the slices whose rewards are known: reward, value and the policy's Q term learn from no other."""
        return ~self.reward.isnan().all(0)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device. To a GPU it goes by pinned memory, so that the processor need not wait."""
        if not str(device).startswith("cuda"):
            return self.each(lambda part: part.to(device))
        return self.each(lambda part: (part if part.is_cuda else part.pin_memory()).to(device, non_blocking=True))

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor, those of the past included."""
        *parts, target, past = self
        return Batch(
            *map(function, parts),
            value_target=None if target is None else function(target),
            past=None if past is None else type(past)(*map(function, past)),
        )

    def take(self, which: slice) -> Batch:
        """Return some of the slices."""
        return self.each(lambda part: part[which] if part.ndim == 1 else part[:, which])
