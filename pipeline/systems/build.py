"""Puts systems together: the model, the extensions of a run, the actor and the replay that belong to it.

The only place that knows all systems. Combinations that no test covers are refused here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline import config
from pipeline.model.actor import Actor
from pipeline.model.graphs import Graphs
from pipeline.model.grow import grow
from pipeline.model.layers import MLP
from pipeline.model.products import Mode
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.systems.mow.clusters import COLUMN, split
from pipeline.systems.scalezero.experts import ExpertMLP

# What a model needs for acting is imported above, what belongs to one system or to learning where it is used.
if TYPE_CHECKING:
    from pipeline.adapters import Adapters
    from pipeline.learn.extension import Extension
    from pipeline.learn.replay import ReplayBuffer
    from pipeline.run.ranks import Ranks


def build_model(sizes: config.Model, dtype: torch.dtype | None = None) -> WorldModel:
    """Make a world model, with experts, history and networks per cluster where `sizes` has them.

    Args:
        sizes: of the model.
        dtype: of its weights; None for torch's default.

    Raises:
        ValueError: the number of clusters is yet to be found, or parts do not go together.
    """
    _check_model(sizes)
    kind = WorldModel
    if sizes.history is not None:
        from pipeline.systems.history.world_model import HistoryWorldModel

        kind = HistoryWorldModel
    model = kind(dataclasses.replace(sizes, clusters=None), partial(_network, sizes.experts))
    if sizes.clusters is not None:
        split(model, sizes.clusters)
    return model if dtype is None else model.of_dtype(dtype)


def grown(model: WorldModel, obs_dim: int, action_dim: int) -> WorldModel:
    """Return a wider copy of a model (`grow`), of the same dtype."""
    return grow(model, obs_dim, action_dim, partial(build_model, dtype=model.bins.dtype))


def plain(model: WorldModel) -> WorldModel:
    """Return the model as it is saved: low-rank stages become part of its matrices."""
    from pipeline.systems.scalezero.staged_lora import merged

    return merged(model, partial(build_model, dtype=model.bins.dtype))


def column_limits(sizes: config.Model) -> dict[str, int]:
    """Return what networks ask of a task beside its text, by name, and the number that each value is below."""
    if sizes.clusters is None or sizes.clusters.num == "auto":
        return {}
    return {COLUMN: sizes.clusters.num}


def task_columns(sizes: config.Model, num_tasks: int) -> dict[str, Tensor]:
    """Return the columns of a new task table: all tasks are in cluster 0 until clusters are found."""
    return {} if sizes.clusters is None else {COLUMN: torch.zeros(num_tasks, dtype=torch.int64)}


def copy_of(columns: Mapping[str, int]) -> int:
    """Return which copy of networks that exist several times computes a task."""
    return columns.get(COLUMN, 0)


def acting_and_replay(sizes: config.Model, learning: config.Learning) -> dict[str, Any]:
    """Return what makes actors and replays, and what a replay keeps of each own action, as `Setup` takes them."""
    return {
        "make_actor": partial(make_actor, clipped=learning.clipped),
        "make_replay": make_replay(sizes),
        "columns": () if learning.clipped is None else ("log_prob",),
    }


def summary(extensions: Sequence[Extension]) -> dict[str, Any]:
    """Return what extensions add to a run's summary.json."""
    return {key: value for extension in extensions for key, value in extension.summary().items()}


def make_actor(
    model: WorldModel,
    table: TaskTable,
    planner: config.Planner,
    mode: Mode = "torch",
    adapters: Adapters | None = None,
    clipped: config.Clipped | None = None,
    graphs: Graphs | None = None,
) -> Actor:
    """Make what acts with a model.

    Args:
        model: the world model.
        table: the tasks, on the model's device.
        planner: settings.
        mode: how products are computed.
        adapters: of the model.
        clipped: collect episodes for this policy step, which needs their log-probabilities.
        graphs: runs whole plans.
    """
    if clipped is not None:
        from pipeline.systems.m3po.actor import M3poActor

        return M3poActor(model, table, planner, mode, adapters, graphs)
    if model.config.history is not None:
        from pipeline.systems.history.actor import HistoryActor

        return HistoryActor(model, table, planner, mode, adapters, graphs)
    return Actor(model, table, planner, mode, adapters, graphs)


def make_replay(sizes: config.Model) -> Callable[..., ReplayBuffer]:
    """Return what makes a replay for a model of these sizes, with the arguments of `ReplayBuffer`."""
    if sizes.history is not None:
        from pipeline.systems.history.replay import ReplayWithPast

        return partial(ReplayWithPast, context=sizes.history.context, by_steps=sizes.termination)
    from pipeline.learn.replay import ReplayBuffer

    return partial(ReplayBuffer, by_steps=sizes.termination)


