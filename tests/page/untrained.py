"""A small untrained checkpoint of any tasks, made in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.systems.build import build_model
from pipeline.tasks.spec import TaskSpec

TINY = Path(__file__).parent.parent / "tiny.yaml"


def make_agent(specs: Sequence[TaskSpec], **more: Any) -> Agent:
    """Make an agent that knows some tasks; `more` are fields of `config.Model`."""
    torch.manual_seed(0)
    widths = {"obs_dim": max(spec.obs_dim for spec in specs), "action_dim": max(spec.action_dim for spec in specs)}
    sizes = replace(config.load(config.Model, TINY), **widths, **more)
    names, texts = [spec.name for spec in specs], [[spec.text()] for spec in specs]
    embeddings = embed(HashedNgrams(sizes.task_dim), names, texts, 1)
    mask = torch.zeros(len(specs), sizes.action_dim)
    for row, spec in zip(mask, specs, strict=True):
        row[: spec.action_dim] = 1
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.full((len(specs),), 0.95))
    return Agent(build_model(sizes), list(specs), embeddings, table, config.load(config.Planner, TINY))
