"""Packages that a light installation lacks: an import that needs one says which command brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of packages that the extra `extra` of pyproject.toml installs.

    Raises:
        ModuleNotFoundError: one of them is not installed; the message names it and the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the package {error.name} is not installed. Install it: {install(extra)}", name=error.name
        ) from error


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'eft[{extra}]'"