def offline_extensions(
    model: WorldModel,
    table: TaskTable,
    learning: config.Learning,
    clusters: config.Clusters | None = None,
    demos: ReplayBuffer | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> list[Extension]:
    """Return the extensions of learning from demonstrations alone.

    Args:
        model: the world model.
        table: the tasks.
        learning: says whether tasks are weighed or predicted.
        clusters: to be found on the way; None for none, or where the model has its clusters already.
        demos: demonstrations of every task, which clusters are found on.
        seed: of the run.
        folder: where the found clusters are written.

    Raises:
        ValueError: `learning` asks for what the model cannot do.
    """
    _check_learning(model.config, learning)
    found = _losses(model, table, learning)
    if clusters is not None:
        from pipeline.systems.mow.cluster_extension import ClusterExtension

        assert demos is not None, "clusters are found on demonstrations"
        found.append(ClusterExtension(clusters, demos, seed, folder))
    return found


def online_extensions(
    model: WorldModel,
    table: TaskTable,
    learning: config.Learning,
    scaling: config.Scaling | None = None,
    seed: int = 0,
) -> list[Extension]:
    """Return the extensions of learning online.

    Args:
        model: the world model; with `scaling`, adapters are put into it.
        table: the tasks.
        learning: says whether tasks are weighed or predicted, and whether the policy learns by a clipped ratio.
        scaling: the stages in which the model grows; None for none.
        seed: of the run.

    Raises:
        ValueError: model and policy step do not go together.
    """
    _check_learning(model.config, learning)
    found = _losses(model, table, learning)
    if scaling is not None:
        from pipeline.systems.scalezero.curriculum import Curriculum
        from pipeline.systems.scalezero.staged_lora import StagedLora

        found.append(Curriculum(StagedLora(model, scaling, seed), table.names))
    if learning.clipped is not None:
        from pipeline.systems.m3po.extension import ClippedPolicy

        found.append(ClippedPolicy(learning.clipped))
    return found


def check_pretraining(
    model: config.Model, settings: config.Pretrain, tasks: Sequence[str], without_demos: Sequence[str] = ()
) -> None:
    """Refuse what cannot be learned from demonstrations alone, before anything is trained.

    Args:
        model: sizes, with the clusters that are to be found.
        settings: of the run.
        tasks: all that are trained.
        without_demos: those without demonstrations; the same on every rank.

    Raises:
        ValueError: says what to change.
    """
    _check_model(model)
    if model.clusters is None:
        return
    from pipeline.systems.mow.clustering import check

    check(model.clusters, len(tasks), settings.updates)
    if without_demos:
        raise ValueError(
            f"model.clusters compares gradients on demonstrations, and {', '.join(without_demos)} have none: set it to "
            "null, or leave these tasks out of tasks.train"
        )


def check_finetuning(
    model: config.Model,
    learning: config.Learning,
    settings: config.Finetune,
    tasks: Sequence[str],
    ranks: Ranks,
    num_envs: int,
    has_demos: bool,
) -> None:
    """Refuse what cannot be learned online, before anything is trained.

    Args:
        model: sizes of the model that goes on learning.
        learning: of the run.
        settings: of the run.
        tasks: all that are trained.
        ranks: the processes of the run.
        num_envs: environments of all ranks together.
        has_demos: whether there are demonstrations; the same on every rank.

    Raises:
        ValueError: says what to change.
    """
    _check_learning(model, learning)
    if settings.control and (settings.scaling or learning.clipped or settings.teacher != "off"):
        raise ValueError(
            "finetune.control makes updates on demonstrations alone: finetune.scaling and learning.clipped must be "
            "null and finetune.teacher off, for they act on own episodes."
        )
    if settings.scaling is None:
        return
    from pipeline.systems.scalezero.curriculum import check_targets

    check_targets(settings.scaling, tasks)
    if learning.clipped is not None:
        raise ValueError(
            "finetune.scaling lets solved tasks rest, whose policy is kept by imitating demonstrations, and "
            "learning.clipped learns from new episodes alone: set one of the two to null"
        )
    envs = [len(range(rank, num_envs, ranks.count)) for rank in range(ranks.count)]
    num_demos = round(settings.batch_size * settings.demo_fraction) if has_demos else 0
    if ranks.count > 1 and not all(ranks.shares(num_demos, envs)):
        raise ValueError(
            "finetune.scaling on several processes needs demonstrations for each of them: one whose tasks are all "
            "solved has nothing else to learn from. Raise finetune.demo_fraction, or start one process."
        )


def _check_model(sizes: config.Model) -> None:
    """Refuse parts of a model that do not go together."""
    if sizes.clusters is not None and sizes.history is not None:
        raise ValueError("model.clusters and model.history were never tried together: set one of the two to null")


def _check_learning(model: config.Model, learning: config.Learning) -> None:
    """Refuse targets of Q and a policy step that do not go together with the model."""
    if learning.clipped is not None and model.history is not None:
        raise ValueError(
            "learning.clipped values single steps, and model.history makes dynamics that see past ones: set one of the "
            "two to null"
        )
    if model.history is not None and learning.value_target == "returns":
        raise ValueError(
            "model.history reads past steps, which `learning.value_target: returns` does not give it: set value_target "
            "to td, or history to null"
        )


def _network(experts: config.Experts | None, part: str, *sizes: Any, **more: Any) -> MLP:
    """Make the network of a part: with experts where it is to have them."""
    if experts is None or part not in experts.parts:
        return MLP(*sizes, **more)
    return ExpertMLP(*sizes, **more, experts=experts)


def _losses(model: WorldModel, table: TaskTable, learning: config.Learning) -> list[Extension]:
    """Return the extensions that change the losses alone."""
    from pipeline.systems.mow.task_losses import TaskLosses
    from pipeline.systems.scalezero.expert_use import Experts

    found: list[Extension] = []
    if learning.weighting != "even" or learning.task_id_coef:
        found.append(TaskLosses(len(table.names), model.config.latent_dim, learning))
    if model.config.experts is not None:
        found.append(Experts(model.config.experts))
    return found
