"""How an agent lies on disk, and how it gets there from the Hub.

A checkpoint is a folder in Hub form:
    config.json          sizes of the world model
    model.safetensors    its weights
    tasks.json           planner settings; for each task its catalogue entry, discount, constraint of plans, cluster
    task_embeddings/     the vectors of the tasks' texts, the texts, the encoder's id, and its head if it has one
    autoencoder/         the encoder of images, where it was trained on demonstrations
An adapter is a folder in PEFT's form (adapter_config.json, adapter_model.safetensors) with, for its task, a task.json
and task_embeddings/ alike. Nothing is pickled, and no code is read from either.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline import config
from pipeline.adapters import Adapters
from pipeline.files import add_files, complete_files, read_json, sha256, write_json
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.language.head import MARK
from pipeline.model.task_table import CONSTRAINTS, TIED, TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.pixels.pixel_encoder import AUTOENCODER_FOLDER
from pipeline.systems import build
from pipeline.tasks.spec import TaskSpec, parse_spec

FORMAT = 1  # of tasks.json and task.json
CHECKPOINT_FILES = ["config.json", "model.safetensors", "tasks.json", "task_embeddings/*", "autoencoder/*"]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "task.json", "task_embeddings/*"]
RELEASE_FILES = [
    *CHECKPOINT_FILES, "README.md", "metrics.json", "replay.mp4", ".eval_results/*.yaml",
    *(f"adapters/*/{name}" for name in ADAPTER_FILES),
]  # fmt: skip
DEMOS_FILES = ["README.md", "*/episodes.parquet"]
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Found(NamedTuple):
    """Where a checkpoint or adapter lies on this machine."""

    folder: Path
    commit: str | None  # of the Hub's repo; None for a folder of the user's


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds."""

    model: WorldModel
    specs: list[TaskSpec]
    discounts: list[float]
    embeddings: TaskEmbeddings
    planner: config.Planner
    base: str  # SHA-256 of model.safetensors
    obs_mean: Tensor | None  # (n, O) statistics that observations are normalised by; None where they are not
    obs_std: Tensor | None
    constraint: Tensor  # (n,) of task_table.CONSTRAINTS
    vision: config.Vision | None = None  # what is seen beside or in place of the state; None for the state alone
    picture_encoder: str | None = None  # id of the picture encoder
    columns: Mapping[str, Tensor] = MappingProxyType({})  # (n,) int64 each, what networks ask of a task beside

    def task_table(self) -> TaskTable:
        """Return its tasks as tensors."""
        mask = torch.zeros(len(self.specs), self.model.config.action_dim, dtype=torch.float32)
        for row, spec in zip(mask, self.specs, strict=True):
            row[: spec.action_dim] = 1
        vectors, discount = torch.from_numpy(self.embeddings.vectors), torch.tensor(self.discounts, dtype=torch.float32)
        statistics, names = (self.obs_mean, self.obs_std), self.embeddings.names
        return TaskTable(names, vectors, mask, discount, *statistics, self.constraint, dict(self.columns))


class AdapterTask(NamedTuple):
    """What an adapter folder says about its task."""

    spec: TaskSpec
    discount: float
    embeddings: TaskEmbeddings  # of this one task
    base: str  # SHA-256 of the model.safetensors it was trained on
    obs_mean: Tensor | None  # (1, O) statistics that its observations are normalised by; None where they are not
    obs_std: Tensor | None
    constraint: int  # of task_table.CONSTRAINTS


