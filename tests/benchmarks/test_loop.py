"""The benchmark of the whole loop: both loops run on real simulators, and what is not promised is not written."""

from __future__ import annotations

import sys

import pytest

from benchmarks import loop


@pytest.mark.slow
def test_both_loops_step_real_environments(monkeypatch, capsys):
    words = "--envs 2 --batch 8 --utd 0.5 --workers 0 --seconds 0.1 --suites metaworld"
    monkeypatch.setattr(sys, "argv", ["loop", *words.split()])
    assert loop.main() == 0
    assert "env_steps per second: ours" in capsys.readouterr().out


def test_other_sizes_than_the_promised_one_are_not_written(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loop", "--size", "Q", "--write"])
    with pytest.raises(SystemExit):
        loop.main()
    assert "is of --size L" in capsys.readouterr().err
