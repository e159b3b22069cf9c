"""What a hand has collected on the page teaches a task: `eft adapt --demos` takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.page.hand import Stick
from pipeline.page.record import keep
from pipeline.page.session import Session
from pipeline.tasks import registry
from tests.test_adapt import prepare

pytestmark = pytest.mark.slow  # a simulator runs, and an adapter is trained


def test_an_adapter_is_learned_from_what_a_hand_has_done(tmp_path: Path, monkeypatch, capsys):
    prepare(tmp_path, Path("base"))
    monkeypatch.chdir(tmp_path)
    spec, agent = registry.load_file("swing.yaml"), Agent.from_pretrained("base")
    session = Session(agent, spec, {spec.name: spec}, "hand")  # a task that the agent does not know
    for push in (-1.0, 0.5, 1.0):
        session.stick = Stick(x=push)
        while not session.over:
            session.step()
        keep(Path("mine/demos"), session.recorder.episode())
        session.new_episode()
    session.close()
    assert main(["check-data", "mine/demos", "--folder", "swing.yaml", "--page", "looked-at.html"]) == 0
    assert main(["adapt", "base", "--task", "swing.yaml", "--demos", "mine/demos", "--env-steps", "0", "--no-video",
                 "--output", "out", "--debug"]) == 0  # fmt: skip
    assert json.loads(Path("out/summary.json").read_text())["demos"] == 3
    assert "out" in capsys.readouterr().out
    agent.add_adapter("out")
    assert np.abs(agent.act(np.zeros(3, np.float32), task="swing")).max() <= 1
