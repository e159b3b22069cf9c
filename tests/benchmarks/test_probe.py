"""What is asked of a checkpoint, where there is no answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import probe
from pipeline.data.episode import Episode
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
