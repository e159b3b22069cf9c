"""What is asked of a checkpoint, where there is no answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import probe, results
from pipeline.data.episode import Episode
from pipeline.files import sha256
from pipeline.results import Asked
from pipeline.tasks.registry import get


def test_a_task_without_rewards_has_no_figures_instead_of_none_of_all_tasks(monkeypatch):
    (spec,) = get(["pendulum-spin"])
    zeros = np.zeros((2, 3), np.float32)
    demo = Episode(
        "pendulum-spin", zeros, zeros[:1, :1], zeros[:1, :1], np.zeros(1, np.float32), False, False, 0, 0, 0, ""
    )

    class Probe:
        def __init__(self, *arguments):
            pass

        def advantages(self, *arguments):
            return float("nan"), 0.51234

        def q_over_return(self, *arguments):
            return float("inf")

        value_share = q_over_return

    monkeypatch.setattr(probe, "Probe", Probe)
    monkeypatch.setattr(probe.Agent, "from_pretrained", lambda model: SimpleNamespace(tasks={spec.name: spec}))
    monkeypatch.setattr(probe.config, "load", lambda section: None)
    monkeypatch.setattr(probe, "load_demos", lambda folder, name: [demo])
    monkeypatch.setattr(probe, "plan_distance", lambda *arguments: 0.1)
    monkeypatch.setattr(probe, "played", lambda *arguments: {"pendulum-spin": ([0.0], [0.0])})
    row = probe.probe("model", [], 1, 1, 1, 1)["pendulum-spin"]
    assert row["advantage_q"] is row["q_over_return"] is row["policy_return"] is None
    assert row["advantage_model"] == pytest.approx(0.5123)
    assert row["policy_score"] == 0


def row(**figures) -> dict[str, float | None]:
    """Figures of a task whose plans are the policy."""
    one = {"q_over_return": 1.0, "advantage_q": 0.6, "advantage_model": 0.4, "value_share": 0.2, "plan_distance": 0.1}
    return {**one, **dict.fromkeys(("policy_score", "plan_score", "policy_return", "plan_return"), 0.5), **figures}


def test_claims_are_of_the_worst_task_and_of_plans_that_earn_more():
    rows = {"mw-reach": row(q_over_return=0.9), "mw-push": row(plan_return=0.6, plan_score=0.4)}
    made = probe.claims(rows)
    assert {name: (one["value"], one["holds"]) for name, one in made.items()} == {
        "largest_error_of_q": (0.1, False),
        "tasks_with_plans_above_policy": (1, False),
        "plans_minus_policy": (-0.05, False),
        "advantage_q_mw-reach": (0.6, True),
        "advantage_model_mw-reach": (0.4, False),
    }
    unknown = probe.claims({"mw-push": row(q_over_return=None, plan_return=None)})
    assert unknown["largest_error_of_q"]["value"] is None
    assert unknown["tasks_with_plans_above_policy"]["value"] == 0


def test_the_report_gets_what_the_finetuned_checkpoint_was_asked_on_all_its_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "probe", lambda *arguments: {"mw-reach": row()})
    with pytest.raises(SystemExit, match="dvc repro finetune"):
        probe.main([])
    probe.RUN.parent.mkdir(parents=True)
    probe.RUN.write_text("{}")
    for others in (["--tasks", "mw-reach"], ["--model", "checkpoints/pretrain/model"]):
        probe.main(others)
        assert not Path(probe.SHOWN).exists()
    probe.main(["--starts", "2"])
    shown = Asked(**json.loads(probe.SHOWN.read_text(encoding="utf-8")))
    assert shown.run == sha256(probe.RUN)
    assert shown.command.endswith("--model checkpoints/finetune/model --name finetuned --seed 1 --starts 2")
    assert shown.tasks["mw-reach"].advantage_q == 0.6
    found = json.loads((tmp_path / "learning.json").read_text(encoding="utf-8"))
    assert found["claims"]["probe.finetuned.advantage_q_mw-reach"]["holds"]
