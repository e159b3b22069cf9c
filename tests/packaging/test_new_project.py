"""`eft init`: what it writes, what it refuses, and on what its stages depend."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import config, installed
from pipeline.cli import main
from pipeline.installed import FILE, code_hash
from pipeline.new_project import on_installed_code, write_project

ROOT = Path(__file__).parents[2]


def stages_of(path: Path) -> dict:
    return {name: stage.get("do", stage) for name, stage in YAML(typ="safe").load(path.read_text())["stages"].items()}


def code_params(stage: dict) -> list[str]:
    return [name for entry in stage["params"] if isinstance(entry, dict) for name in entry[FILE]]


def test_it_writes_what_dvc_repro_reads(tmp_path, capsys):
    assert main(["init", str(tmp_path / "new")]) == 0
    assert "dvc repro" in capsys.readouterr().out
    project = tmp_path / "new"
    assert (project / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert config.load(config.Tasks, project / "params.yaml").folder == "my_tasks"
    stages = stages_of(project / "dvc.yaml")
    assert list(stages) == ["code", *stages_of(ROOT / "dvc.yaml")]
    made = [next(iter(out)) if isinstance(out, dict) else out for stage in stages.values() for out in stage["outs"]]
    for stage in stages.values():
        for path in stage.get("deps", []):
            assert (project / path).exists() or any(path.startswith((out, "checkpoints/")) for out in made), path
    for path in (ROOT / "stages").glob("*.py"):
        assert (project / "stages" / path.name).read_bytes() == path.read_bytes()
    assert "no_scm = true" in (project / ".dvc/config.local").read_text()


def test_in_a_git_repository_dvc_uses_git(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("mine")
    written = write_project(tmp_path)
    assert ".dvc/config.local" not in written
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_is_there_is_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "holds params.yaml already; nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    assert (tmp_path / "params.yaml").read_text() == "mine"


def test_every_stage_depends_on_the_code_that_it_depends_on_in_a_checkout(tmp_path):
    (tmp_path / "dvc.yaml").write_text(on_installed_code((ROOT / "dvc.yaml").read_text()))
    stages = stages_of(tmp_path / "dvc.yaml")
    for name, stage in stages_of(ROOT / "dvc.yaml").items():
        code = [path for path in stage["deps"] if path.startswith("pipeline/")]
        assert code_params(stages[name]) == [path.removesuffix(".py") for path in code]
        measured = ["checkpoints/ways.json"] if name == "report" else []  # a new project has none
        assert sorted([*stages[name]["deps"], *code, *measured]) == sorted(stage["deps"])
        assert stages[name]["outs"] == stage["outs"]


def test_code_json_has_a_hash_for_all_that_the_stages_name(tmp_path, monkeypatch):
    write_project(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    installed.main()
    hashes = YAML(typ="safe").load(Path(FILE).read_text())
    stages = stages_of(Path("dvc.yaml"))
    assert set(hashes) == {name for stage in stages.values() if "params" in stage for name in code_params(stage)}


def test_a_hash_is_that_of_all_files_but_compiled_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "_PACKAGES", tmp_path)
    room = tmp_path / "pipeline/room"
    (room / "__pycache__").mkdir(parents=True)
    (room / "a.py").write_text("1")
    first = code_hash("pipeline/room")
    (room / "__pycache__/a.pyc").write_text("compiled")
    assert code_hash("pipeline/room") == first
    (room / "a.py").rename(room / "b.py")
    renamed = code_hash("pipeline/room")
    (room / "b.py").write_text("2")
    assert len({first, renamed, code_hash("pipeline/room")}) == 3
    with pytest.raises(FileNotFoundError, match="dvc.yaml is of another version"):
        code_hash("pipeline/gone")
