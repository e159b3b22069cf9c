"""The reference of parameters: pipeline/config's types, bounds and comments beside the values of params.yaml."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML

from pipeline import config

ROOT = Path(__file__).parents[2]
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "multiple_of": "a multiple of {}",
}
_LONGEST = 48  # characters of a value that is shown


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of the reference."""

    name: str  # `section.name`, or `section.optional.name`
    type: str  # in words
    default: str  # of pipeline/config; empty where the file has to say it
    value: str  # of params.yaml; empty where the section is null there
    meaning: str


def as_markdown() -> str:
    """Return all sections in the order of params.yaml, one table each."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    seed = f"| `seed` | whole number, at least 0 | `{values['seed']}` | all random numbers of a run derive from it |"
    parts = [_table("seed", "The one number outside the sections.", [seed])]
    for name, kind in config.SECTIONS.items():
        parts += [_section(name, kind, values)]
        parts += [_section(f"{name}.{key}", inner, values) for key, inner in optional_sections(kind)]
    return "\n".join(parts)


def parameters(name: str, kind: type, values: Any = None) -> list[Parameter]:
    """Return the parameters of one section.

    Args:
        name: of the section.
        kind: its dataclass.
        values: those of params.yaml, all sections; None for none.
    """
    hints, meanings = get_type_hints(kind, include_extras=True), comments(kind)
    there, found = _at(values, name), []
    for field in dataclasses.fields(kind):
        default = "" if field.default is dataclasses.MISSING else _shown(field.default)
        value = _shown(there[field.name]) if isinstance(there, dict) and field.name in there else ""
        meaning = meanings.get(field.name, "")
        found.append(Parameter(f"{name}.{field.name}", describe(hints[field.name]), default, value, meaning))
    return found


def optional_sections(kind: type) -> Iterator[tuple[str, type]]:
    """Give the sections within a section that may be null, by name."""
    for key, hint in get_type_hints(kind).items():
        for part in get_args(hint):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield key, part
                yield from ((f"{key}.{inner}", found) for inner, found in optional_sections(part))


def comments(kind: type) -> dict[str, str]:
    """Return the comment of each field of a dataclass, inherited ones included: what it means.

    A comment that ends in ` ...` goes on with the next one that begins so.
    """
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if parent.__module__.startswith("pipeline."):
            found |= _comments(inspect.getsource(parent))
    return found


def _comments(source: str) -> dict[str, str]:
    # By line of the source: the fields begin somewhere, and every comment belongs to the last one that has begun.
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    begins = {
        n.lineno: n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    last = max(n.lineno for n in tree.body if isinstance(n, ast.AnnAssign))
    ends = min((n.lineno for n in tree.body if n.lineno > last), default=len(source.splitlines()) + 1)
    found: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        started = [begin for begin in begins if begin <= line]
        if token.type == tokenize.COMMENT and started and line < ends:
            name, text = begins[max(started)], token.string.lstrip("# ")
            before = found.get(name)
            found[name] = text if before is None else f"{before.removesuffix(' ...')} {text.removeprefix('... ')}"
    return {name: text.removesuffix(" ...").removeprefix("... ") for name, text in found.items()}


def describe(hint: Any) -> str:
    """Return a type in words: `whole number, at least 1`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [(word, getattr(limit, word)) for field in parts[1:] for limit in field.metadata for word in _BOUNDS
                  if getattr(limit, word, None) is not None]  # fmt: skip
        return ", ".join([describe(parts[0]), *(_BOUNDS[word].format(f"{value:g}") for word, value in bounds)])
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return f"list of: {describe(parts[0])}"
    if origin is tuple:
        return f"list of {len(parts)}: {describe(parts[0])}"
    if origin is dict:
        return f"by name: {describe(parts[1])}"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return f"section, as `{hint.__name__}`"
    return _NAMES[hint]


def _section(name: str, kind: type, values: Any) -> str:
    rows = [
        f"| `{row.name.rpartition('.')[2]}` | {row.type}{_left_out(row)} | {row.value} | {row.meaning} |"
        for row in parameters(name, kind, values)
    ]
    text = inspect.getdoc(kind) or ""
    return _table(name, text.rstrip(), rows)


def _left_out(row: Parameter) -> str:
    return f"; left out: {row.default}" if row.default else ""


def _table(name: str, text: str, rows: list[str]) -> str:
    head = "| parameter | type | params.yaml | meaning |\n|---|---|---|---|"
    return "\n".join([f"{'##' if '.' not in name else '###'} {name}", "", text, "", head, *rows, ""])


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(str(value)) > _LONGEST:
        return f"{len(value)} entries"
    if isinstance(value, dict) and value:
        return "below" if len(str(value)) > _LONGEST else f"`{value}`"
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"
