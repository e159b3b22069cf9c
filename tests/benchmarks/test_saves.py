"""The benchmark of saves, small."""

from __future__ import annotations

import json
import sys

from benchmarks import results, saves


def test_the_wait_and_the_writing_are_measured_with_new_transitions_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["saves", "--transitions", "3000", "--new", "1000", "--size", "default"])
    saves.main()
    found = json.loads((tmp_path / "saves.json").read_text(encoding="utf-8"))
    assert len(found["waited"]) == len(found["written"]) == 5
    assert all(seconds > 0 for seconds in found["waited"] + found["written"])
    assert found["claims"]["seconds_waited"]["value"] >= 0