def fetch(
    source: str | Path, revision: str | None, files: list[str], subfolder: str = "", kind: str = "model"
) -> Found:
    """Find a checkpoint or adapter, downloading it from the Hub if `source` is a repo id.

    All files come from one commit, whatever is pushed meanwhile. Without a network the Hub's cache answers.

    Args:
        source: a folder, or `owner/name` on the Hub.
        revision: commit, tag or branch on the Hub; None for the newest.
        files: patterns of the files to download, within `subfolder`.
        subfolder: where in the folder or repo to look.
        kind: of the repo, `model` or `dataset`.

    Raises:
        ValueError: `source` is neither a folder nor a repo id, or a file is a link that leads out of it.
        OSError: the Hub could not be reached, or does not have it.
    """
    parts = Path(subfolder).parts
    if Path(subfolder).is_absolute() or ".." in parts or set(subfolder) & set("*?[\\"):
        raise ValueError(f"the subfolder {subfolder!r} is not a plain path within {source}.")
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a folder, which has no revisions: leave out revision={revision!r}.")
        folder, commit, inside = Path(source) / subfolder, None, Path(source)
    else:
        if not REPO_ID.fullmatch(str(source)):
            raise ValueError(f"{source} is neither a folder that exists nor a repo id of the form owner/name.")
        patterns = [f"{subfolder}/{name}" if subfolder else name for name in files]
        snapshot = download(str(source), revision, patterns, kind)
        # The cache's own links lead from snapshots/<commit>/ to blobs/ beside it.
        folder, commit, inside = snapshot / subfolder, snapshot.name, snapshot.parent.parent
    _refuse_links(folder, files, inside)
    return Found(folder, commit)


def download(repo: str, revision: str | None, patterns: list[str] | None, kind: str = "model") -> Path:
    """Bring files of one commit of a repo into the Hub's cache, and return their folder, named after the commit.

    Raises:
        OSError: the Hub could not be reached, or does not have it.
    """
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, repo_type=kind))
    except (OSError, ValueError, HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{repo} is no folder here and could not be had from the Hub"
            f"{f' at revision {revision}' if revision else ''}: {reason} "
            "Check the name; a private repo needs `hf auth login` first."
        ) from None


