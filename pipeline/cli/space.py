"""`eft space`: the page as a Space on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pipeline.cli.options import add_command


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    space = add_command(
        commands,
        "space",
        make_space,
        "write a folder that shows a checkpoint as a Space on the Hugging Face Hub",
        "eft space my-space --checkpoint user/name --title 'Ask the arm'",
    )
    space.add_argument("folder", type=Path, metavar="FOLDER", help="where to; may be a clone of a Space")
    space.add_argument(
        "--checkpoint", required=True, metavar="CHECKPOINT", help="a folder, which is copied, or user/name"
    )
    space.add_argument(
        "--revision", metavar="REV", help="commit, tag or branch on the Hub (default: the commit of now)"
    )
    space.add_argument("--title", default="Tell a robot what to do", help="of the Space")
    space.add_argument(
        "--eft", metavar="REQUIREMENT", help="what pip installs, e.g. eft==0.1.0 (default: a copy of this source)"
    )


def make_space(options: argparse.Namespace) -> None:
    """Write the folder, and say how it gets to the Hub."""
    from pipeline.page.space import PORT, write_space

    missing = write_space(options.folder, options.checkpoint, options.revision, options.title, options.eft)
    if missing:
        print(
            f"space: the text encoder {missing} has no name that leads to it, so the Space will not have it: "
            "there, other words than the tasks' own are refused.",
            file=sys.stderr,
        )
    print(
        f"{options.folder} is a Space.\n"
        f"Try it: docker build -t page {options.folder} && docker run -p {PORT}:{PORT} page\n"
        f"To the Hub: hf repo create NAME --repo-type space --space_sdk docker && "
        f"hf upload NAME {options.folder} . --repo-type space"
    )
