"""Acting with a model that reads the past of the episode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.model.actor import Actor, put_envs, take_envs
from pipeline.model.world_model import TaskContext
from pipeline.systems.history.past import Past
from pipeline.systems.history.world_model import HistoryWorldModel

_DIMS = (1, 1, 0)  # the dim of each part of a `Past` that counts the environments


class HistoryActor(Actor):
    """Shows the model what was observed and done since each environment's episode began.

    Call `act` once per step: what it is given and returns becomes the past of the next step.

    Args:
        *args: of `Actor`, with a `HistoryWorldModel`.
        **options: of `Actor`.
    """

    ENV_DIMS = Actor.ENV_DIMS | {f"past_{name}": dim for name, dim in zip(Past._fields, _DIMS, strict=True)}

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._past = self._no_past(0)

    def reset(self, num_envs: int, seed: int) -> None:
        """Begin an episode in each of `num_envs` environments; what is drawn from here on follows from `seed`."""
        super().reset(num_envs, seed)
        self._past = self._no_past(num_envs)

    def begin_episodes(self, which: Tensor) -> None:
        """Forget plans and past of the environments where `which` (N,) bool is true: their next step is their first."""
        super().begin_episodes(which)
        self._past.length.masked_fill_(which.to(self.device), 0)

    def past(self, envs: Tensor | None) -> Past:
        """Return what came before in these environments."""
        return Past(*(take_envs(part, dim, envs) for part, dim in zip(self._past, _DIMS, strict=True)))

    def policy_input(self, obs: Tensor, ctx: TaskContext, envs: Tensor | None) -> Tensor:
        """Return what the policy reads; only with a shared backbone it is more than the latent of the present."""
        assert isinstance(self.model, HistoryWorldModel)
        return super().policy_input(obs, ctx, envs) if self.model.shared else self.model.encode(obs, ctx)

    def acted(self, obs: Tensor, action: Tensor, envs: Tensor | None, *args: Any) -> None:
        """Put what was observed (N, O) and done (N, A) at the end of the past of these environments."""
        super().acted(obs, action, envs, *args)
        past = self.past(envs)
        obs, action = (torch.cat([steps[1:], new[None]]) for steps, new in ((past.obs, obs), (past.action, action)))
        moved = Past(obs, action, (past.length + 1).clamp(max=len(obs)))
        self._past = Past(
            *(put_envs(whole, dim, envs, part) for whole, dim, part in zip(self._past, _DIMS, moved, strict=True))
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the plans, the random state and the past, for a bit-for-bit resume."""
        return super().state_tensors() | {f"past_{name}": part for name, part in self._past._asdict().items()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        super().load_state_tensors(state)
        self._past = Past(*(state[f"past_{name}"].to(self.device, copy=True) for name in Past._fields))

    def _no_past(self, num_envs: int) -> Past:
        sizes = self.model.config
        assert sizes.history is not None
        steps = sizes.history.context, num_envs
        widths, kind = (sizes.obs_dim, sizes.action_dim), {"dtype": self.table.discount.dtype, "device": self.device}
        obs, action = (torch.zeros(*steps, width, **kind) for width in widths)
        return Past(obs, action, torch.zeros(num_envs, dtype=torch.int64, device=self.device))
