"""The reference of the command line, from the parsers themselves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from pipeline.cli import build_parser


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command, those of commands within commands included, by `eft NAME ...`."""
    return dict(_within("eft", build_parser()))


def _within(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield f"{name} {word}", inner
                yield from _within(f"{name} {word}", inner)


def as_markdown() -> str:
    """Return one section per command: what it is for, how it is called, what each argument means."""
    return "\n".join(_section(name, parser) for name, parser in parsers().items())


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100)
    rows = [
        f"| {_called(action, parser)} | {_cell(_help(action, parser))} |"
        for action in parser._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
    ]
    usage = parser.format_usage().strip()
    table = ["| argument | meaning |", "|---|---|", *rows]
    text = [
        f"{'#' * (1 + name.count(' '))} {name}",
        "",
        parser.description or "",
        "",
        "```text",
        usage,
        "```",
        "",
        *table,
    ]
    more, *examples = re.split(r"(?m)^examples?:", parser.epilog or "", maxsplit=1)
    text += ["", more.strip()] if more.strip() else []
    if examples:
        text += ["", "```bash", *map(str.strip, examples[0].strip().splitlines()), "```"]
    return "\n".join([*text, ""])


def _called(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    dest = action.dest.upper() if action.option_strings else action.dest
    values = parser._get_formatter()._format_args(action, dest)
    names = ", ".join(action.option_strings)
    return f"`{' '.join(part for part in (names, values if action.nargs != 0 else '') if part)}`".replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
