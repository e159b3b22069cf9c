"""Claims of several commands stand in one file, each beside the command that measured it."""

import json

import pytest

from benchmarks import results
from benchmarks.results import add, claim, write


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_claims_of_several_commands_live_side_by_side(folder):
    add("tasks", "presets.dmc", "presets dmc", 5.0, {"tasks": claim(20, 21, "above")}, minutes=1)
    write("tasks", "speed", 3.0, {"speed": claim(4.0, 3, "above")}, load=2)
    add("tasks", "presets.mt50", "presets mt50", 6.0, {"tasks": claim(49, 49, "above")})
    add("tasks", "presets.dmc", "presets dmc again", 7.0, {"losses": claim(1, 1, "above")})
    write("tasks", "speed again", 3.0, {"speed": claim(2.0, 3, "above")})
    found = json.loads((folder / "tasks.json").read_text())
    assert {name: figure["holds"] for name, figure in found["claims"].items()} == {
        "speed": False,
        "presets.mt50.tasks": True,
        "presets.dmc.losses": True,
    }
    assert found["command"] == "speed again"
    assert "load" not in found
    assert {part: one["command"] for part, one in found["parts"].items()} == {
        "presets.dmc": "presets dmc again",
        "presets.mt50": "presets mt50",
    }
