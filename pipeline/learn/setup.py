"""The parts of a run (learner, actor, environments, replay), made alike for pretraining, finetuning and adapting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.early_stop import EarlyStop
from pipeline.learn.evaluator import Evaluator
from pipeline.learn.extension import Extension
from pipeline.learn.learner import Learner
from pipeline.learn.online import learn_online, own_environments
from pipeline.learn.replay import ReplayBuffer, from_demos
from pipeline.learn.task_setup import Demonstrations
from pipeline.learn.training_run import TrainingRun
from pipeline.model import products
from pipeline.model.actor import Actor
from pipeline.model.graphs import Graphs
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.run.ranks import Ranks
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv


def product_modes(runtime: config.Runtime, device: torch.device) -> tuple[products.Mode, products.Mode]:
    """Return library and precision of matrix products in updates and in acting.

    Raises:
        ValueError: `runtime` names a library that this machine lacks.
    """
    learning = products.choose(runtime.matmul, device)
    low = runtime.plan_products == "bfloat16" or (runtime.plan_products == "auto" and device.type == "cuda")
    return learning, "bfloat16" if low else learning


def make_graphs(runtime: config.Runtime, device: torch.device) -> Graphs | None:
    """Return what runs updates or plans as CUDA graphs; None where they run as they are."""
    return Graphs(device) if runtime.graphs == "auto" and device.type == "cuda" else None


@dataclass(frozen=True)
class Setup:
    """What the runs of one process share, with a method for each part of a run.

    Attributes:
        model, table: the world model and its tasks, changed in place.
        planner, learning, runtime, seed: settings.
        ranks: the processes of the run.
        folder: for memory-mapped transitions.
        task_weights: sampling weight by task name, 1 for tasks not named; None or empty samples episodes uniformly.
        make_envs: makes environments; called like `VectorEnv`.
        make_actor: makes actors; called like `Actor`.
        make_replay: makes replays; called like `ReplayBuffer`.
        columns: names of `Actor.columns` that the replay stores with each action.
        labels: who says what an expert would do in every state that is collected; None asks nobody.
    """

    model: WorldModel
    table: TaskTable
    planner: config.Planner
    learning: config.Learning
    runtime: config.Runtime
    seed: int
    ranks: Ranks
    folder: Path
    task_weights: Mapping[str, float] | None = None
    make_envs: Callable[..., VectorEnv] = VectorEnv
    make_actor: Callable[..., Actor] = Actor
    make_replay: Callable[..., ReplayBuffer] = ReplayBuffer
    columns: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """O and A."""
        return self.model.config.obs_dim, self.model.config.action_dim

    def learner(self, warmup_updates: int, extensions: Sequence[Extension] = ()) -> Learner:
        """Make the learner.

        Raises:
            ValueError: options of `learning` that do not go with the slices' length.
        """
        mode, _ = product_modes(self.runtime, self.ranks.device)
        graphs = make_graphs(self.runtime, self.ranks.device)
        return Learner(
            self.model, self.table, self.learning, warmup_updates, self.ranks, mode, self.runtime.accumulate,
            extensions, graphs,
        )  # fmt: skip

    def actor(self) -> Actor:
        """Make an actor."""
        _, mode = product_modes(self.runtime, self.ranks.device)
        graphs = make_graphs(self.runtime, self.ranks.device)
        return self.make_actor(self.model, self.table, self.planner, mode, graphs=graphs)

    def run(
        self,
        label: str,
        folder: Path,
        learner: Learner,
        settings: config.Pretrain | config.Finetune,
        specs: Sequence[TaskSpec],
        actor: Actor | None = None,
        plan: bool = False,
        early_stop: EarlyStop | None = None,
    ) -> TrainingRun:
        """Make a run with its evaluations; `TrainingRun` says what the arguments are."""
        evaluator = Evaluator(
            specs, settings.eval_episodes, *self.widths, self.seed + 1, self.runtime.env_workers, self.ranks,
            partial(self.make_envs, timeout=self.runtime.env_timeout),
        )  # fmt: skip
        return TrainingRun(
            label, folder, learner, actor or self.actor(), settings, specs, evaluator, self.runtime, self.seed, plan,
            early_stop,
        )  # fmt: skip

    def learn_online(
        self, run: TrainingRun, settings: config.Finetune, demos: ReplayBuffer | None, specs: Sequence[TaskSpec]
    ) -> ReplayBuffer:
        """Learn online in environments of these tasks; return this rank's replay."""
        if settings.demos_in_replay and self.columns:
            raise ValueError(
                f"demos_in_replay puts demonstrations among own episodes, and {', '.join(self.columns)} is stored with "
                "each own action, which nobody knows of a demonstration: set demos_in_replay to false."
            )
        env_specs = [spec for spec in specs for _ in range(settings.envs_per_task)]
        numbers = own_environments(self.ranks, env_specs)
        capacity = math.ceil(settings.replay_capacity * len(numbers) / len(env_specs))
        place = self._place(f"online-{self.ranks.rank:04d}")
        replay = self.make_replay(
            capacity, *self.widths, self.planner.horizon,
            keep_expert_actions=self.labels is not None or settings.imitated == "intended",
            task_weights=self._weights(), columns=self.columns, **self._targets, **place,
        )  # fmt: skip
        own = [env_specs[number] for number in numbers]
        make_envs = partial(
            self.make_envs, labels=self.labels, timeout=self.runtime.env_timeout,
            first_steps=self.planner.horizon if settings.stagger else None,
        )  # fmt: skip
        with run, make_envs(own, *self.widths, self.seed + 3, self.runtime.env_workers, numbers) as envs:
            learn_online(run, settings, demos, replay, envs, env_specs, self.actor())
        return replay

    def demo_replay(self, demos: Demonstrations) -> ReplayBuffer | None:
        """Put demonstrations into one buffer, held in memory once per machine however many processes read it.

        Rank 0 alone needs `demos`; it writes files that the others map into their memory. None if no task has any.
        """
        ranks, names = self.ranks, self.table.names
        if not ranks.from_main(any(demos.values()) if ranks.is_main else None):
            return None
        horizon, weights = self.planner.horizon, self._weights()
        options = {"make": self.make_replay, "task_weights": weights, **self._targets}
        rows = [(names.index(task), episode) for task, episodes in demos.items() for episode in episodes]
        if ranks.count == 1:
            return from_demos(rows, *self.widths, horizon, **options, **self._place("demos"))
        folder, index = self.folder / "transitions" / "demos", None
        if ranks.is_main:
            index = from_demos(rows, *self.widths, horizon, **options, folder=folder).index_tensors()
        index = ranks.from_main(index)
        size = int((index["episodes"][1] + 1).sum())
        buffer = self.make_replay(
            size, *self.widths, horizon, keep_expert_actions=True, folder=folder, task_weights=weights, attach=True,
            **self._targets,
        )  # fmt: skip
        buffer.load_index(index)
        device = self._place("demos")["device"]
        return buffer if device.type == "cpu" else buffer.copy_to(device)

    @property
    def _targets(self) -> dict:
        """Whether a replay keeps what Q should be, as an argument of it."""
        return {"keep_value_targets": True} if self.learning.value_target == "returns" else {}

    def _place(self, name: str) -> dict:
        """Return where transitions are kept, as arguments of a replay: on the device, in files, or in memory."""
        device = self.ranks.device if self.runtime.replay == "device" else torch.device("cpu")
        return {
            "device": device,
            "folder": self.folder / "transitions" / name if self.runtime.replay == "disk" else None,
        }

    def _weights(self) -> Tensor | None:
        weights = self.task_weights
        return torch.tensor([weights.get(name, 1.0) for name in self.table.names]) if weights else None
