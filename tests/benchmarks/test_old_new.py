"""The comparison with an older commit: both versions compute the same, but for rounding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from benchmarks import old_new, results

BEFORE = "b7b0422"
KNOWN = (
    shutil.which("git") is not None
    and subprocess.run(["git", "cat-file", "-e", BEFORE], cwd=old_new.ROOT, capture_output=True).returncode == 0
)


@pytest.mark.slow
@pytest.mark.skipif(not KNOWN, reason=f"{BEFORE} is not in this checkout's history")
def test_plans_and_updates_of_the_default_size_are_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["old_new", "--sizes", "default", "--seconds", "0", "--commit", BEFORE])
    old_new.main()
    found = json.loads((tmp_path / "old_new.json").read_text())
    assert list(found["measured"]) == [f"default, {case}" for case in old_new.CASES]
    assert all(one["largest_difference"] < 1e-3 for one in found["measured"].values())
    assert all(one["turns"] == 5 and one["new_ms"] > 0 for one in found["measured"].values())
