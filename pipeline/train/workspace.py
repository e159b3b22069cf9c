"""What the training stages share: tasks, their embeddings, the task table, demonstrations, where things lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import config
from pipeline.data.demos import load_demos
from pipeline.data.replay import ReplayBuffer, from_demos
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.model.task_table import TaskTable
from pipeline.progress import Progress
from pipeline.tasks.spec import TaskSpec
from pipeline.train.schedules import discount

DEMOS = Path("datasets/demos")
EMBEDDINGS = Path("datasets/task_embeddings")
CHECKPOINTS = Path("checkpoints")


def load_embeddings(specs: Sequence[TaskSpec]) -> TaskEmbeddings:
    """Load the embeddings of these tasks.

    Raises:
        FileNotFoundError, ValueError: they were not made, or from other texts than today's.
    """
    embeddings = TaskEmbeddings.load(EMBEDDINGS)
    names = [spec.name for spec in specs]
    embeddings.check(names, [texts(spec) for spec in specs], embeddings.encoder)
    return embeddings.select(names)


def texts(spec: TaskSpec) -> list[str]:
    """Return all texts of a task, the canonical one first."""
    return [spec.text(phrasing) for phrasing in range(len(spec.instructions))]


def task_table(
    specs: Sequence[TaskSpec], embeddings: TaskEmbeddings, model: config.Model, learning: config.Learning
) -> TaskTable:
    """Build the table of embeddings, action masks and discounts that training reads, one row per task.

    Raises:
        ValueError: a task is wider than the model, or the embeddings have another width than model.task_dim.
    """
    if embeddings.dim != model.task_dim:
        raise ValueError(
            f"the text encoder {embeddings.encoder} gives vectors of {embeddings.dim} values, model.task_dim is "
            f"{model.task_dim}: set it to {embeddings.dim}"
        )
    mask = torch.zeros(len(specs), model.action_dim)
    for row, spec in enumerate(specs):
        if spec.action_dim > model.action_dim or spec.obs_dim > model.obs_dim:
            raise ValueError(
                f"{spec.name} has {spec.obs_dim} observation and {spec.action_dim} action dims, model.obs_dim is "
                f"{model.obs_dim} and model.action_dim {model.action_dim}: raise them or leave the task out"
            )
        mask[row, : spec.action_dim] = 1
    discounts = [task_discount(spec, learning) for spec in specs]
    return TaskTable(
        tuple(spec.name for spec in specs),
        torch.from_numpy(embeddings.select([spec.name for spec in specs]).vectors),
        mask,
        torch.tensor(discounts, dtype=torch.float32),
    )


def task_discount(spec: TaskSpec, learning: config.Learning) -> float:
    """Return a task's discount: its own, or the one its episode length gives."""
    if spec.discount is not None:
        return spec.discount
    return discount(spec.episode_length, learning.discount_min, learning.discount_max)


def load_demo_buffer(specs: Sequence[TaskSpec], rows: Sequence[int], model: config.Model, horizon: int) -> ReplayBuffer:
    """Load the demonstrations of these tasks into one buffer; `rows` are their rows in the task table."""
    episodes = []
    with Progress("loading demonstrations", len(specs), "tasks") as progress:
        for row, spec in zip(rows, specs, strict=True):
            episodes += [(row, episode) for episode in load_demos(DEMOS, spec.name)]
            progress.update(1)
    return from_demos(episodes, model.obs_dim, model.action_dim, horizon)
