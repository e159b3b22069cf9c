"""Reading what the original saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.model.world_model import WorldModel
from pipeline.newt_checkpoint import load_newt_checkpoint, our_name

CHECKPOINT = Path(__file__).parent / "data" / "newt_tiny_checkpoint.pt"


def test_sizes_and_weights() -> None:
    newt = load_newt_checkpoint(CHECKPOINT)
    sizes = newt.model
    assert (sizes.obs_dim, sizes.action_dim, sizes.task_dim, sizes.latent_dim) == (24, 6, 16, 32)
    assert (sizes.enc_dim, sizes.num_enc_layers, sizes.mlp_dim, sizes.num_q, sizes.num_bins) == (40, 2, 48, 3, 101)
    assert (sizes.log_std_min, sizes.log_std_max) == (-10, 2)
    assert newt.task_embeddings.shape == (3, 16)
    assert newt.action_mask.sum(1).tolist() == [6, 2, 1]
    WorldModel(sizes).load_state_dict(newt.state_dict)  # strict: nothing is missing, nothing is left


def test_a_multi_gpu_checkpoint_reads_the_same(tmp_path: Path) -> None:
    saved = torch.load(CHECKPOINT, weights_only=True)
    saved["model"] = {f"module.{name}": value for name, value in saved["model"].items()}
    torch.save(saved, tmp_path / "multi.pt")
    single, multi = load_newt_checkpoint(CHECKPOINT), load_newt_checkpoint(tmp_path / "multi.pt")
    assert multi.model == single.model
    assert single.state_dict.keys() == multi.state_dict.keys()
    assert all(torch.equal(multi.state_dict[name], value) for name, value in single.state_dict.items())


@pytest.mark.parametrize("entry", ["_action_masks", "_dynamics.0.weight", "_encoder.state.0.weight"])
def test_a_missing_entry_is_named(entry: str, tmp_path: Path) -> None:
    saved = torch.load(CHECKPOINT, weights_only=True)
    del saved["model"][entry]
    torch.save(saved, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match="not a Newt checkpoint"):
        load_newt_checkpoint(tmp_path / "broken.pt")


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"no parameter called '_value\.0\.weight'"):
        our_name("_value.0.weight")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": pytest.approx}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a Newt checkpoint"):
        load_newt_checkpoint(tmp_path / "evil.pt")