def listed(folder: Path, patterns: list[str]) -> list[str]:
    """Return the files of a folder that patterns name, by their paths in it."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _refuse_links(folder: Path, files: list[str], inside: Path) -> None:
    """Refuse links by which a folder from elsewhere would have other files of this machine read."""
    limit = inside.resolve()
    for path in [folder, *(folder / name for name in listed(folder, files))]:
        if not path.resolve().is_relative_to(limit):
            raise ValueError(
                f"{path} is a link that leads out of {inside}: it was not followed. Copy the file there instead "
                "(with DVC: `dvc config cache.type reflink,copy`)."
            )


def write_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint's files into a folder and leave its other files alone; returns the SHA-256 of its weights.

    Raises:
        ValueError: an adapter lies there, of whose files some have the same names.
    """
    _refuse_another(folder, "task.json", "an adapter")
    tasks = [
        {
            "discount": discount,
            "constraint": CONSTRAINTS[int(checkpoint.constraint[row])],
            **{name: int(column[row]) for name, column in checkpoint.columns.items()},
            "obs_mean": _row(checkpoint.obs_mean, row),
            "obs_std": _row(checkpoint.obs_std, row),
            "task": spec.to_dict(),
        }
        for row, (spec, discount) in enumerate(zip(checkpoint.specs, checkpoint.discounts, strict=True))
    ]
    with add_files(folder, last="tasks.json") as partial:
        checkpoint.model.save_pretrained(partial)
        (partial / "README.md").unlink()  # the Hub mixin's card; ours is written by the publish stage
        checkpoint.embeddings.save(partial / "task_embeddings")
        if checkpoint.vision is not None and checkpoint.vision.autoencoder is not None:
            encoder = checkpoint.vision.encoder
            source = AUTOENCODER_FOLDER if encoder == config.AUTOENCODER else Path(encoder)
            (partial / config.AUTOENCODER).mkdir()
            for name in ("config.json", "model.safetensors"):
                shutil.copyfile(source / name, partial / config.AUTOENCODER / name)
        write_json(
            partial / "tasks.json",
            {
                "format": FORMAT,
                "encoder": checkpoint.embeddings.encoder,
                "planner": dataclasses.asdict(checkpoint.planner),
                **_vision_entry(checkpoint),
                "tasks": tasks,
            },
        )
        return sha256(partial / "model.safetensors")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what `write_checkpoint` wrote.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the files do not belong together; names which and why.
    """
    path = folder / "tasks.json"
    complete_files(folder, path.name)
    content = _read(path)
    entries = _entry(content, "tasks", list, path)
    specs = [parse_spec(entry.get("task"), f"{path}: task {row}") for row, entry in enumerate(entries)]
    discounts = [_discount(entry, f"{path}: {spec.name}") for spec, entry in zip(specs, entries, strict=True)]
    planner = config.parse(config.Planner, content.get("planner"), f"{path}: planner")
    embeddings = _read_embeddings(folder, [spec.name for spec in specs])
    if MARK in embeddings.encoder and embeddings.head is None:
        raise FileNotFoundError(f"{folder}: task_embeddings/head.json is missing, the head of the text encoder.")
    model = _read_model(folder, embeddings.dim)
    statistics = _statistics(entries, model.config.obs_dim, path)
    constraint = torch.tensor([_constraint(entry, path) for entry in entries])
    base = sha256(folder / "model.safetensors")
    columns = _columns(entries, model.config, path)
    found = Checkpoint(model, specs, discounts, embeddings, planner, base, *statistics, constraint, columns=columns)
    if (vision := content.get("vision")) is None:
        return found
    vision = config.parse(config.Vision, vision, f"{path}: vision")
    if vision.autoencoder is not None:
        vision = dataclasses.replace(vision, encoder=str(folder / config.AUTOENCODER))
    return found._replace(
        vision=vision,
        picture_encoder=_entry(content, "picture_encoder", str, path),
    )


def write_adapter(folder: str | Path, adapters: Adapters, name: str, task: AdapterTask) -> None:
    """Write the files of one adapter and its task into a folder and leave its other files alone.

    Raises:
        ValueError: a checkpoint lies there, of whose files some have the same names.
    """
    _refuse_another(folder, "tasks.json", "a checkpoint")
    with add_files(folder, last="adapter_config.json") as partial:
        adapters.save(partial, name)
        dataclasses.replace(task.embeddings, head=None).save(partial / "task_embeddings")  # the base has it
        entry = {
            "format": FORMAT,
            "base": task.base,
            "discount": task.discount,
            "constraint": CONSTRAINTS[task.constraint],
            "obs_mean": _row(task.obs_mean, 0),
            "obs_std": _row(task.obs_std, 0),
            "task": task.spec.to_dict(),
        }
        write_json(partial / "task.json", entry)


def read_adapter_task(folder: Path) -> AdapterTask:
    """Read what an adapter folder says about its task.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    path = folder / "task.json"
    complete_files(folder, "adapter_config.json")
    content = _read(path)
    spec = parse_spec(content.get("task"), str(path))
    base = _entry(content, "base", str, path)
    widths = len(content.get("obs_mean") or [])
    statistics = _statistics([content], widths, path)
    embeddings, constraint = _read_embeddings(folder, [spec.name]), _constraint(content, path)
    return AdapterTask(spec, _discount(content, str(path)), embeddings, base, *statistics, constraint)


def _refuse_another(folder: str | Path, mark: str, kind: str) -> None:
    """Refuse to replace the task embeddings of what else lies in a folder."""
    if (Path(folder) / mark).is_file() and (Path(folder) / "task_embeddings").is_dir():
        raise ValueError(f"{folder} holds {kind}, which would be damaged. Choose another folder, or one within it.")


def _read_model(folder: Path, task_dim: int) -> WorldModel:
    """Read config.json and weights; sizes are compared with the weights' own before any memory is taken for them."""
    path, weights = folder / "config.json", folder / "model.safetensors"
    sizes = config.parse(config.Model, read_json(path, "the stage that made this checkpoint"), str(path))
    if not weights.is_file():
        raise FileNotFoundError(f"{folder} holds no model.safetensors, so it is no checkpoint.")
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if max(sizes.num_q, sizes.num_enc_layers, *build.column_limits(sizes).values()) > len(found):
            raise ValueError("more layers are said to be there than there are tensors")
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in build.build_model(sizes).state_dict().items()}
        if found != expected:
            odd = sorted(set(found.items()) ^ set(expected.items()))[0][0]
            older = odd == "termination_head.0.linear.weight" and odd in found and odd in expected
            if older and found[odd][1] == expected[odd][1] - sizes.action_dim:
                raise ValueError(
                    "its termination head is of an older version of Eft, which saw the next latent and no action. "
                    "Train it anew, or use that version"
                )
            raise ValueError(f"{odd} is {found.get(odd, 'missing')}, expected {expected.get(odd, 'nothing')}")
        state = load_file(weights)
        for name, tensor in state.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite")
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{weights} does not hold the weights that {path.name} describes: {reason}.") from None
    if sizes.task_dim != task_dim:
        raise ValueError(f"{folder}: the task embeddings are {task_dim} wide, the model expects {sizes.task_dim}.")
    model = build.build_model(sizes, torch.float32)
    model.load_state_dict(state)
    return model.eval()


