"""Presets: small files of overrides that one command writes into params.yaml, where DVC and Git see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from pipeline import config
from pipeline.files import atomic_file
from pipeline.project_files import ROOT

PRESETS = Path("presets")  # your own, in the working folder; they come before those of Eft


class Change(NamedTuple):
    """One parameter that a preset sets to another value."""

    key: str  # e.g. "model.latent_dim"
    old: Any
    new: Any


class _Edit(NamedTuple):
    start: int  # characters of the text that `new` replaces
    end: int
    new: str


def list_presets(folder: str | Path | None = None) -> dict[str, str]:
    """Return the presets by name, each with the comment in its first line, empty if there is none.

    Args:
        folder: where presets are; None for `presets/` of the working folder and those of Eft.
    """
    found = {}
    for name, path in _paths(folder).items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        found[name] = first.lstrip("# ").strip() if first.startswith("#") else ""
    return found


def _paths(folder: str | Path | None) -> dict[str, Path]:
    folders = [ROOT / PRESETS, PRESETS] if folder is None else [Path(folder)]
    found = {path.stem: path for each in folders for path in each.glob("*.yaml")}
    return dict(sorted(found.items()))


def apply_presets(
    names: Sequence[str],
    folder: str | Path | None = None,
    params: str | Path = config.PARAMS,
    leave_out: Callable[[config.Tasks], Collection[str]] | None = None,
) -> list[Change]:
    """Write the values of presets into a parameter file, one after the other; all else stays as it is, byte for byte.

    Comments stay too, except those between the items of a list that is replaced.

    Args:
        names: of the presets, `<folder>/<name>.yaml`; a later one wins, e.g. `newt`, then `size-b`.
        folder: where presets are; None for `presets/` of the working folder and those of Eft.
        params: the parameter file.
        leave_out: told the tasks that the file then has, names those to take out of all its lists.

    Returns:
        What changed; empty if the file already said all of it, and then it is not written.

    Raises:
        ValueError: a preset is unknown or not valid YAML, names a parameter that `params` does not have, the
            result would not be valid, or no training task is left; nothing is written then.
    """
    params, known = Path(params), _paths(folder)
    for name in names:
        if name not in known:
            raise ValueError(
                f"there is no preset `{name}`{f' in {folder}' if folder else ''}.{config.near(name, list(known))} "
                f"There are: {', '.join(known) or 'none'}."
            )
    config.read_params(params)
    before = text = params.read_text(encoding="utf-8")
    named = " and ".join(f"`{name}`" for name in names)
    where = f"{params} with preset {named}" if names else str(params)
    for name in names:
        text = _apply(text, known[name].read_text(encoding="utf-8"), known[name])
    if leave_out:
        tasks = config.parse(config.Tasks, _yaml().load(text).get("tasks"), f"{where}: tasks")
        if out := leave_out(tasks):
            text = _apply(text, _without(tasks, out), params)
    if text != before:
        _check(text, where)
        with atomic_file(params) as partial:
            partial.write_text(text, encoding="utf-8")
    return [change for _, change in _compare(_compose(before), _compose(text), text, "", params)]


def _without(tasks: config.Tasks, out: Collection[str]) -> str:
    """Return the text of a preset whose lists of tasks are these without some.

    Raises:
        ValueError: no training task is left.
    """
    train = [name for name in tasks.train if name not in out]
    if not train:
        raise ValueError("none of the tasks in tasks.train can run on this machine: `eft tasks --check` says why.")
    left = {
        "train": train,
        "held_out": [name for name in tasks.held_out if name not in out],
        "pairs": [list(pair) for pair in tasks.pairs if not set(pair) & set(out)],
        "weights": {name: weight for name, weight in tasks.weights.items() if name not in out},
    }
    return json.dumps({"tasks": left})  # JSON is YAML


def _apply(text: str, preset: str, path: Path) -> str:
    """Return the text of a parameter file with the values of a preset, read from `path`."""
    try:
        old, new = _compose(text), _compose(preset)
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(new, MappingNode):
        raise ValueError(f"{path} must hold named sections of overrides, as params.yaml does.")
    edits = [edit for edit, _ in _compare(old, new, preset, "", path)]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.new + text[edit.end :]
    return text


def _compose(text: str) -> Any:
    return _yaml().compose(text)


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)  # the pure one knows where in the text each value stands


def _compare(
    old: MappingNode, new: MappingNode, preset: str, prefix: str, path: Path
) -> Iterator[tuple[_Edit, Change]]:
    """Yield what must be edited so that `old` says what `new` says; `preset` is the text `new` was read from."""
    values = {key.value: (key, value) for key, value in old.value}
    for key_node, new_value in new.value:
        key = key_node.value
        if key not in values:
            section = f"`{prefix.rstrip('.')}` of the parameters" if prefix else "the parameters"
            raise ValueError(f"{path}: `{prefix}{key}` is not in {section}.{config.near(key, list(values))}")
        old_key, old_value = values[key]
        # A section that may be null comes and goes as a whole; one that stays is compared value by value.
        whole = config.is_optional(prefix + key) and _is_null(old_value) != _is_null(new_value)
        if isinstance(old_value, MappingNode) != isinstance(new_value, MappingNode) and not whole:
            raise ValueError(f"{path}: `{prefix}{key}` must be a section where params.yaml has one, and only there.")
        if isinstance(old_value, MappingNode) and not whole and not config.is_mapping(prefix + key):
            yield from _compare(old_value, new_value, preset, f"{prefix}{key}.", path)
            continue
        change = Change(prefix + key, _value(old_value), _value(new_value))
        if change.old == change.new:
            continue
        start, end = old_value.start_mark.index, _end(old_value)
        if whole and isinstance(new_value, MappingNode):
            written = _write_section(new_value, preset, old_key.start_mark.column + 2)
        else:
            block = isinstance(old_value, SequenceNode) and not old_value.flow_style
            written = _write(new_value, preset, old_value.start_mark.column if block else None)
        if start == end or whole:  # `key:` with nothing behind it, or with something on the lines below it
            behind = old_key.end_mark.index + 1
            start, end = behind, behind if start == end else max(end, behind)
            written = written if written.startswith("\n") else f" {written}"
        yield _Edit(start, end, written), change


def _value(node: Node) -> Any:
    return _yaml().constructor.construct_document(node)


def _end(node: Node) -> int:
    """Return where a value ends; YAML lets a block reach to the next key, past the comments between."""
    if isinstance(node, SequenceNode) and not node.flow_style:
        return _end(node.value[-1])
    if isinstance(node, MappingNode) and not node.flow_style:
        return _end(node.value[-1][1])
    return node.end_mark.index


def _is_null(node: Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _write(node: Node, source: str, indent: int | None = None) -> str:
    """Write a value as its source spells it (`3e-4` stays `3e-4`): a list in one line, or one item per line."""
    if isinstance(node, MappingNode):
        return "{" + ", ".join(f"{key.value}: {_write(value, source)}" for key, value in node.value) + "}"
    if not isinstance(node, SequenceNode):
        return source[node.start_mark.index : node.end_mark.index] or "null"
    items = [_write(item, source) for item in node.value]
    if indent is None or not items:
        return f"[{', '.join(items)}]"
    return ("\n" + " " * indent).join(f"- {item}" for item in items)


def _write_section(node: MappingNode, source: str, indent: int) -> str:
    """Write a section below its key, one line per value; sections within it stand in one line."""
    return "".join(f"\n{' ' * indent}{key.value}: {_write(value, source)}" for key, value in node.value)


def _check(text: str, where: str) -> None:
    values = _yaml().load(text)
    for name, section in config.SECTIONS.items():
        if name in values:
            config.parse(section, values[name], f"{where}: {name}")
