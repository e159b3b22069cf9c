"""A world model whose dynamics read the past of the episode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline import config
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.systems.history.past import Past
from pipeline.systems.history.transformer import HistoryDynamics, Memory


class HistoryWorldModel(WorldModel):
    """A world model for `config.history`: its dynamics are a Transformer over the past steps of an episode.

    The carry of a rollout is a `Memory`. With the backbone "shared", reward, policy and Q read the latent with the
    Transformer's output at the newest step behind it (Z + D); else they read the latent alone.
    """

    @staticmethod
    def state_dim(config: config.Model) -> int:
        """Return the width of what reward, policy and Q read."""
        history = _history(config)
        return config.latent_dim + (history.dim if history.backbone == "shared" else 0)

    def make_dynamics(self, network: Callable[..., Any]) -> nn.Module:
        """Make the Transformer; `network` makes nothing of it."""
        return HistoryDynamics(self.config, _history(self.config))

    @property
    def shared(self) -> bool:
        """Whether reward, policy and Q read the Transformer's output as well."""
        return _history(self.config).backbone == "shared"

    def begin(self, obs: Tensor, ctx: TaskContext, past: Past | None = None) -> tuple[Tensor, Memory]:
        """Begin a rollout at observations (n, O) after a past; no past is one of no steps."""
        memory = self._remember(ctx, past)
        return self._state(self.encode(obs, ctx), memory), memory

    def next(self, z: Tensor, a: Tensor, ctx: TaskContext, carry: Memory | None = None) -> tuple[Tensor, Memory]:
        """Take one step of a rollout: predict z (..., n, .) after actions a (..., n, A) at z, and the new memory.

        Without a carry, the rollout begins here and has no past.
        """
        memory = self._transformer.begin(ctx.dynamics) if carry is None else carry
        latent, memory = self._transformer.step(ctx.dynamics, self.latent(z), a, memory)
        return self._state(latent, memory), memory

    def observed(self, obs: Tensor, action: Tensor, ctx: TaskContext, past: Past | None = None) -> Tensor:
        """Return what the heads read (T, n, .) after each of T real steps of obs (T + 1, n, O), action (T, n, A)."""
        assert past is not None, "slices come without their past: sample them from a ReplayWithPast"
        if not self.shared:
            return self.encode(obs[1:], ctx)
        z, memory = self.encode(obs, ctx), self._remember(ctx, past)
        states = []
        for t, step_action in enumerate(action):
            _, memory = self.next(z[t], step_action, ctx, memory)
            states.append(self._state(z[t + 1], memory))
        return torch.stack(states)

    def latent(self, z: Tensor) -> Tensor:
        """Return the latents (..., Z) within what the heads read."""
        return z[..., : self.config.latent_dim]

    @property
    def _transformer(self) -> HistoryDynamics:
        return cast("HistoryDynamics", self.dynamics)

    def _remember(self, ctx: TaskContext, past: Past | None) -> Memory:
        if past is None:
            return self._transformer.begin(ctx.dynamics)
        return self._transformer.remember(ctx.dynamics, self.encode(past.obs, ctx), past.action, past.length)

    def _state(self, z: Tensor, memory: Memory) -> Tensor:
        return torch.cat([z, memory.hidden.to(z.dtype)], dim=-1) if self.shared else z


def _history(sizes: config.Model) -> config.History:
    assert sizes.history is not None, "this class is for a model with `history`"
    return sizes.history
