"""What several commands share: how one is declared, and options that mean the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


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


def own_folder(options: argparse.Namespace) -> str | None:
    """Return the folder of `--folder`, else that of params.yaml, else None."""
    from pipeline import config

    if options.folder is None and config.PARAMS.exists():
        return config.load(config.Tasks).folder
    return options.folder


def count(text: str) -> int:
    """Read the value of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)
