"""Whether a line of shell is a command that exists here: programs, options, stages, targets, extras, modules."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.cli import build_parser

ROOT = Path(__file__).parents[2]
# Programs of the reader's machine, of which nothing here could be wrong but their name.
ELSEWHERE = {"ssh", "docker", "apt-get", "scontrol", "head", "source", "hf", "cd"}
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


def commands(text: str) -> Iterator[list[str]]:
    """Give the words of each command of a shell block, comments and continued lines resolved."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.replace("$(", " ; ").replace(")", " ; "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split, words = True, []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def check_command(words: list[str], whole: bool = True) -> None:
    """Refuse a command that would not run.

    Args:
        words: of one command.
        whole: whether nothing that it needs is left out; a mention in a sentence may leave arguments out.

    Raises:
        ValueError: with what is wrong.
    """
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        if name == "EFT_LAUNCH":
            check_command([*shlex.split(value), "-m", "stages.finetune"])
    if not words or Path(words[0]).name in ELSEWHERE:
        return
    program = Path(words[0]).name
    if program not in _CHECKS:
        raise ValueError(f"{program!r} is no program that this test knows")
    _CHECKS[program](words[1:], whole)


def _eft(arguments: list[str], whole: bool) -> None:
    if whole:
        _parse(build_parser(), arguments)
        return
    every = dict(_within(build_parser()))
    name = arguments[0]
    if name not in every and name != "COMMAND" and not name.startswith("-"):
        raise ValueError(f"`eft {name}` is no command")
    chosen = [every[name], *map(itemgetter(1), _within(every[name]))] if name in every else every.values()
    known = {option for parser in chosen for action in parser._actions for option in action.option_strings}
    for option in (word for word in arguments[1:] if word.startswith("--")):
        if option not in known:
            raise ValueError(f"`eft {name}` knows no {option}")


def _within(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Give the commands of a parser, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _python(arguments: list[str], whole: bool) -> None:
    if arguments[:1] == ["-u"] or not arguments:
        arguments = arguments[1:]
    if not arguments or arguments[0] != "-m":
        raise ValueError(f"python {' '.join(arguments)}: only `python -m` is known here")
    _module(arguments[1], arguments[2:])


def _module(name: str, arguments: list[str]) -> None:
    if name.startswith("mani_skill"):
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ValueError(f"there is no module {name}")
    source = Path(found.origin).read_text(encoding="utf-8")
    for option in (word for word in arguments if word.startswith("--")):
        if f'"{option}"' not in source:
            raise ValueError(f"{name} knows no {option}")


def _make(arguments: list[str], whole: bool) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    for word in arguments:
        if "=" not in word and word not in targets:
            raise ValueError(f"the Makefile has no target {word}")


def _dvc(arguments: list[str], whole: bool) -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if arguments[0] not in ("repro", "config", "plots", "dag", "status"):
        raise ValueError(f"dvc {arguments[0]} is not known here")
    for word in arguments[1:] if arguments[0] == "repro" else []:
        if not word.startswith("-") and word not in stages:
            raise ValueError(f"there is no stage {word}")


def _pip(arguments: list[str], whole: bool) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in arguments[1:]:
        for extra in re.findall(r"^eft\[(.+)\]", word):
            unknown = set(extra.split(",")) - set(extras)
            if unknown:
                raise ValueError(f"there is no extra {unknown}")
        if word.startswith("./") and not (ROOT / word).exists():
            raise ValueError(f"{word} is not there")


def _accelerate(arguments: list[str], whole: bool) -> None:
    from accelerate.commands.launch import launch_command_parser

    if arguments[0] == "launch":
        options = _parse(launch_command_parser(), arguments[1:])
        _module(options.training_script, [])
    elif arguments != ["config"]:
        raise ValueError(f"accelerate {arguments[0]} is not known here")


def _torchrun(arguments: list[str], whole: bool) -> None:
    from torch.distributed.run import get_args_parser

    if "-m" in arguments:
        _module(_parse(get_args_parser(), arguments).training_script, [])


def _srun(arguments: list[str], whole: bool) -> None:
    check_command(arguments, whole)


def _tensorboard(arguments: list[str], whole: bool) -> None:
    if arguments != ["--logdir", "runs"]:
        raise ValueError("curves are logged to runs")


def _parse(parser, arguments: list[str]):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.parse_args(arguments)
    except SystemExit:
        raise ValueError(said.getvalue().strip()) from None


_CHECKS: dict[str, Callable[[list[str], bool], None]] = {
    "eft": _eft, "python": _python, "make": _make, "dvc": _dvc, "pip": _pip, "accelerate": _accelerate,
    "torchrun": _torchrun, "srun": _srun, "tensorboard": _tensorboard,
}  # fmt: skip
