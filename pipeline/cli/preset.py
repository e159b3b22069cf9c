"""`eft preset`: choose a larger set-up."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from pipeline.cli.options import add_command


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    preset = add_command(commands, "preset", write_preset, "write presets into params.yaml", "eft preset newt size-b")
    preset.add_argument(
        "names", nargs="*", metavar="NAME", help="presets, a later one wins; without any, all are listed"
    )


def write_preset(options: argparse.Namespace) -> None:
    """Write presets into params.yaml and print what changed, or list the presets."""
    from pipeline import presets

    if not options.names:
        for name, description in presets.list_presets().items():
            print(f"{name:<12} {description}")
        return
    changes = presets.apply_presets(options.names)
    named = f"preset `{'` and `'.join(options.names)}`"
    for change in changes:
        print(f"{change.key}: {_brief(change.old)} -> {_brief(change.new)}")
    print(
        f"params.yaml now holds {named}: {len(changes)} parameters changed. Run `dvc repro`."
        if changes
        else f"params.yaml already holds {named}: nothing changed."
    )


def _brief(value: Any) -> str:
    return textwrap.shorten(json.dumps(value), 60, placeholder=" …")
