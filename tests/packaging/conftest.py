"""The distribution, built once."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Git has of this checkout as it lies here, without Git: as a ZIP unpacked."""
    if missing := [name for name in ("build", "hatchling", "hatch_vcs", "twine") if not importlib.util.find_spec(name)]:
        pytest.skip(f"{', '.join(missing)} not installed; `make` has them")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a Git checkout")
    folder = tmp_path_factory.mktemp("source") / "eft"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/", "docs/", "checkpoints/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def distributions(source: Path) -> list[Path]:
    """The sdist, and the wheel that is built from it, without a network."""
    out = source.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(out.iterdir())


@pytest.fixture(scope="session")
def wheel(distributions: list[Path]) -> Path:
    """The wheel."""
    return next(path for path in distributions if path.suffix == ".whl")
