"""Where in the pipeline a stage is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.files import write_json
from pipeline.run.stages import where

ROOT = Path(__file__).parents[2]


def test_a_stage_says_which_it_is_and_what_follows(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages:\n  pretrain: {cmd: a}\n  adapt: {cmd: b}\n  report: {cmd: c}\n")
    assert where("pretrain", tmp_path) == "pretrain: stage 1 of 3."
    for task, seconds in {"mw-push": 31.8, "mw-reach": 90.0}.items():
        write_json(tmp_path / f"checkpoints/adapt/{task}/metrics/summary.json", {"seconds": seconds})
    (tmp_path / "checkpoints/report/metrics").mkdir(parents=True)
    (tmp_path / "checkpoints/report/metrics/summary.json").write_text("half")
    assert where("pretrain", tmp_path) == "pretrain: stage 1 of 3. Those after it took 2 minutes the last time."
    assert where("adapt", tmp_path) == "adapt: stage 2 of 3."
    assert where("gone", tmp_path) is None
    assert where("pretrain", tmp_path / "checkpoints") is None
    (tmp_path / "dvc.yaml").write_text("")
    assert where("pretrain", tmp_path) is None


@pytest.mark.parametrize(("stage", "number"), [("teach", 1), ("report", 9)])
def test_the_stages_of_this_project_are_found(stage, number):
    assert where(stage, ROOT).startswith(f"{stage}: stage {number} of 9.")
