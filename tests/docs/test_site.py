"""The site: its reference says what the code says, its links arrive, its pages load nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from pipeline import config
from pipeline.cli import build_parser
from tests.docs.blocks import ROOT


def hook(name: str) -> types.ModuleType:
    """A module of docs/hooks, which only MkDocs imports."""
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", ROOT / f"docs/hooks/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PARAMETERS, COMMANDS, OUTSIDE = hook("parameters"), hook("commands"), hook("outside")


def every_parameter():
    for name, kind in config.SECTIONS.items():
        yield from PARAMETERS.parameters(name, kind)
        for key, inner in PARAMETERS.optional_sections(kind):
            yield from PARAMETERS.parameters(f"{name}.{key}", inner)


def test_every_parameter_is_explained():
    assert [row.name for row in every_parameter() if not row.meaning] == []


def test_a_parameter_says_type_bounds_default_and_meaning():
    rows = {row.name: row for row in every_parameter()}
    assert rows["planner.horizon"].type == "whole number, at least 1"
    assert rows["learning.tau"].type == "number, at least 0, at most 1"
    assert rows["runtime.device"].type == "`auto` or `cpu` or `cuda`"
    assert rows["tasks.pairs"].type == "list of: list of 2: text"
    assert rows["publish.repo_id"].type == "text or null"
    assert rows["planner.execute"].default == "`elite`"
    assert rows["model.history"].type == "section, as `History` or null"
    assert rows["finetune.scaling.target"].meaning.startswith("a task is solved once")


def test_a_comment_goes_on_in_the_next_line():
    meaning = PARAMETERS.comments(config.Finetune)["teacher"]
    assert "collected state, and that is imitated with weight 1" in meaning
    assert "..." not in meaning
    first, second = (PARAMETERS.comments(config.Finetune)[f"constraint_{name}"] for name in ("steps", "decay"))
    assert (first[:9], second[:9]) == ("schedule:", "schedule:")


def test_the_page_of_parameters_has_all_of_them_and_their_values():
    page = PARAMETERS.as_markdown()
    for name, kind in config.SECTIONS.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}` |" in section
    assert (
        f"| `horizon` | whole number, at least 1 | `{config.load(config.Planner, ROOT / 'params.yaml').horizon}` |"
        in page
    )


def test_the_page_of_commands_has_all_of_them():
    page, names = COMMANDS.as_markdown(), COMMANDS.parsers()
    assert {name.split()[1] for name in names} == set(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    for name, parser in names.items():
        section = page.split(f"# {name}\n")[1]
        for action in parser._actions:
            assert all(option in section for option in action.option_strings), f"{name}: {action.option_strings}"


@pytest.mark.parametrize(
    ("text", "expected", "copies"),
    [
        ("[p](../../params.yaml)", "[p](../files/params.yaml)", {"params.yaml"}),
        ("[e](../../EXPERIMENTS.md#a-b)", "[e](../experiments.md#a-b)", set()),
        ("[m](metrics.md)", "[m](metrics.md)", set()),
        ("[f](../../pipeline/systems/)", "f", set()),
        ("[t](../../pipeline/teachers/README.md)", "t", set()),
        ("[gone](../../nothing.yaml)", "[gone](../../nothing.yaml)", set()),
        ("[w](https://example.org/a)", "[w](https://example.org/a)", set()),
        ("`[c](../../params.yaml)`", "`[c](../../params.yaml)`", set()),
        ("```text\n[c](../../params.yaml)\n```", "```text\n[c](../../params.yaml)\n```", set()),
    ],
)
def test_links_out_of_docs_work_in_the_site(text: str, expected: str, copies: set[str]):
    assert OUTSIDE.linked(text, "reference/cli.md") == (expected, copies)


def test_an_included_file_keeps_its_links(tmp_path: Path):
    text = OUTSIDE.included(
        "# Title\n\nThis page is [x](y).\n\n<!-- include ../../my_tasks/README.md -->\n", "how-to/environment.md"
    )
    assert text.startswith("# Title\n\nOne YAML file in this folder")
    assert "](../../examples/robotics)" in text
    assert "This page is" not in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="`make` installs it")
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|img|iframe|source)[^>]+src=[\"']?(https?:[^\"' >]+)", text)
        loads += re.findall(
            r"<link[^>]+rel=[\"']?(?:stylesheet|icon|preload|preconnect)[^>]+href=[\"']?(https?:[^\"' >]+)", text
        )
        assert loads == [], page.name
        assert "<!-- " + "include" not in text
    assert "few_shot.svg" in (tmp_path / "site/explanation/evidence.html").read_text(encoding="utf-8")
    assert "from_pretrained" in (tmp_path / "site/reference/api.html").read_text(encoding="utf-8")
