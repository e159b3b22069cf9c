"""The project as a ZIP: `make repro` without a Git repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DVC = Path(sys.executable).parent / "dvc"


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """What `make repro` needs of the project, with one stage that takes no time, and everything installed."""
    folder = tmp_path / "eft-main"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/dvc").symlink_to(DVC)
    (folder / ".dvc").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.yaml").write_text("stages:\n  say:\n    cmd: echo it ran > said.txt\n    outs: [said.txt]\n")
    (folder / ".venv/bin/.installed").touch()
    return folder


@pytest.mark.skipif(shutil.which("make") is None or not DVC.exists(), reason="needs make and DVC")
def test_make_repro_works_without_git(unpacked: Path) -> None:
    for _ in range(2):
        done = subprocess.run(["make", "repro"], cwd=unpacked, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "not a git repository" not in done.stdout + done.stderr
    assert (unpacked / "said.txt").read_text() == "it ran\n"
    assert (unpacked / ".dvc/config").read_text() == (ROOT / ".dvc/config").read_text()


@pytest.mark.skipif(shutil.which("git") is None or not DVC.exists(), reason="needs Git and DVC")
def test_neither_another_repository_around_it_nor_a_home_that_cannot_be_written_matters(unpacked: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=unpacked.parent, check=True)
    home = unpacked.parent / "home"
    home.mkdir(mode=0o555)
    variables = os.environ | {"HOME": str(home)}
    done = subprocess.run(["make", "repro"], cwd=unpacked, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (unpacked / "said.txt").read_text() == "it ran\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
def test_a_clone_has_the_same_bytes_whatever_git_is_told_of_line_ends(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "one").mkdir()
    for name in (".gitattributes", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / "one" / name)
    for arguments in (["init"], ["add", "-A"], ["commit", "-m", "one"]):
        git("-C", "one", *arguments)
    git("clone", "-c", "core.autocrlf=true", "one", "other")
    assert (tmp_path / "other/Makefile").read_bytes() == (ROOT / "Makefile").read_bytes()


@pytest.mark.skipif(shutil.which("git") is None or not DVC.exists(), reason="needs Git and DVC")
def test_with_git_nothing_is_configured(unpacked: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=unpacked, check=True)
    done = subprocess.run(["make", "repro"], cwd=unpacked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (unpacked / ".dvc/config.local").exists()