def _read_embeddings(folder: Path, names: list[str]) -> TaskEmbeddings:
    embeddings = TaskEmbeddings.load(folder / "task_embeddings")
    if list(embeddings.names) != names:
        raise ValueError(
            f"{folder}: task_embeddings/ is about {', '.join(embeddings.names)}, the tasks beside it are "
            f"{', '.join(names)}: the files were mixed up."
        )
    return embeddings


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, "the stage that made this folder")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise ValueError(f"{path} has the format {found!r}; this version of Eft reads format {FORMAT}.")
    return content


def _entry(content: dict[str, Any], key: str, kind: Any, path: Path) -> Any:
    if not isinstance(content.get(key), kind):
        raise ValueError(f"{path}: `{key}` is {content.get(key)!r}, which is not what belongs there.")
    return content[key]


def _vision_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tasks.json says of pictures: nothing where none are observed."""
    if checkpoint.vision is None:
        return {}
    vision = checkpoint.vision
    if vision.autoencoder is not None:  # it lies in the checkpoint, wherever that is
        vision = dataclasses.replace(vision, encoder=config.AUTOENCODER)
    return {"vision": dataclasses.asdict(vision), "picture_encoder": checkpoint.picture_encoder}


def _row(values: Tensor | None, row: int) -> list[float] | None:
    return None if values is None else values[row].tolist()


def _statistics(entries: list[Any], obs_dim: int, path: Path) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Read the observation statistics of all entries: finite, positive stds, `obs_dim` wide; or none at all."""
    if all(entry.get("obs_mean") is None and entry.get("obs_std") is None for entry in entries):
        return None, None
    try:
        found = ([entry[key] for entry in entries] for key in ("obs_mean", "obs_std"))
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: `obs_mean` and `obs_std` are not lists of numbers of one length.") from error
    sound = mean.shape == std.shape == (len(entries), obs_dim) and mean.isfinite().all() and (std > 0).all()
    if not (sound and std.isfinite().all()):
        raise ValueError(f"{path}: `obs_mean` and `obs_std` must be {obs_dim} finite numbers, each std above 0.")
    return mean, std


def _constraint(entry: dict[str, Any], path: Path) -> int:
    """Read how far plans may leave the policy; what was saved before this was measured says nothing and is `tied`."""
    name = entry.get("constraint", CONSTRAINTS[TIED])
    if name not in CONSTRAINTS:
        raise ValueError(f"{path}: `constraint` is {name!r}, expected one of {', '.join(CONSTRAINTS)}.")
    return CONSTRAINTS.index(name)


def _columns(entries: list[Any], sizes: config.Model, path: Path) -> dict[str, Tensor]:
    """Read what networks ask of a task beside its text, each a number below a limit."""
    columns = {}
    for name, limit in build.column_limits(sizes).items():
        found = [entry.get(name) for entry in entries]
        if not all(type(number) is int and 0 <= number < limit for number in found):
            raise ValueError(f"{path}: `{name}` of each task must be a number from 0 to {limit - 1}, not {found}.")
        columns[name] = torch.tensor(found)
    return columns


def _discount(entry: Any, where: str) -> float:
    try:
        value = TypeAdapter(config.Fraction).validate_python(entry["discount"])
    except (ValidationError, KeyError, TypeError):
        raise ValueError(f"{where}: `discount` must be a number in [0, 1].") from None
    return float(value)
