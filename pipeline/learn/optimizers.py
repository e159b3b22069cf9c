"""The two optimisers of a learner: which parameters each of them trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from pipeline.config import Learning
from pipeline.learn.extension import Extensions
from pipeline.model.world_model import WorldModel


class Optimizers(NamedTuple):
    """Adam for the model, Adam for the online policy, and the parameters that a step moves."""

    model: torch.optim.Adam
    policy: torch.optim.Adam
    trained: dict[Literal["pretrain", "online", "policy"], list[nn.Parameter]]  # model: the first two; policy

    def parameters(self) -> list[tuple[str, torch.optim.Adam, nn.Parameter]]:
        """Return every parameter with its optimiser and the name that optimiser is saved by."""
        named = (("model_adam", self.model), ("policy_adam", self.policy))
        return [(name, one, p) for name, one in named for group in one.param_groups for p in group["params"]]


def make_optimizers(model: WorldModel, learning: Learning, extensions: Extensions) -> Optimizers:
    """Make optimisers of the parameters that have `requires_grad` now.

    Raises:
        ValueError: there are none.
    """
    heads = [model.dynamics, model.reward_head, model.q_heads]
    heads += [] if model.termination_head is None else [model.termination_head]
    encoder, policy = _trainable(model.encoder), _trainable(model.policy_head)
    world = [parameter for head in heads for parameter in _trainable(head)]
    if not encoder + world + policy:
        raise ValueError("no parameter of the model has requires_grad: nothing would be learned")
    own = [group for extension in extensions for group in extension.parameter_groups()]
    # The policy is among the model's parameters because pretraining trains it as part of the model's loss; in online
    # learning it gets no gradient there, and its own optimiser moves it.
    groups = [{"params": encoder, "lr_scale": learning.encoder_lr_scale}, {"params": world + policy, "lr_scale": 1.0}]
    added = [parameter for group in own for parameter in group["params"]]
    made = (
        _adam([*groups, *own], learning.lr, model.bins.device),
        _adam([{"params": policy, "lr_scale": 1.0}], learning.lr, model.bins.device, eps=1e-5),
    )
    return Optimizers(
        *made,
        {"pretrain": encoder + world + policy + added, "online": encoder + world + added, "policy": policy},
    )


def rebuild_optimizers(
    before: Optimizers,
    model: WorldModel,
    learning: Learning,
    extensions: Extensions,
    origins: Mapping[nn.Parameter, nn.Parameter] | None = None,
) -> Optimizers:
    """Make the optimisers anew after the trained parameters have changed; Adam's moments are kept.

    Args:
        before: the optimisers so far.
        model: the model.
        learning: settings.
        extensions: of the learner.
        origins: for each new parameter the one it is a copy of, whose moments it takes.
    """
    for optimizer in before[:2]:
        optimizer.zero_grad(set_to_none=True)  # of what is frozen now, nobody else would
    made = make_optimizers(model, learning, extensions)
    moments = {"model_adam": before.model.state, "policy_adam": before.policy.state}
    for name, optimizer, parameter in made.parameters():
        if found := moments[name].get((origins or {}).get(parameter, parameter)):
            optimizer.state[parameter] = {part: value.clone() for part, value in found.items()}
    return made


def _adam(groups: list[dict[str, Any]], lr: float, device: torch.device, eps: float = 1e-8) -> torch.optim.Adam:
    """Make an optimiser that reads its learning rates from the device, so that a captured step obeys a new one."""
    # In double precision where Adam takes it: the rate is then exactly the number that it is computed as.
    kind = torch.float32 if device.type == "cuda" else torch.float64
    for group in groups:
        group["lr"] = torch.tensor(lr, dtype=kind, device=device)
    return torch.optim.Adam(groups, lr=lr, fused=True, capturable=device.type == "cuda", eps=eps)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
