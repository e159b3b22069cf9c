"""What is learned about the tasks of a run beside the model: their losses' scales, and a head that tells them apart.

Neither is part of the model. Acting reads neither, a checkpoint holds neither, and a new task needs neither: they
belong to one learner and the rows of its task table, start anew with its optimisers, and are saved with them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import Learning


class TaskTerms(nn.Module):
    """The learned parts of `learning.weighting` and `learning.task_id_coef`; with both off it holds nothing.

    Args:
        num_tasks: n, rows of the task table.
        latent_dim: Z.
        learning: says which parts there are.

    Attributes:
        log_scale: (n,) logarithm of the scale of each task's loss, 0 at first: the scales are then 1, as if even.
        identify: predicts the task from a latent; zero at first, so that it does not disturb the latents before it
            knows anything.
    """

    def __init__(self, num_tasks: int, latent_dim: int, learning: Learning):
        super().__init__()
        self._lr_scale = learning.weighting_lr_scale
        self.log_scale = nn.Parameter(torch.zeros(num_tasks)) if learning.weighting == "harmony" else None
        self.identify: nn.Linear | None = None
        if learning.task_id_coef:
            # Zeroed and not drawn: the draws of everything else stay as they are without it.
            self.identify = cast("nn.Linear", nn.utils.skip_init(nn.Linear, latent_dim, num_tasks))
            nn.init.zeros_(self.identify.weight)
            nn.init.zeros_(self.identify.bias)

    def groups(self) -> list[dict[str, Any]]:
        """Return what there is as groups of an optimiser, each with the factor of its learning rate."""
        scales = {"params": [] if self.log_scale is None else [self.log_scale], "lr_scale": self._lr_scale}
        head = {"params": [] if self.identify is None else list(self.identify.parameters()), "lr_scale": 1.0}
        return [group for group in (scales, head) if group["params"]]

    def scales(self) -> Tensor | None:
        """Return the scale (n,) of each task's loss, None where all count alike."""
        return None if self.log_scale is None else self.log_scale.detach().exp()
