"""The small untrained agent, and a checkpoint of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.agent import Agent
from tests.tiny_agent import make_agent


@pytest.fixture
def agent() -> Agent:
    return make_agent()


@pytest.fixture
def checkpoint(agent: Agent, tmp_path: Path) -> Path:
    agent.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
