"""The recipes of CONTRIBUTING.md, followed in a copy of the project: a loss term, and a system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of

pytestmark = pytest.mark.slow  # each run imports torch anew

RECIPES = [
    block for block in blocks_of(ROOT / "CONTRIBUTING.md") if block.in_list and block.language in ("python", "yaml")
]


class Recipe:
    """A copy of the project, and the blocks that stand between two words of the page."""

    def __init__(self, folder: Path, begins: str, ends: str):
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        first, last = (text[: text.index(f"## {title}")].count("\n") for title in (begins, ends))
        self.folder, self.left = folder, [block.text for block in RECIPES if first < block.line < last]
        for name in ("pipeline", "benchmarks", "presets"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        for name in ("params.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)

    def next(self) -> str:
        return self.left.pop(0)

    def insert(self, path: str, before: str) -> None:
        """Put the next block before the first line of a file that begins so, as far to the right as that line."""
        lines = (self.folder / path).read_text(encoding="utf-8").splitlines()
        (at, *_) = [number for number, line in enumerate(lines) if line.strip().startswith(before)]
        spaces = " " * (len(lines[at]) - len(lines[at].lstrip()))
        lines[at:at] = textwrap.indent(self.next(), spaces).rstrip().splitlines()
        self.write(path, "\n".join(lines) + "\n")

    def append(self, path: str) -> None:
        text = (self.folder / path).read_text(encoding="utf-8")
        self.write(path, f"{text}\n\n{self.next()}")

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def run(self, code: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(self.folder)}
        ran = subprocess.run([sys.executable, "-c", code], cwd=self.folder, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


def test_a_loss_term_is_added_as_the_page_says(tmp_path: Path):
    recipe = Recipe(tmp_path, "How do I add a loss term?", "How do I add a task?")
    recipe.append("pipeline/model/math.py")
    recipe.insert("pipeline/config/__init__.py", "task_id_coef:")
    recipe.insert("pipeline/learn/learner.py", "per_slice = ")
    assert "'smoothness_loss'" in recipe.run(recipe.next())
    assert recipe.left == []


def test_a_task_is_given_a_teacher_as_the_page_says(tmp_path: Path):
    recipe = Recipe(tmp_path, "How do I give a task a teacher?", "How do I add a system?")
    recipe.run(recipe.next())
    assert recipe.left == []


USE = """
import torch
from benchmarks.problem import make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.presets import apply_presets
from pipeline.systems.build import offline_extensions

apply_presets(["icm"], "presets", "params.yaml")
learning, model, table = config.load(config.Learning, "params.yaml"), make_model(), make_table()
extensions = offline_extensions(model, table, learning)
print([one.name for one in extensions])
learner = Learner(model, table, learning, extensions=extensions)
for _ in range(2):
    print(learner.update(make_batch(table), "pretrain", torch.Generator().manual_seed(0)))
(extension,) = extensions
extension.load_state_tensors(extension.state_tensors())
"""


def test_a_system_is_added_as_the_page_says(tmp_path: Path):
    recipe = Recipe(tmp_path, "How do I add a system?", "Words")
    recipe.append("pipeline/config/options.py")
    recipe.insert("pipeline/config/__init__.py", "weighting: Literal")
    path = tmp_path / "pipeline/config/__init__.py"
    recipe.write("pipeline/config/__init__.py", path.read_text().replace("    Head,\n", "    Head,\n    Icm,\n", 1))
    recipe.write("presets/icm.yaml", recipe.next())
    params = (tmp_path / "params.yaml").read_text()
    recipe.write("params.yaml", params.replace("  task_id_coef: 0.0\n", "  task_id_coef: 0.0\n  icm: null\n"))
    recipe.write("pipeline/systems/icm/__init__.py", '"""Inverse dynamics."""\n')
    recipe.write("pipeline/systems/icm/extension.py", recipe.next())
    source = (tmp_path / "pipeline/systems/build.py").read_text()
    at = source.index("return found", source.index("def _losses("))
    term = textwrap.indent(recipe.next(), "    ").lstrip()
    recipe.write("pipeline/systems/build.py", f"{source[:at]}{term}    {source[at:]}")
    said = recipe.run(USE)
    assert said.startswith("['icm']")
    assert said.count("'inverse_loss'") == 2
    assert recipe.left == []


def test_no_step_of_a_recipe_is_left_out():
    assert len(RECIPES) == 10
