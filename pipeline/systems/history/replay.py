"""A replay whose slices come with the steps before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.learn.replay import Drawn, ReplayBuffer
from pipeline.shapes import Batch
from pipeline.systems.history.past import Past


class ReplayWithPast(ReplayBuffer):
    """A replay whose batches have `past`, a `Past` of W steps.

    Args:
        *args: of `ReplayBuffer`.
        context: W, how many steps before each slice come with it.
        **options: of `ReplayBuffer`.
    """

    def __init__(self, *args: Any, context: int, **options: Any):
        super().__init__(*args, **options)
        self._context = context

    def _read(self, drawn: Drawn) -> dict[str, Tensor]:
        # Before an episode's first row there is none of it: that row is repeated, and `length` says it does not count.
        steps_back = np.arange(-self._context, 0)[:, None]
        past = self._gather("rows", drawn.start + np.maximum(steps_back, -drawn.before))
        length = torch.from_numpy(drawn.before.clip(max=self._context)).to(self.device)
        return super()._read(drawn) | {"past": past, "past_length": length}

    def _batch(self, slices: dict[str, Tensor]) -> Batch:
        obs, action, _ = self._split(slices["past"])
        return super()._batch(slices)._replace(past=Past(obs, action, slices["past_length"]))
