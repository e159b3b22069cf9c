"""Read a checkpoint that the original Newt code saved, as our configuration and weights."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import config

# Fixed in the published code and not stored in its checkpoints.
_BIN_MIN, _BIN_MAX, _SIMNORM_DIM = -10.0, 10.0, 8

_NETWORKS = {
    r"_encoder\.state": "encoder",
    r"_dynamics": "dynamics",
    r"_reward": "reward_head",
    r"_pi": "policy_head",
    r"_Qs\.online\._Qs\.(\d+)": r"q_heads.\1",
    r"_Qs\.target\._Qs\.(\d+)": r"target_q_heads.\1",
}


class NewtCheckpoint(NamedTuple):
    """What such a file holds, in our terms."""

    model: config.Model
    state_dict: dict[str, Tensor]  # for `WorldModel.load_state_dict`
    task_embeddings: Tensor  # (n, E)
    action_mask: Tensor  # (n, A)
    scale: Tensor  # (1,) running value scale


def load_newt_checkpoint(path: str | Path) -> NewtCheckpoint:
    """Read a checkpoint of the original; sizes are inferred from the shapes. Nothing in the file is executed.

    Raises:
        ValueError: the file is no such checkpoint; the missing or unknown entry is named.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name.removeprefix("module."): value for name, value in saved["model"].items()}
        scale = saved["scale"]["value"]
        _refuse_lies(path, {**weights, "scale": scale})
        mask, embeddings = weights.pop("_action_masks"), weights.pop("_task_emb.weight")
        log_std_min, log_std_dif = float(weights.pop("log_std_min")), float(weights.pop("log_std_dif"))
        state_dict = {our_name(name): value for name, value in weights.items()}
        model = _infer_sizes(state_dict, mask.shape[1], embeddings.shape[1], log_std_min, log_std_min + log_std_dif)
    except KeyError as error:
        hint = ": a single-task one, which knows no language?" if error.args == ("_task_emb.weight",) else ""
        raise ValueError(f"{path} is not a Newt checkpoint: {error} is missing{hint}") from None
    except (TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a Newt checkpoint: {error!r} while reading it") from error
    return NewtCheckpoint(model, state_dict, embeddings, mask, scale.reshape(1))


def _refuse_lies(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Refuse a tensor that says it is larger than what the file holds of it, before memory is taken for it."""
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} says it is {tuple(tensor.shape)}, which is more than the file holds.")


def our_name(name: str) -> str:
    """Translate the original's name of a parameter, e.g. `_pi.0.ln.weight` to `policy_head.0.norm.weight`.

    Raises:
        ValueError: there is no such parameter.
    """
    for theirs, ours in _NETWORKS.items():
        match = re.fullmatch(rf"(?:{theirs})\.(?P<layer>\d+)\.(?P<ln>ln\.)?(?P<kind>weight|bias)", name)
        if match:
            prefix = match.expand(ours) if match.lastindex and r"\1" in ours else ours
            return f"{prefix}.{match['layer']}.{'norm' if match['ln'] else 'linear'}.{match['kind']}"
    raise ValueError(f"a Newt checkpoint has no parameter called {name!r}; is it from another version?")


def _infer_sizes(
    state: dict[str, Tensor], action_dim: int, task_dim: int, log_std_min: float, log_std_max: float
) -> config.Model:
    enc_dim, enc_in = state["encoder.0.linear.weight"].shape
    num_enc_layers = sum(name.startswith("encoder.") and name.endswith("linear.weight") for name in state)
    return config.Model(
        obs_dim=enc_in - task_dim,
        action_dim=action_dim,
        task_dim=task_dim,
        latent_dim=state[f"encoder.{num_enc_layers - 1}.linear.weight"].shape[0],
        enc_dim=enc_dim,
        num_enc_layers=num_enc_layers,
        mlp_dim=state["dynamics.0.linear.weight"].shape[0],
        num_q=len({name.split(".")[1] for name in state if name.startswith("q_heads.")}),
        num_bins=state["reward_head.2.linear.weight"].shape[0],
        bin_min=_BIN_MIN,
        bin_max=_BIN_MAX,
        simnorm_dim=_SIMNORM_DIM,
        log_std_min=log_std_min,
        log_std_max=log_std_max,
        termination=False,
    )
