"""The commit that results name is that of the code, never of another repository around it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.run import provenance
from pipeline.run.provenance import commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def code_in(folder: Path) -> Path:
    """A folder with the file by which the code is known."""
    (folder / "pipeline/run").mkdir(parents=True)
    shutil.copy(str(provenance.__file__), folder / "pipeline/run/provenance.py")
    return folder


def repository(folder: Path) -> str:
    git(folder, "init", "-q")
    (folder / "thesis.txt").write_text("mine")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_code_with_its_changes(tmp_path: Path) -> None:
    root = code_in(tmp_path / "eft")
    head = repository(root)
    assert commit(root) == head
    with (root / "pipeline/run/provenance.py").open("a") as file:
        file.write("# changed\n")
    assert commit(root) == f"{head}+changes"


@pytest.mark.parametrize("tracked", [True, False], ids=["copied and committed", "installed and ignored"])
def test_another_repository_around_the_code_is_not_reported(tracked: bool, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    root = code_in(thesis / ".venv/lib/site-packages")
    if not tracked:
        (thesis / ".gitignore").write_text(".venv\n")
    repository(thesis)
    assert commit(root) == "unknown"


def test_neither_is_the_repository_that_a_run_is_started_in(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "project").mkdir()
    head = repository(tmp_path / "project")
    before = commit()
    monkeypatch.chdir(tmp_path / "project")
    assert head not in commit()
    assert commit() == before


def test_code_that_was_unpacked_into_another_repository_is_not_reported(tmp_path: Path) -> None:
    repository(tmp_path)
    assert commit(code_in(tmp_path)) == "unknown"


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    assert set(provenance.versions()) == {"python", "numpy"}
