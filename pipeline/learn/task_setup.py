"""Builds the task table of a run: text embeddings, action masks, discounts, observation statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.data.episode import Episode
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.model.task_table import TaskTable
from pipeline.progress import Progress
from pipeline.run.ranks import Ranks
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec

DEMOS = Path("datasets/demos")
EMBEDDINGS = Path("datasets/task_embeddings")
CHECKPOINTS = Path("checkpoints")
_SMALLEST_STD = 1e-3  # of an observation dim that is scaled

Demonstrations = dict[str, list[Episode]]


def load_embeddings(specs: Sequence[TaskSpec]) -> TaskEmbeddings:
    """Load the embeddings of these tasks.

    Raises:
        FileNotFoundError, ValueError: they were not made, or from other texts than today's.
    """
    embeddings = TaskEmbeddings.load(EMBEDDINGS)
    names = [spec.name for spec in specs]
    training, unseen = [spec.training_texts() for spec in specs], [spec.unseen_text() for spec in specs]
    embeddings.check(names, training, embeddings.encoder, unseen)
    return embeddings.select(names)


def task_table(
    specs: Sequence[TaskSpec],
    embeddings: TaskEmbeddings,
    demos: Demonstrations,
    model: config.Model,
    learning: config.Learning,
    seed: int = 0,
    width_of: Callable[[TaskSpec], int] = lambda spec: spec.obs_dim,
    columns: Mapping[str, Tensor] | None = None,
) -> TaskTable:
    """Build the task table, one row per task.

    Args:
        specs: the n tasks.
        embeddings: of their texts.
        demos: demonstrations by task, with observations as the model gets them.
        model: sizes.
        learning: bounds of the discount, and whether observations are normalised.
        seed: of the episodes of random actions that stand in for missing demonstrations.
        width_of: how many values a task observes.
        columns: (n,) int64 each, further indices of a task that some network reads.

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
        spec.check_width(model.obs_dim, width_of(spec))
        if spec.action_dim > model.action_dim:
            raise ValueError(
                f"{spec.name} has {spec.action_dim} action dims, model.action_dim is {model.action_dim}: raise it or "
                "leave the task out"
            )
        mask[row, : spec.action_dim] = 1
    discounts = [task_discount(spec, learning) for spec in specs]
    return TaskTable(
        tuple(spec.name for spec in specs),
        torch.from_numpy(embeddings.select([spec.name for spec in specs]).vectors),
        mask,
        torch.tensor(discounts, dtype=torch.float32),
        *(observation_statistics(specs, demos, model.obs_dim, seed) if learning.normalize_obs else (None, None)),
        columns=dict(columns or {}),
    )


def task_discount(spec: TaskSpec, learning: config.Learning) -> float:
    """Return a task's discount: its own, or the one its episode length gives."""
    if spec.discount is not None:
        return spec.discount
    return discount(spec.episode_length, learning.discount_min, learning.discount_max)


def discount(episode_length: int, low: float, high: float) -> float:
    """Return the discount of a task whose episodes take `episode_length` agent steps.

    One fifth of the episode is the time the agent looks ahead: gamma = clip((L/5 - 1) / (L/5), low, high).

    Source: TD-MPC2 (arXiv 2310.16828), appendix.
    """
    if episode_length < 1:
        raise ValueError(f"an episode takes at least 1 agent step, not {episode_length}")
    fifth = episode_length / 5
    return min(max((fifth - 1) / fifth, low), high)


def load_demonstrations(
    specs: Sequence[TaskSpec],
    ranks: Ranks | None = None,
    observe: Callable[[TaskSpec, list[Episode]], list[Episode]] = lambda spec, episodes: episodes,
) -> Demonstrations:
    """Load demonstrations by their task; of several processes, rank 0 alone does.

    `observe` turns a task's demonstrations into what is observed. A task that was collected without any has an empty
    list.
    """
    from pipeline.data.demos import load_demos  # an agent that acts needs no parquet

    demos: Demonstrations = {}
    if ranks is not None and not ranks.is_main:
        return demos
    with Progress("loading demonstrations", len(specs), "tasks") as progress:
        for spec in specs:
            episodes = load_demos(DEMOS, spec.name)
            demos[spec.name] = observe(spec, episodes) if episodes else []
            progress.update(1)
    return demos


def observation_statistics(
    specs: Sequence[TaskSpec], demos: Demonstrations, obs_dim: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return mean and std (n, O) of what each task's body observes in the demonstrations.

    Tasks of one embodiment and width share them, since their observations cannot be told apart. A body without
    demonstrations gets those of one episode of random actions. Dims that hardly vary are not rescaled, which would
    amplify noise; padding stays 0.
    """
    mean, std = torch.zeros(len(specs), obs_dim), torch.ones(len(specs), obs_dim)
    for body in {(spec.embodiment, spec.obs_dim) for spec in specs}:
        rows = [row for row, spec in enumerate(specs) if (spec.embodiment, spec.obs_dim) == body]
        obs = [torch.from_numpy(e.obs) for row in rows for e in demos[specs[row].name]]
        if obs:
            mean[rows], std[rows] = statistics_of(torch.cat(obs), obs_dim)
            continue
        mean[rows], std[rows] = observed_at_random(specs[rows[0]], obs_dim, seed)
    return mean, std


def statistics_of(obs: Tensor, obs_dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, O) of observations (L, o): dims that hardly vary get std 1, padding stays 0."""
    mean, std = torch.zeros(1, obs_dim), torch.ones(1, obs_dim)
    body_std, body_mean = torch.std_mean(obs, dim=0)
    mean[:, : obs.shape[1]] = body_mean
    std[:, : obs.shape[1]] = torch.where(body_std < _SMALLEST_STD, 1.0, body_std)
    return mean, std


def observed_at_random(spec: TaskSpec, obs_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, O) of observations under random actions: of an episode, or of several that end early."""
    env = make(spec, spec.obs_dim, spec.action_dim)
    draw = np.random.default_rng(seed)
    seen: list[np.ndarray] = []
    try:
        while len(seen) <= spec.episode_length:
            obs, _ = env.reset(seed=seed + len(seen))
            seen.append(obs)
            done = False
            while not done:
                obs, _, terminated, truncated, _ = env.step(draw.uniform(-1, 1, spec.action_dim).astype(np.float32))
                seen.append(obs)
                done = terminated or truncated
    finally:
        env.close()
    return statistics_of(torch.from_numpy(np.stack(seen)), obs_dim)
