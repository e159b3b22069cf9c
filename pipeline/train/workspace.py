"""What the training stages share: tasks, their embeddings, the task table, demonstrations, where things lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.data.demos import load_demos
from pipeline.data.episode import Episode
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.learn.replay import ReplayBuffer, from_demos
from pipeline.model.task_table import TaskTable
from pipeline.progress import Progress
from pipeline.systems.history.replay import ReplayWithPast
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.train.ranks import Ranks
from pipeline.train.schedules import discount
from pipeline.train.seeing import check_width, seen
from pipeline.vision.sight import Sight

DEMOS = Path("datasets/demos")
EMBEDDINGS = Path("datasets/task_embeddings")
PICTURE_VECTORS = Path("datasets/picture_vectors")
CHECKPOINTS = Path("checkpoints")
_SMALLEST_STD = 1e-3  # of an observation dim that is scaled


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
    demos: dict[str, list[Episode]],
    model: config.Model,
    learning: config.Learning,
    sight: Sight | None = None,
    seed: int = 0,
) -> TaskTable:
    """Build the table of all that training reads of the tasks, one row each.

    Raises:
        ValueError: a task is wider than the model, the embeddings have another width than model.task_dim, or a body
            that is seen in pictures has no demonstrations.
    """
    if embeddings.dim != model.task_dim:
        raise ValueError(
            f"the text encoder {embeddings.encoder} gives vectors of {embeddings.dim} values, model.task_dim is "
            f"{model.task_dim}: set it to {embeddings.dim}"
        )
    mask = torch.zeros(len(specs), model.action_dim)
    for row, spec in enumerate(specs):
        check_width(spec, sight, model.obs_dim)
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
        *(observation_statistics(specs, demos, model.obs_dim, sight, seed) if learning.normalize_obs else (None, None)),
    )


def task_discount(spec: TaskSpec, learning: config.Learning) -> float:
    """Return a task's discount: its own, or the one its episode length gives."""
    if spec.discount is not None:
        return spec.discount
    return discount(spec.episode_length, learning.discount_min, learning.discount_max)


def load_demonstrations(
    specs: Sequence[TaskSpec], ranks: Ranks | None = None, sight: Sight | None = None
) -> dict[str, list[Episode]]:
    """Load demonstrations by their task, as they are observed; of several processes, rank 0 alone does.

    A task that the collection went on without has an empty list.
    """
    demos: dict[str, list[Episode]] = {}
    if ranks is not None and not ranks.is_main:
        return demos
    with Progress("loading demonstrations", len(specs), "tasks") as progress:
        for spec in specs:
            episodes = load_demos(DEMOS, spec.name)
            demos[spec.name] = seen(PICTURE_VECTORS, DEMOS, spec, episodes, sight) if sight and episodes else episodes
            progress.update(1)
    return demos


class ReplayPlace(NamedTuple):
    """Where the transitions of a run are kept, and how often each task's are drawn."""

    device: torch.device
    folder: Path | None  # of memory-mapped files
    task_weights: Tensor | None  # (n,) by row of the task table


def replay_place(
    runtime: config.Runtime,
    device: torch.device,
    scratch: Path,
    names: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
) -> ReplayPlace:
    """Say where transitions are kept.

    Args:
        runtime: what was chosen.
        device: the model's.
        scratch: the run's scratch folder, which takes the files.
        names: those of the task table, in its order.
        weights: by task name, others 1; none of them leaves each episode as likely as any other.
    """
    return ReplayPlace(
        device if runtime.replay == "device" else torch.device("cpu"),
        scratch / "transitions" if runtime.replay == "disk" else None,
        torch.tensor([weights.get(name, 1.0) for name in names]) if weights else None,
    )


def shared_demo_buffer(
    ranks: Ranks,
    demos: dict[str, list[Episode]],
    names: Sequence[str],
    model: config.Model,
    horizon: int,
    place: ReplayPlace,
    scratch: Path,
) -> ReplayBuffer | None:
    """Put demonstrations into one buffer, held in memory once per machine however many processes read it.

    Rank 0 alone needs `demos`; it writes files that the others map into their memory. None if no task has any.
    """
    if not ranks.from_main(any(demos.values()) if ranks.is_main else None):
        return None
    if ranks.count == 1:
        return demo_buffer(demos, names, model, horizon, place)
    folder = scratch / "transitions" / "demos"
    index = None
    if ranks.is_main:
        on_cpu = place._replace(device=torch.device("cpu"), folder=folder.parent)
        index = demo_buffer(demos, names, model, horizon, on_cpu).index_tensors()
    index = ranks.from_main(index)
    rows = int((index["episodes"][1] + 1).sum())
    widths = model.obs_dim, model.action_dim
    buffer = _buffer_class(model)(
        rows,
        *widths,
        horizon,
        keep_expert_actions=True,
        folder=folder,
        task_weights=place.task_weights,
        attach=True,
    )
    buffer.load_index(index)
    return buffer if place.device.type == "cpu" else buffer.copy_to(place.device)


