"""What is imported when, and what an import says whose package is missing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.extras import install, needs

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a distribution is imported as, where that is another name.
IMPORTED_AS = {"huggingface-hub": "huggingface_hub", "ruamel.yaml": "ruamel"}
# Adapters of simulators: `domains.adapter` imports them and names the extra; and what only these import.
ADAPTERS = {
    f"pipeline/tasks/{name}.py"
    for name in (
        "atari", "box2d", "dmcontrol", "dmcontrol_bodies", "dmcontrol_variants", "maniskill", "maniskill_variants",
        "metaworld", "ogbench", "rendering", "robodesk", "miniarcade/canvas",
    )
}  # fmt: skip
HEAVY = "accelerate av datasets dm_control dvc matplotlib metaworld mujoco pandas peft pyarrow scipy transformers viser"
KERNELS = "pipeline/model/kernels.py"  # imported on a GPU alone, where torch itself brings Triton


def base() -> set[str]:
    """What may be imported anywhere: what the base depends on, what comes with Python, and ours."""
    names = {item.split(">=")[0] for item in PROJECT["dependencies"]}
    ours = {"pipeline", "stages", "eft"}
    return {IMPORTED_AS.get(name, name) for name in names} | set(sys.stdlib_module_names) | ours


def unguarded(code: str) -> list[tuple[int, str]]:
    """The imports of other packages that are not within `with needs(...)`, nor may fail, nor are for type checkers."""
    found, known = [], base()

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            within = [ast.unparse(item.context_expr) for item in node.items]
            guarded |= any(one.startswith("needs(") or one == "contextlib.suppress(ImportError)" for one in within)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import | ast.ImportFrom) and not guarded:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found.extend((node.lineno, name) for name in names if name.split(".")[0] not in known)
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(code), False)
    return found


def test_what_the_search_for_imports_finds():
    code = (
        "import av\nimport numpy\nfrom scipy.x import y\nwith needs('play'):\n    import viser\n"
        "def f():\n    import dvc.api\nif TYPE_CHECKING:\n    import mujoco\n"
    )
    assert unguarded(code) == [(1, "av"), (3, "scipy.x"), (7, "dvc.api")]


@pytest.mark.parametrize("folder", ["eft", "pipeline", "stages"])
def test_every_import_is_of_the_base_or_names_its_extra(folder):
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / folder).rglob("*.py")}
    found = {name: unguarded(path.read_text()) for name, path in files.items() if name not in (*ADAPTERS, KERNELS)}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_every_extra_that_is_named_exists():
    named = set()
    for folder in ("eft", "pipeline", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("needs", "install"):
                    named.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    assert "pipeline" in named
    assert {extra for text in named for extra in text.split(",")} <= set(PROJECT["optional-dependencies"])


def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(ModuleNotFoundError) as caught, needs("play"), needs("video"):
        import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]
    # The outer one counts: who opens the page wants all that the page needs.
    assert str(caught.value) == "the package no_such_package is not installed. Install it: pip install 'eft[play]'"
    assert caught.value.name == "no_such_package"
    assert install("all") == "pip install 'eft[all]'"


@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import eft", f"{HEAVY} torch numpy gymnasium pydantic"),
        ("import eft; eft.Agent", HEAVY),
        ("import eft; eft.tasks()", f"{HEAVY} torch"),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, kept_out: str):
    check = f"{code}\nimport sys\nprint(*[name for name in {kept_out.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_stage_that_comes_to_a_missing_package_says_so_in_one_line():
    code = (
        "from pipeline.extras import needs\nfrom pipeline.run.launch import run_stage\n"
        "def main():\n    with needs('video'):\n        import no_such_package\nrun_stage(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "-c: the package no_such_package is not installed. Install it: pip install 'eft[video]'\n"
