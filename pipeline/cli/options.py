"""What several commands share: how one is declared, and options that mean the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.tasks.spec import TaskSpec


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, example: str
) -> argparse.ArgumentParser:
    """Declare a command: `summary` in lower case without a full stop, `run` returns an exit code or None for 0."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"example: {example}"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Let a command take `--folder`, where the user's own task files are."""
    parser.add_argument(
        "--folder", metavar="FOLDER", help="your own task files (default: tasks.folder of params.yaml, if there is one)"
    )
    parser.add_argument(
        "--task-file", dest="folder", metavar="FILE", help="the one file of your own task, in place of --folder"
    )


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """Let a command take `--encoder`, for a checkpoint whose text encoder is not to be had by its name."""
    parser.add_argument(
        "--encoder",
        metavar="FOLDER",
        help="a folder that holds the checkpoint's text encoder (default: where its name leads to, or the Hub's cache)",
    )


def own_folder(options: argparse.Namespace) -> str | None:
    """Return the folder of `--folder`, else that of params.yaml, else None."""
    from pipeline import config

    if options.folder is None and config.PARAMS.exists():
        return config.load(config.Tasks).folder
    return options.folder


def find_task(task: str, folder: str | None) -> TaskSpec:
    """Return the task of a name, or of a file of the user's own.

    Args:
        task: the name or the file.
        folder: the user's own tasks, among which a name is looked for.

    Raises:
        ValueError: no such task or file, or the file is not valid.
    """
    from pipeline.tasks import registry

    if not task.endswith((".yaml", ".yml")):
        return registry.get([task], folder)[0]
    return registry.load_file(task)


def count(text: str) -> int:
    """Read the value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Read the value of an option that seeds an episode."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, not {text!r}")
    return int(text)


def count_or_zero(text: str) -> int:
    """Read the value of an option that counts something and may be 0."""
    return 0 if text == "0" else count(text)
