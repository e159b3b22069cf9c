"""Every YAML block of README and docs is a valid task, parameter, recipe of a teacher, or machine file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from ruamel.yaml import YAML

from pipeline import config
from pipeline.demonstrate.teach import load_recipes
from pipeline.tasks import registry
from tests.docs.blocks import ROOT, Block, of_language

# Those in a list of CONTRIBUTING.md are steps of a recipe, which tests/docs/test_contributing.py follows.
WHOLE = [block for block in of_language("yaml") if not (block.page == "CONTRIBUTING.md" and block.in_list)]


def laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: laid_over(below.get(key), value) for key, value in above.items()}


def check(text: str, folder: Path) -> str:
    """Say what a block is, or refuse it."""
    values = YAML(typ="safe").load(text)
    if "suite" in values:
        (folder / "task.yaml").write_text(text, encoding="utf-8")
        registry.load_file(folder / "task.yaml")
        return "task"
    if set(values) <= set(config.SECTIONS) and set(values) != {"tasks"}:
        merged = laid_over(config.read_params(ROOT / "params.yaml"), values)
        YAML().dump(merged, folder / "params.yaml")
        for name in values:
            config.load(config.SECTIONS[name], folder / "params.yaml")
        return "parameters"
    if set(values) == {"tasks"}:
        own = folder / "own"
        own.mkdir(exist_ok=True)
        task = YAML(typ="safe").load(next(block.text for block in WHOLE if "suite:" in block.text))
        for name in values["tasks"]:  # tasks of the reader's own, which lie beside it
            YAML().dump(task | {"name": name}, own / f"{name}.yaml")
        (own / "teachers.yaml").write_text(text, encoding="utf-8")
        assert set(values["tasks"]) <= set(load_recipes(own))
        return "recipes"
    known = {field.name for field in dataclasses.fields(ClusterConfig)}
    if "compute_environment" in values and set(values) <= known:
        return "machine"
    raise ValueError(f"a block of {sorted(values)} is nothing that this test knows")


@pytest.mark.parametrize("block", WHOLE, ids=str)
def test_a_block_is_valid(block: Block, tmp_path: Path):
    check(block.text, tmp_path)


def test_every_kind_is_there(tmp_path: Path):
    assert {check(block.text, tmp_path) for block in WHOLE} == {"task", "parameters", "recipes", "machine"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain: {updats: 3}", "`updats` is not a parameter"),
        ("pretrain: {updates: -1}", "`updates` is -1"),
        ("name: a\nsuite: gymnasium", "misses|missing|lacks"),
        ("tasks: {a: {stps: 3}}", "stps"),
        ("colour: red", "nothing that this test knows"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        check(text, tmp_path)