def demo_buffer(
    demos: dict[str, list[Episode]], names: Sequence[str], model: config.Model, horizon: int, place: ReplayPlace
) -> ReplayBuffer:
    """Put demonstrations into one buffer; `names` are those of the task table, in its order."""
    rows = [(names.index(task), episode) for task, episodes in demos.items() for episode in episodes]
    folder = place.folder / "demos" if place.folder else None
    return from_demos(
        rows,
        model.obs_dim,
        model.action_dim,
        horizon,
        make=_buffer_class(model),
        device=place.device,
        folder=folder,
        task_weights=place.task_weights,
    )


def online_buffer(
    capacity: int,
    model: config.Model,
    horizon: int,
    place: ReplayPlace,
    rank: int = 0,
    clipped: config.Clipped | None = None,
) -> ReplayBuffer:
    """Make the buffer that takes what is collected by one rank, with log-probabilities where a policy needs them."""
    folder = place.folder / f"online-{rank:04d}" if place.folder else None
    return _buffer_class(model)(
        capacity,
        model.obs_dim,
        model.action_dim,
        horizon,
        device=place.device,
        folder=folder,
        task_weights=place.task_weights,
        columns=("log_prob",) if clipped else (),
    )


def _buffer_class(model: config.Model) -> Callable[..., ReplayBuffer]:
    """Return what makes a buffer whose slices hold what the model reads."""
    return partial(ReplayWithPast, context=model.history.context) if model.history else ReplayBuffer


def observation_statistics(
    specs: Sequence[TaskSpec],
    demos: dict[str, list[Episode]],
    obs_dim: int,
    sight: Sight | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return mean and std (n, O) of what each task's body observes in the demonstrations.

    Tasks with the same embodiment and width share them: nothing in an observation tells which of the two it came from.
    A body without demonstrations has those of one episode of random actions. Dims that hardly move keep their scale,
    so that noise is not blown up; padding stays 0.

    Raises:
        ValueError: a body without demonstrations is seen in pictures.
    """
    mean, std = torch.zeros(len(specs), obs_dim), torch.ones(len(specs), obs_dim)
    for body in {(spec.embodiment, spec.obs_dim) for spec in specs}:
        rows = [row for row, spec in enumerate(specs) if (spec.embodiment, spec.obs_dim) == body]
        obs = [torch.from_numpy(e.obs) for row in rows for e in demos[specs[row].name]]
        if obs:
            mean[rows], std[rows] = statistics_of(torch.cat(obs), obs_dim)
            continue
        first = specs[rows[0]]
        if sight:
            raise ValueError(
                f"an agent that sees needs demonstrations of {first.name}: how its pictures vary is unknown"
            )
        mean[rows], std[rows] = observed_at_random(first, obs_dim, seed)
    return mean, std


def statistics_of(obs: Tensor, obs_dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, O) of observations (L, o): dims that hardly move keep their scale, padding stays 0."""
    mean, std = torch.zeros(1, obs_dim), torch.ones(1, obs_dim)
    body_std, body_mean = torch.std_mean(obs, dim=0)
    mean[:, : obs.shape[1]] = body_mean
    std[:, : obs.shape[1]] = torch.where(body_std < _SMALLEST_STD, 1.0, body_std)
    return mean, std


def observed_at_random(spec: TaskSpec, obs_dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, O) of the observations in one episode of random actions."""
    env = make(spec, spec.obs_dim, spec.action_dim)
    draw = np.random.default_rng(seed)
    try:
        obs, _ = env.reset(seed=seed)
        seen, done = [obs], False
        while not done:
            obs, _, terminated, truncated, _ = env.step(draw.uniform(-1, 1, spec.action_dim).astype(np.float32))
            seen.append(obs)
            done = terminated or truncated
    finally:
        env.close()
    return statistics_of(torch.from_numpy(np.stack(seen)), obs_dim)
