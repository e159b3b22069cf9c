"""A learner as tensors, and back: everything that is needed to continue bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.learn.learner import Learner

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def state_tensors(learner: Learner) -> dict[str, Tensor]:
    """Return the live tensors of a learner: save or clone them before the next update."""
    state = {f"model.{name}": value for name, value in learner.model.state_dict().items()}
    names = _names(learner)
    for prefix, optimizer, parameter in learner.optimizers.parameters():
        for part, value in optimizer.state.get(parameter, {}).items():
            state[f"{prefix}.{names[parameter]}.{part}"] = value
    own = {"scale": learner.value_scale, "updates": torch.tensor([learner.updates])}
    return state | learner.extensions.state_tensors() | own


def load_state_tensors(learner: Learner, state: dict[str, Tensor]) -> None:
    """Take over what `state_tensors` of a learner of the same model returned; the tensors are copied.

    Raises:
        ValueError: the state is of another model; missing and unknown entries and other shapes are named.
    """
    for extension in learner.extensions:  # first, because one may change which tensors the model has
        extension.load_state_tensors(learner.extensions.own(extension, state))
    own = learner.model.state_dict()
    saved = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    odd = sorted(own.keys() ^ saved.keys())
    odd += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    odd += sorted(name for name in state if name.partition(".")[0] not in _groups(learner))
    if odd or "scale" not in state or "updates" not in state:
        raise ValueError(
            f"the saved state is of another model: {', '.join(odd[:5]) or 'scale or updates'} "
            f"{'and others ' if len(odd) > 5 else ''}do not match. Was a size, the set of adapters or of tasks, "
            "or an option of learning changed?"
        )
    learner.model.load_state_dict(saved)
    names = _names(learner)
    for prefix, optimizer, parameter in learner.optimizers.parameters():
        keys = {part: f"{prefix}.{names[parameter]}.{part}" for part in _ADAM_STATE}
        if all(key in state for key in keys.values()):
            optimizer.state[parameter] = {
                part: state[key].to(parameter.device, copy=True) for part, key in keys.items()
            }
        else:  # this parameter had not been moved yet
            optimizer.state.pop(parameter, None)
    with torch.no_grad():
        learner.value_scale.copy_(state["scale"])
    learner.updates = int(state["updates"])


def digest(learner: Learner) -> float:
    """Return a number that differs where the weights do."""
    return float(sum(parameter.detach().double().abs().sum() for parameter in learner.model.parameters()))


def _groups(learner: Learner) -> set[str]:
    """Return the first words of the names that a state of this learner may hold."""
    return {"model", "model_adam", "policy_adam", "scale", "updates", *(one.name for one in learner.extensions)}


def _names(learner: Learner) -> dict[nn.Parameter, str]:
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    for extension in learner.extensions:
        names |= {parameter: f"{extension.name}.{key}" for key, parameter in extension.named_parameters().items()}
    return names
