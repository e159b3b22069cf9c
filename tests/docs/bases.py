"""Small untrained checkpoints in the place of trained ones, made in a moment."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.language.head import HeadedEncoder
from pipeline.language.head_training import train_head
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.tasks.spec import TaskSpec

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/tiny.yaml"
HEAD = config.Head(dim=32, pieces=1024, typos=1, epochs=2, batch_size=128, lr=3e-3, dropout=0.0)


def make_base(specs: Sequence[TaskSpec], head: bool = False) -> Agent:
    """Return an agent of tests/tiny.yaml's sizes that knows these tasks; with `head` it understands other words."""
    torch.manual_seed(0)
    sizes = config.load(config.Model, TINY)
    encoder = HashedNgrams(sizes.task_dim)
    if head:
        encoder = HeadedEncoder(encoder, train_head(encoder, specs, HEAD, seed=0))
    names, texts = [spec.name for spec in specs], [[spec.text()] for spec in specs]
    embeddings = embed(encoder, names, texts, 1)
    mask = torch.zeros(len(specs), sizes.action_dim)
    for row, spec in zip(mask, specs, strict=True):
        row[: spec.action_dim] = 1
    discount, wide = torch.full((len(specs),), 0.95), (len(specs), sizes.obs_dim)
    vectors = torch.from_numpy(embeddings.vectors)
    table = TaskTable(embeddings.names, vectors, mask, discount, torch.zeros(wide), torch.ones(wide))
    return Agent(WorldModel(sizes), specs, embeddings, table, config.load(config.Planner, TINY))


def prepare(folder: Path) -> None:
    """Put the tests' small parameters and the folder of task files into a working folder; nothing is filmed."""
    text = TINY.read_text(encoding="utf-8")
    assert "video_size: 64" in text
    (folder / "params.yaml").write_text(text.replace("video_size: 64", "video_size: 0"), encoding="utf-8")
    shutil.copytree(ROOT / "my_tasks", folder / "my_tasks")
