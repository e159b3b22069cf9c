"""What the official Newt code saved: demonstrations `{task}.pt` and checkpoints. Nothing in a file is executed.

Source: https://github.com/nicklashansen/newt (generate_demos.py, common/buffer.py, tdmpc2.py)
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.agent import Agent
from pipeline.config import near
from pipeline.files import read_json
from pipeline.importers.episodes import Recorded, Source, first_end
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.language.encoder import CLIP
from pipeline.learn.task_setup import discount
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.newt_checkpoint import load_newt_checkpoint
from pipeline.tasks.spec import SUCCESS, TaskSpec

# The rows of a multitask checkpoint, in the official order of its 200 tasks.
TASK_ORDER = Path(__file__).with_name("newt_tasks.txt")
_DISCOUNT_BOUNDS = 0.95, 0.995  # fixed in the published code, as are the planner's settings
_PLANNER = config.Planner(
    horizon=3, iterations=6, num_samples=512, num_policy_samples=24, num_elites=64, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
_KEEPS_SUCCESSES = ("mw-", "rd-", "ms-")  # of these suites the generator keeps successful episodes alone ...
_EXCEPT = ("ms-cartpole", "ms-hopper", "ms-ant")  # ... but for these
_USED = ("obs", "action", "reward", "terminated", "episode")


def read_demos(path: str | Path, spec: TaskSpec) -> Source:
    """Read `{task}.pt`: a flat TensorDict of episodes of L + 1 rows, whose first holds NaN for action and reward.

    Raises:
        ValueError: it is no such file, or holds anything but tensors.
    """
    path = Path(path)
    columns = _load(path)
    missing = [name for name in ("obs", "action", "reward", "episode") if name not in columns]
    if missing:
        raise ValueError(f"{path} holds {', '.join(columns)}, but not {', '.join(missing)}: no Newt demonstrations.")
    if isinstance(columns["obs"], dict):  # with pictures, the state is one of several observations
        columns["obs"] = columns["obs"].get("_tensordict", columns["obs"]).get("state")
    used = {name: columns[name] for name in _USED if name in columns}
    rows = len(columns["episode"]) if isinstance(columns["episode"], Tensor) else 0
    for name, values in used.items():
        _check_tensor(path, name, values, rows, 2 if name in ("obs", "action") else 1)
    notes = []
    success = None
    if spec.name.startswith(_KEEPS_SUCCESSES) and not spec.name.startswith(_EXCEPT) and spec.score == SUCCESS:
        success = True
        notes.append("taken for successful: the official generator keeps no others of this suite")
    numbers = columns["episode"].tolist()
    starts = [row for row in range(rows) if row == 0 or numbers[row] != numbers[row - 1]]
    return Source(
        form="newt",
        files=[path],
        episodes=_episodes(used, starts, rows, success),
        total=len(starts),
        ignored=sorted(columns.keys() - used.keys()),
        notes=notes,
    )


def import_checkpoint(
    path: str | Path, specs: dict[str, TaskSpec], tasks: str | Path | None
) -> tuple[Agent, list[str]]:
    """Turn an official multitask checkpoint into an agent of the tasks that the catalogue has.

    Args:
        path: the `.pt` file; sizes are inferred from its shapes.
        specs: the catalogue.
        tasks: JSON that names the checkpoint's tasks: a list of names in the order of its rows, or an object by name,
            as the official tasks.json. None for the official order of 200 tasks.

    Returns:
        the agent, and the tasks of the checkpoint that the catalogue does not have.

    Raises:
        ValueError: the file is no multitask checkpoint, or the tasks are not those of its rows.
    """
    newt = load_newt_checkpoint(path)
    names = _task_names(newt.task_embeddings, tasks)
    left_out = [name for name in names if name not in specs]
    rows = [row for row, name in enumerate(names) if name in specs]
    if not rows:
        raise ValueError(
            f"the catalogue has none of the {len(names)} tasks, e.g. {names[0]!r}.{near(names[0], list(specs))} "
            "Name the checkpoint's tasks with --tasks, and your own task files with --folder."
        )
    known = [specs[names[row]] for row in rows]
    for row, spec in zip(rows, known, strict=True):
        width = int(newt.action_mask[row].sum())
        if width != spec.action_dim:
            raise ValueError(
                f"row {row} of {path} has {width} action dims, {spec.name} has {spec.action_dim}: the tasks are in "
                "another order. Name them with --tasks."
            )
        if spec.obs_dim > newt.model.obs_dim:
            raise ValueError(f"{spec.name} observes {spec.obs_dim} values, the checkpoint takes {newt.model.obs_dim}.")
    model = WorldModel(newt.model)
    try:
        model.load_state_dict(newt.state_dict)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a Newt checkpoint: {str(error).splitlines()[-1].strip()}") from None
    vectors = newt.task_embeddings[rows].unsqueeze(1)
    # Its vectors are of Newt's own wordings; said in ours, a task is still found by its text.
    texts = tuple((spec.text(),) for spec in known)
    embeddings = TaskEmbeddings(
        vectors.numpy(),
        tuple(spec.name for spec in known),
        texts,
        CLIP,
        # It holds one vector per task, so no wording is left that training has not seen.
        unseen_vectors=vectors[:, 0].numpy(),
        unseen_texts=tuple(spec.text() for spec in known),
    )
    discounts = [spec.discount or discount(spec.episode_length, *_DISCOUNT_BOUNDS) for spec in known]
    table = TaskTable(embeddings.names, vectors, newt.action_mask[rows], torch.tensor(discounts))
    return Agent(model.eval(), known, embeddings, table, _PLANNER), left_out


def _task_names(embeddings: Tensor, tasks: str | Path | None) -> list[str]:
    count = len(embeddings)
    if tasks is None:
        names = TASK_ORDER.read_text(encoding="utf-8").split()
    else:
        content = read_json(tasks, "whoever made the checkpoint")
        if isinstance(content, dict) and all(_has_embedding(entry, embeddings.shape[1]) for entry in content.values()):
            return _match(embeddings, content)
        names = list(content) if isinstance(content, (list, dict)) else []
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise ValueError(f"{tasks}: expected a list of different task names, or an object by task name.")
    if len(names) != count:
        whose = f"{tasks} names" if tasks else "the official checkpoints have"
        raise ValueError(
            f"the checkpoint has {count} tasks, {whose} {len(names)}. Name its tasks, in the order of its rows, with "
            "--tasks FILE (a JSON list)."
        )
    return names


def _has_embedding(entry: Any, width: int) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("text_embedding"), list) and (
        len(entry["text_embedding"]) == width
    )  # fmt: skip


def _match(embeddings: Tensor, content: dict[str, Any]) -> list[str]:
    """Name each row by its vector. Tasks that share a text share a vector: those come in the order of the file."""
    vectors = torch.tensor([entry["text_embedding"] for entry in content.values()], dtype=torch.float32)
    free = dict(enumerate(content))
    names = []
    for row, vector in enumerate(embeddings.float()):
        near_rows = (vectors - vector).abs().amax(1) <= 1e-4
        fitting = [index for index in near_rows.nonzero().flatten().tolist() if index in free]
        if not fitting:
            raise ValueError(f"no task of the file has the text embedding of row {row} of the checkpoint.")
        names.append(free.pop(fitting[0]))
    return names


def _episodes(
    columns: dict[str, Tensor], starts: Sequence[int], rows: int, success: bool | None
) -> Iterator[Recorded | tuple[int, str]]:
    for number, (first, after) in enumerate(zip(starts, [*starts[1:], rows], strict=True)):
        part = {name: values[first:after] for name, values in columns.items()}
        action, reward = part["action"].float().numpy(), part["reward"].float().numpy()
        if not (np.isnan(action[0]).all() and np.isnan(reward[0])):
            yield number, "its first row has an action and a reward, where NaN was expected: cut at its start?"
            continue
        over = part["terminated"][1:].float().numpy() if "terminated" in part else None
        try:
            length, cut = first_end(len(action) - 1, terminated=over)
        except ValueError as error:
            yield number, str(error)
            continue
        ended = over is not None and length > 0 and bool(over[length - 1])
        obs, until = part["obs"].float().numpy()[: length + 1], length + 1
        yield Recorded(number, obs, action[1:until], reward[1:until], ended, success, cut=cut)


class _TensorDict:
    """Stands in for the class of that name, whose package nobody needs to read its file."""


def _state_of(kind: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Stands in for tensordict's own rebuilding: the tensors by name are all we want of it."""
    return state


class _Dict(dict):
    """Stands in for the dictionary of older versions."""


def _load(path: Path) -> dict[str, Any]:
    stand_ins: list[Any] = [
        (_state_of, "tensordict._reductions._make_td"),
        (_TensorDict, "tensordict._td.TensorDict"),
        (_Dict, "tensordict.utils._StringOnlyDict"),
    ]
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.serialization.safe_globals(stand_ins))
            state = torch.load(path, map_location="cpu", weights_only=True)
        columns = state.get("_tensordict", state)
        return {str(name): value for name, value in columns.items()}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{path} is no TensorDict of demonstrations; nothing in it was run: {reason}") from None


def _check_tensor(path: Path, name: str, values: Any, rows: int, ndim: int) -> None:
    if not isinstance(values, Tensor) or values.ndim != ndim or len(values) != rows or not rows:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{path}: `{name}` is {shape}, expected {ndim} dimensions and {rows} rows.")
    if values.numel() * values.element_size() > values.untyped_storage().nbytes():
        raise ValueError(f"{path}: `{name}` says it is {tuple(values.shape)}, which is more than the file holds.")
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise ValueError(f"{path}: `{name}` holds {values.dtype}, expected plain numbers.")
