"""The base that comes with Eft: it acts straight after a clone, as well as its card says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import config
from pipeline.agent import Agent
from pipeline.files import sha256
from pipeline.play import play
from pipeline.tasks import registry

BASE = Path(__file__).parents[1] / "checkpoints/base"
PLAYED = ("mw-door-close", "mw-window-open", "cartpole-swingup", "walker-stand", "pygame-cowboy", "lunarlander-hover")


@pytest.fixture(scope="module")
def agent() -> Agent:
    return Agent.from_pretrained(BASE)


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, float]]:
    metrics = json.loads((BASE / "metrics.json").read_text(encoding="utf-8"))["scores"]
    assert metrics["weights"]["finetune"] == sha256(BASE / "model.safetensors")
    return metrics["models"]["finetune"]["policy"]


def test_it_is_small_enough_for_git_and_leads_nowhere_else():
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30 * 2**20
    for path in files:
        if path.suffix in (".json", ".md"):
            assert not re.search(r"/(home|root|work|tmp)/", path.read_text(encoding="utf-8")), path


def test_its_card_has_a_score_for_every_task(agent, scores):
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert list(scores) == list(agent.tasks)
    for name, found in scores.items():
        assert f"| {name} | {found['score']:.2f} (" in card
    assert set(agent.tasks) <= {spec.name for spec in registry.load_catalogue().values()}


def test_it_can_be_trained_again_by_its_parameters(agent):
    params = BASE / "params.yaml"
    assert list(config.load(config.Tasks, params).train) == list(agent.tasks)
    for section in (config.Demos, config.Learning, config.Pretrain, config.Finetune, config.Runtime):
        config.load(section, params)


def test_it_understands_a_sentence_that_nobody_trained_on(agent):
    arm = next(spec.embodiment for spec in agent.tasks.values() if spec.name == "mw-window-open")
    assert agent.understand(f"{arm} could you open that window for me").task == "mw-window-open"


@pytest.mark.slow
@pytest.mark.parametrize("task", PLAYED)
def test_it_plays_as_its_card_says(agent, scores, task):
    episodes = list(play(agent, agent.tasks[task], None, plan=False, seeds=range(1000, 1005)))
    found, told = np.mean([episode.score for episode in episodes]), scores[task]
    assert told["low"] - 0.3 <= found <= told["high"] + 0.3
    assert told["score"] > 0.5  # else nothing would be shown
