"""Robomimic data sets: one HDF5 file, `data/demo_<number>` with `obs`, `next_obs`, `actions`, `rewards`, `dones`.

Source: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.extras import needs
from pipeline.importers.episodes import Recorded, Source, check_rewards, choose, first_end
from pipeline.importers.hdf5 import array, member, open_hdf5
from pipeline.tasks.spec import TaskSpec


def read_demos(path: str | Path, spec: TaskSpec, features: Sequence[str] = ()) -> Source:
    """Find the demonstrations of a robomimic file.

    Args:
        path: the file.
        spec: the task they are of.
        features: parts of `obs` to join, in this order; none for every vector in it, by name.

    Raises:
        FileNotFoundError, ValueError: it is not there, of another form, or observes something else.
        ImportError: h5py is not installed.
    """
    with needs("minari"):
        import h5py

    path = Path(path)
    with open_hdf5(path) as file:
        data = member(file, "data", h5py.Group)
        found = (re.fullmatch(r"demo_(\d+)", str(name)) for name in data)
        names = {int(match[1]): match[0] for match in found if match}  # some count demo_00, demo_01
        if not names:
            raise ValueError(f"{path} holds no data/demo_<number>: no robomimic data.")
        first = member(data, names[min(names)], h5py.Group)
        if "obs" not in first:
            raise ValueError(
                f"{path} holds simulator states and no observations. Robomimic's dataset_states_to_obs.py adds them, "
                "and the rewards."
            )
        parts = member(first, "obs", h5py.Group)
        shapes = {name: member(parts, name, h5py.Dataset).shape for name in sorted(parts)}
        others = sorted(
            {*first, *(f"obs/{name}" for name in shapes)} - {"obs", "next_obs", "actions", "rewards", "dones"}
        )
    widths = {name: shape[1] if len(shape) == 2 else 1 for name, shape in shapes.items() if shape and len(shape) < 3}
    try:
        observed = choose(list(widths), widths, features, spec)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    notes = [f"observations: {' + '.join(observed)}", "`dones` do not tell an end for good from the time limit"]
    used = {f"obs/{name}" for name in observed}
    return Source(
        form="robomimic",
        files=[path],
        episodes=_episodes(path, names, observed, notes),
        total=len(names),
        ignored=[name for name in others if name not in used],
        notes=notes,
    )


def _episodes(
    path: Path, names: dict[int, str], observed: list[str], notes: list[str]
) -> Iterator[Recorded | tuple[int, str]]:
    with needs("minari"):
        import h5py

    with open_hdf5(path) as file:
        for number, name in sorted(names.items()):
            try:
                yield _episode(number, member(member(file, "data", h5py.Group), name, h5py.Group), observed)
                if f"data/{name}/next_obs" not in file and _NO_LAST not in notes:
                    notes.append(_NO_LAST)
            except (ValueError, KeyError, OSError, TypeError, RuntimeError) as error:
                yield number, f"it cannot be read: {error}"


_NO_LAST = "no `next_obs` in it: the last action of every episode is left out, since no observation follows it"


def _episode(number: int, demo: Any, observed: list[str]) -> Recorded:
    action = array(demo, "actions")
    told = array(demo, "rewards") if "rewards" in demo else np.full(len(action), np.nan)
    reward = check_rewards(told, len(action))
    steps, cut = first_end(len(action), dones=array(demo, "dones") if "dones" in demo else None)
    obs = _joined(demo, "obs", observed)
    if len(obs) != len(action):
        raise ValueError(f"it has {len(obs)} observations for {len(action)} actions")
    if "next_obs" in demo:
        following = _joined(demo, "next_obs", observed)
        if len(following) != len(action):
            raise ValueError(f"it has {len(following)} next observations for {len(action)} actions")
        obs = np.concatenate([obs[:steps], following[steps - 1 : steps]])
    else:
        obs, steps = obs[:steps], steps - 1
    return Recorded(number, obs, action.reshape(len(action), -1)[:steps], reward[:steps], False, None, cut=cut)


def _joined(demo: Any, group: str, observed: list[str]) -> np.ndarray:
    parts = [array(demo, f"{group}/{name}") for name in observed]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
