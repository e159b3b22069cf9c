"""`eft init`: a folder in which `dvc repro` runs the pipeline."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from pipeline.cli.options import add_command


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    init = add_command(commands, "init", begin_project, "begin a project of your own", "eft init my-project")
    init.add_argument("folder", type=Path, metavar="FOLDER", help="where to; no file that is there is touched")


def begin_project(options: argparse.Namespace) -> None:
    """Write the files of a project and say what comes next."""
    from pipeline.extras import install
    from pipeline.new_project import write_project

    written = write_project(options.folder)
    print(f"{options.folder}: {len(written)} files: {', '.join(written)}")
    if any(importlib.util.find_spec(package) is None for package in ("dvc", "pyarrow", "dm_control", "metaworld")):
        print(f"what the stages need is not all here: {install('pipeline,simulators')}")
    print(f"next: cd {options.folder} && dvc repro     (every number is in params.yaml; `eft preset` lists others)")
