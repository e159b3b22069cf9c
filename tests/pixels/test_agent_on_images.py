"""An agent that observes images: what it takes, what it refuses, and that its encoder belongs to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.play import play
from pipeline.tasks.spec import TaskSpec
from tests.pixels.painter import SIZE

ROOT = Path(__file__).parents[2]


def make_agent(spec: TaskSpec, encoder: Path) -> Agent:
    torch.manual_seed(0)
    sizes = config.load(config.Model, ROOT / "tests/tiny.yaml")
    embeddings = embed(HashedNgrams(sizes.task_dim), [spec.name], [[spec.text()]], 1)
    mask = torch.zeros(1, sizes.action_dim)
    mask[0, : spec.action_dim] = 1
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.9]))
    planner = config.load(config.Planner, ROOT / "tests/tiny.yaml")
    vision = config.Vision("both", str(encoder), SIZE, 8)
    return Agent(WorldModel(sizes), [spec], embeddings, table, planner, vision=vision)


def test_an_agent_acts_on_images_and_says_so(painter: TaskSpec, encoder_folder: Path, tmp_path: Path):
    agent = make_agent(painter, encoder_folder)
    for parameter in agent.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    agent.save_pretrained(tmp_path / "agent")
    agent = Agent.from_pretrained(tmp_path / "agent")
    state, white = np.zeros(2, np.float32), np.full((SIZE, SIZE, 3), 255, np.uint8)
    actions = [agent.act(state, painter.name, plan=False, picture=one) for one in (white, white // 4)]
    assert actions[0] != pytest.approx(actions[1], abs=1e-4)
    agent.reset(2)
    both = agent.act(np.zeros((2, 2)), painter.name, plan=False, picture=np.stack([white, white // 4]))
    np.testing.assert_allclose(both, np.stack(actions), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="give `picture`"):
        agent.act(np.zeros((2, 2)), painter.name)
    with pytest.raises(ValueError, match="1 environments, `obs` of 2"):
        agent.act(np.zeros((2, 2)), painter.name, picture=white)
    (episode,) = play(agent, painter, None, plan=False, seeds=[1])
    assert [frame.shape for frame in episode.frames] == [(SIZE, SIZE, 3)] * 5


def test_a_grown_agent_observes_the_same_images(painter: TaskSpec, encoder_folder: Path, tmp_path: Path):
    make_agent(painter, encoder_folder).save_pretrained(tmp_path / "agent")
    agent = Agent.from_pretrained(tmp_path / "agent")
    unused = agent.grown(45, 5)  # before anything was drawn
    before = agent.pixel_encoder
    grown = agent.grown(45, 5)
    assert grown.vision == unused.vision == agent.vision
    assert grown.pixel_encoder is before
    state, white = np.zeros(2, np.float32), np.full((SIZE, SIZE, 3), 255, np.uint8)
    acted = [one.act(state, painter.name, plan=False, picture=white) for one in (agent, unused, grown)]
    np.testing.assert_allclose(acted[1:], acted[:1] * 2, rtol=1e-4, atol=1e-6)
    grown.save_pretrained(tmp_path / "wider")
    assert Agent.from_pretrained(tmp_path / "wider").vision == agent.vision
    for folder in ("agent", "wider"):  # what it was trained with is kept: another encoder is refused
        other = Agent.from_pretrained(tmp_path / folder)
        other._picture_encoder = "another"
        with pytest.raises(ValueError, match="trained with the image encoder another"):
            _ = other.grown(60, 5).pixel_encoder


def test_another_image_encoder_is_refused(painter: TaskSpec, encoder_folder: Path, tmp_path: Path):
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    make_agent(painter, folder).save_pretrained(tmp_path / "agent")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="trained with the image encoder"):
        _ = Agent.from_pretrained(tmp_path / "agent").pixel_encoder
