"""Reading HDF5 of others: numbers of the file itself, by no link. Needs h5py, the extra `minari`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.extras import needs
from pipeline.importers.episodes import check_arrays


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Yield a file, open for reading.

    Raises:
        FileNotFoundError, ValueError: it is not there, or no whole HDF5 file, as may be seen within the `with` only.
        ImportError: h5py is not installed.
    """
    with needs("minari"):
        import h5py
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is not readable HDF5, it may be cut short or damaged: {error}") from None


def member(group: Any, name: str, kind: Any) -> Any:
    """Return a member of an HDF5 group, by no link: one could lead into another file of this machine."""
    with needs("minari"):
        import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"`{name}` is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"`{name}` is a link to elsewhere, which is not followed")
    found = group[name]
    if not isinstance(found, kind):
        raise ValueError(f"`{name}` is not of the expected kind")
    return found


def array(group: Any, path: str) -> np.ndarray:
    """Return numbers from within a group, (rows, ...).

    Raises:
        ValueError: there are none, they lie elsewhere, or are more than an episode has.
    """
    with needs("minari"):
        import h5py

    *folders, last = path.split("/")
    for name in folders:
        group = member(group, name, h5py.Group)
    dataset = member(group, last, h5py.Dataset)
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"`{path}` lies in another file, which is not read")
    if dataset.dtype.kind not in "fiub" or dataset.ndim < 1:
        raise ValueError(f"`{path}` holds {dataset.dtype}, expected numbers")
    check_arrays(dataset.shape[0], int(np.prod(dataset.shape[1:], dtype=np.float64)), path)
    return dataset[()]
