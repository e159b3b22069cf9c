"""Resumable saves: a folder per save, tensors as safetensors, the rest as JSON, each verified before it is trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_folder, write_json

KEEP = 2


def save(folder: Path, position: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
    """Save one state of a run under `folder`, then remove all but the last two.

    Args:
        folder: the run's scratch folder.
        position: updates or env_steps done; names the save.
        tensors: groups of tensors; each becomes one safetensors file.
        values: what else there is, as JSON.
    """
    target = folder / f"save-{position:012d}"
    with atomic_folder(target) as partial:
        hashes = {}
        for group, group_tensors in tensors.items():
            path = partial / f"{group}.safetensors"
            # Cloned, because safetensors refuses tensors that share storage, as a model's tied buffers may.
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in group_tensors.items()}, path)
            hashes[path.name] = _sha256(path)
        write_json(partial / "state.json", {"position": position, "values": values, "sha256": hashes})
    verified = _read(target)
    if verified is None:
        raise OSError(f"the save {target} could not be read back whole; the previous one is kept. Check the disk.")
    for old in _saves(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_latest(folder: Path) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return position, tensors and values of the newest save that is whole, or None if there is none.

    A save that is damaged is passed over in favour of the one before, with a line that says so.
    """
    for path in reversed(_saves(folder)):
        state = _read(path)
        if state is not None:
            tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in state["sha256"]}
            return state["position"], tensors, state["values"]
        print(f"the save {path} is damaged and is passed over", flush=True)
    return None


def generator_state(generator: torch.Generator) -> Tensor:
    """Return a generator's state as a tensor, to be saved with the rest."""
    return generator.get_state().clone()


def _saves(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("save-*") if path.is_dir())


def _read(path: Path) -> dict[str, Any] | None:
    """Return a save's state.json if every file named in it is there with its hash."""
    try:
        state = json.loads((path / "state.json").read_text())
        whole = all(_sha256(path / name) == digest for name, digest in state["sha256"].items())
    except (OSError, json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return None
    return state if whole else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
