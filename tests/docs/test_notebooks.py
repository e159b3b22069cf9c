"""The notebooks run from their first cell to their last, on a small untrained base, and are kept without output."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from pipeline.tasks import registry
from tests.docs.bases import make_base, prepare
from tests.docs.blocks import ROOT
from tests.docs.shell import check_command

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
HANG = """\
name: hang
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pole hangs on a hinge with a motor.
instructions: [Hang., Hang still.]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 8
score: 1+clip(return,-1600,0)/1600
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))
    assert found["nbformat"] == 4
    return found["cells"]


def sources(notebook: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells(notebook) if cell["cell_type"] == "code"]


def shown(path: str | None = None, **_: Any) -> str:
    """Stand for IPython.display's Video and SVG, which every notebook has: the file is there, and not empty."""
    assert path
    assert Path(path).stat().st_size > 0
    return path


def run_cell(source: str, namespace: dict[str, Any]) -> None:
    """Do what a notebook does with a cell of ours: Python, `!command`, `%%writefile`; `%pip` has been done."""
    first, _, rest = source.partition("\n")
    if first.startswith("%%writefile "):
        Path(first.split()[1]).write_text(rest, encoding="utf-8")
    elif first.startswith("%pip"):
        check_command(shlex.split(first.removeprefix("%"), comments=True))
    elif first.startswith("!"):
        line = re.sub(r"\{(\w+)\}", lambda name: str(namespace[name[1]]), first[1:])
        words = shlex.split(line)
        check_command(words)
        ran = subprocess.run([sys.executable, "-m", "pipeline.cli", *words[1:]], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    else:
        exec(compile(source, first, "exec"), namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_kept_without_output_and_installs_in_one_line(notebook: Path):
    code = [cell for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    first, *others = sources(notebook)
    assert first.startswith("%pip install")
    assert "\n" not in first
    assert not any("pip install" in source for source in others)
    assert sum("CHECKPOINT = " in source for source in others) == 1


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matplotlib.use("Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shell, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell.__dict__.update(get_ipython=lambda: None, version_info=(9, 0))  # what matplotlib asks where there is one
    display.__dict__.update(Video=shown, SVG=shown)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    prepare(tmp_path)
    (tmp_path / "hang.yaml").write_text(HANG, encoding="utf-8")
    make_base([registry.load_file(tmp_path / "hang.yaml")]).save_pretrained(tmp_path / "checkpoints/base")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.syspath_prepend(tmp_path / "examples")  # a notebook finds what lies beside it
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for source in sources(notebook):
        run_cell(source.replace("ENV_STEPS = 2000", "ENV_STEPS = 120"), namespace)
    if notebook.stem == "adapt":
        assert [episode.score for episode in namespace["demos"]] == [1.0] * 5
        assert namespace["agent"].adapters == ("dock",)
        assert [len(episode.frames) for episode in namespace["episodes"]] == [61] * 3
    else:
        assert Path("act.mp4").exists()
        assert set(namespace["scores"]) == {"plans", "policy"}


def test_both_are_there():
    assert [path.name for path in NOTEBOOKS] == ["act.ipynb", "adapt.ipynb"]
