"""A model that acts while another one learns: the exponential average of the weights it has gone through."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.world_model import WorldModel

_PREFIX = "average."


class Average:
    """Makes one model follow another at a distance.

    A constant learning rate keeps weights moving around what they have learned, by as much as the last updates added,
    and where a centimetre counts that decides between success and failure. Their average moves less: acting by it is,
    at any time, what letting the rate fall to 0 would have given.

    Args:
        acting: takes the averages; it begins with the weights of `learning`.
        learning: what a `Learner` moves.
        decay: in [0, 1), what an average keeps at each update: it looks back over some 1 / (1 - decay) of them.

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging (1992).
    """

    def __init__(self, acting: WorldModel, learning: WorldModel, decay: float):
        followed = dict(learning.named_parameters())
        self._acting = {name: parameter.detach() for name, parameter in acting.named_parameters()}
        self._learning = [followed[name].detach() for name in self._acting]
        self._decay = decay

    def follow(self) -> None:
        """Move towards the weights of now, once after every update."""
        acting = list(self._acting.values())
        torch._foreach_lerp_(acting, self._learning, 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the averages, for a bit-for-bit resume; the tensors are the live ones."""
        return {f"{_PREFIX}{name}": value for name, value in self._acting.items()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; other entries of `state` are left alone."""
        for name, value in self._acting.items():
            value.copy_(state[f"{_PREFIX}{name}"])
