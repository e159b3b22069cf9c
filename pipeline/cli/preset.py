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
    preset.add_argument(
        "--installed",
        action="store_true",
        help="leave out the tasks that cannot run on this machine, and say why; without NAME, those of params.yaml",
    )


def write_preset(options: argparse.Namespace) -> None:
    """Write presets into params.yaml and print what changed, or list the presets."""
    from pipeline import config, presets
    from pipeline.tasks import availability, registry

    reasons: dict[str, str] = {}

    def leave_out(tasks: config.Tasks) -> dict[str, str]:
        if options.installed:
            reasons.update(availability.unavailable(registry.get([*tasks.train, *tasks.held_out], tasks.folder)))
        return reasons

    if not options.names and not options.installed:
        for name, description in presets.list_presets().items():
            print(f"{name:<12} {description}")
        return
    changes = presets.apply_presets(options.names, leave_out=leave_out)
    named = f"preset `{'` and `'.join(options.names)}`" if options.names else "what can run here"
    if reasons:
        print(f"left out: {len(reasons)} tasks cannot run on this machine:\n{availability.describe(reasons)}")
    for change in changes:
        print(f"{change.key}: {_brief(change.old)} -> {_brief(change.new)}")
    print(
        f"params.yaml now holds {named}: {len(changes)} parameters changed. Run `dvc repro`."
        if changes
        else f"params.yaml already holds {named}: nothing changed."
    )


def _brief(value: Any) -> str:
    return textwrap.shorten(json.dumps(value), 60, placeholder=" …")
