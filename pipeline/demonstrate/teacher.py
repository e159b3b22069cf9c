"""A teacher: a small policy of one task, trained by `ppo.py`, that can be asked in every state."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.files import atomic_file
from pipeline.tasks.spec import TaskSpec

TEACHERS = Path("checkpoints/teach")  # where the stage `teach` leaves them
SHIPPED = Path(__file__).parents[1] / "teachers"  # those that come with Eft
_DEFINING = (
    "name", "suite", "env_id", "env_kwargs", "obs_dim", "action_dim", "action_repeat", "episode_length", "score",
    "action_bounds",
)  # fmt: skip


@dataclass
class Teacher:
    """Two hidden layers on normalised observations.

    Args:
        spec: the task.
        mean: of observations, (O,).
        std: of observations, (O,).
        weights: weight (out, in) and bias (out,) of each layer in turn.
        notes: how it came about: recipe, seed, score, steps, seconds.
    """

    spec: TaskSpec
    mean: np.ndarray
    std: np.ndarray
    weights: list[np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)

    def label(self, obs: np.ndarray) -> np.ndarray:
        """Return the actions (..., a) float32 in [-1, 1] for observations (..., O).

        Raises:
            ValueError: the observation has another width, or is not finite.
        """
        if obs.shape[-1] != len(self.mean) or not np.isfinite(obs).all():
            raise ValueError(
                f"the teacher of {self.spec.name} reads finite observations of width {len(self.mean)}, got shape "
                f"{obs.shape}{'' if np.isfinite(obs).all() else ' with values that are not finite'}."
            )
        hidden = ((obs - self.mean) / self.std).clip(-10, 10).astype(np.float32)
        for number in range(0, len(self.weights), 2):
            hidden = hidden @ self.weights[number].T + self.weights[number + 1]
            if number < len(self.weights) - 2:
                hidden = hidden / (1 + np.exp(-hidden))
        return hidden.clip(-1, 1)

    def save(self, path: str | Path) -> None:
        """Write it as safetensors; its task and notes stand in the header."""
        tensors = {"mean": self.mean.astype(np.float32), "std": self.std.astype(np.float32)}
        for number, part in enumerate(self.weights):
            tensors[f"{'bias' if number % 2 else 'weight'}.{number // 2}"] = np.ascontiguousarray(part, np.float32)
        with atomic_file(path) as partial:
            save_file(tensors, partial, {"task": task_version(self.spec), "notes": json.dumps(self.notes)})


def task_version(spec: TaskSpec) -> str:
    """Return `<name>-<hash>`: what a teacher's task must agree in for the teacher to be of use."""
    told = {key: value for key, value in spec.to_dict().items() if key in _DEFINING}
    return f"{spec.name}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]}"


def teacher_file(folder: str | Path, spec: TaskSpec) -> Path:
    """Return where the teacher of a task lies, or would."""
    return Path(folder) / spec.name / "teacher.safetensors"


def training_of(spec: TaskSpec, path: str | Path) -> str:
    """Return, for an error, what brings the teacher of a task to the place where it is looked for."""
    folder = Path(path).parent.parent
    if Path(path).parent.name != spec.name:
        return f"remove {Path(path).parent}, and the training of {spec.name} begins anew"
    if folder == SHIPPED:
        return "it comes with Eft: install Eft anew, or take the file back from Git"
    if folder == TEACHERS:
        return (
            f"`dvc repro teach` trains it if a teachers.yaml names {spec.name}, else "
            f"`eft teach {spec.name} --output {TEACHERS}`"
        )
    return f"`eft teach {spec.name} --output {folder}` trains it"


def load_teacher(path: str | Path, spec: TaskSpec) -> Teacher:
    """Read the teacher of a task.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or the teacher is of another task or another version of it.
    """
    again = training_of(spec, path)
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no teacher of {spec.name} there: {again}.")
    try:
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        notes = json.loads(told.get("notes", ""))
    # Of numbers that numpy does not have, bfloat16 say, safetensors raises the latter two.
    except (SafetensorError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a teacher ({error}): {again}.") from None
    wanted = task_version(spec)
    if told.get("task") != wanted:
        raise ValueError(
            f"{path}: this teacher is of {told.get('task')!r}, expected {wanted!r}: another task, or one whose "
            f"observation, action, length or score has changed since: {again}."
        )
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: damaged: its notes are {notes!r}: {again}.")
    if problem := _problem(tensors, spec):
        raise ValueError(f"{path}: {problem}: {again}.")
    layers = len(tensors) // 2 - 1
    weights = [tensors[f"{kind}.{number}"] for number in range(layers) for kind in ("weight", "bias")]
    return Teacher(spec, tensors["mean"], tensors["std"], weights, notes)


def _problem(tensors: dict[str, np.ndarray], spec: TaskSpec) -> str | None:
    """Say which tensor is not finite, or what does not lead from the task's observation to its action."""
    layers = len(tensors) // 2 - 1
    names = {"mean", "std", *(f"{kind}.{number}" for number in range(layers) for kind in ("weight", "bias"))}
    if layers < 1 or set(tensors) != names:
        return f"not a teacher: it holds {', '.join(sorted(tensors)) or 'nothing'}"
    for name, part in tensors.items():
        if not np.isfinite(part).all():
            return f"damaged: {name} has values that are not finite"
    width = spec.obs_dim
    shapes = {"mean": (width,), "std": (width,)}
    for number in range(layers):
        out = spec.action_dim if number == layers - 1 else tensors[f"bias.{number}"].size
        shapes |= {f"weight.{number}": (out, width), f"bias.{number}": (out,)}
        width = out
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            return f"damaged: {name} has shape {tensors[name].shape}, expected {shape}"
    if (tensors["std"] <= 0).any():
        return f"damaged: std, which observations are divided by, is {tensors['std'].tolist()}"
    return None
