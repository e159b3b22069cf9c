"""The two loops of training: on demonstrations alone, and online. Both save, resume, log and evaluate alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.data.replay import ReplayBuffer, sample_mixture
from pipeline.model.actor import Actor
from pipeline.progress import Progress
from pipeline.shapes import Batch
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv
from pipeline.train import checkpoint
from pipeline.train.constraint import make_constraint
from pipeline.train.early_stop import EarlyStop
from pipeline.train.evaluate import Evaluator
from pipeline.train.interrupt import Interrupt
from pipeline.train.metrics import MetricsLog
from pipeline.train.rollout import Collector
from pipeline.train.step import Learner, Mode


class Loop:
    """What both loops keep beside the learner: random numbers, averages since the last log line, time, the log.

    Args:
        scratch: where the run is saved; a save found there is taken up.
        learner: updated in place.
        actor: plays the evaluations.
        evaluator: plays them.
        seed: of everything drawn.
        plan: evaluate with planning, else the policy alone.
        early_stop: may end the loop after an evaluation.
    """

    def __init__(
        self,
        label: str,
        scratch: Path,
        learner: Learner,
        actor: Actor,
        evaluator: Evaluator,
        seed: int,
        plan: bool = False,
        early_stop: EarlyStop | None = None,
    ):
        self.label, self.scratch, self.learner, self.actor, self.evaluator = label, scratch, learner, actor, evaluator
        self.seed, self.plan = seed, plan
        self.generator = torch.Generator().manual_seed(seed)
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.resumed = checkpoint.load_latest(scratch)
        self.position = 0
        self.seconds_before = 0.0
        if self.resumed:
            self.position, tensors, values = self.resumed
            learner.load_state_tensors(tensors["learner"])
            self.generator.set_state(tensors["loop"].pop("generator"))
            self.sums = tensors["loop"]
            self.num_summed, self.seconds_before = values["num_summed"], values["seconds"]
        self.started = time.monotonic()
        self.log = MetricsLog(scratch / "metrics", self.position)
        self._early_stop = early_stop
        self.stopped = early_stop is not None and self.resumed is not None and early_stop.reached(self.scores)

    @property
    def scores(self) -> list[float]:
        """The mean score of every evaluation so far."""
        return [score for _, score in self.log.history("eval/score")]

    @property
    def seconds(self) -> float:
        """Seconds worked on this loop, over all its resumed runs."""
        return self.seconds_before + time.monotonic() - self.started

    def update(self, batch: Batch, mode: Mode) -> None:
        """Update the learner on one batch and add its metrics to the averages."""
        metrics = self.learner.update(batch.to(self.learner.scale.value.device), mode, self.generator)
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.num_summed += 1

    def log_averages(self, progress: Progress, **more: float) -> None:
        """Log the averages since the last call, and `more`, at the present position."""
        averages = {f"train/{name}": float(value) / self.num_summed for name, value in self.sums.items()}
        self.sums, self.num_summed = {}, 0
        self.log.log(self.position, {**averages, "time/seconds": self.seconds, **more})
        progress.update(0, **{key: averages[f"train/{key}"] for key in ("total_loss",) if f"train/{key}" in averages})

    def evaluate(self, specs: Sequence[TaskSpec], progress: Progress) -> float:
        """Evaluate on all tasks, log scores per task and their mean, and return the mean."""
        self.actor.refresh()
        results = self.evaluator.run(
            self.actor, [spec.name for spec in specs], self.plan, f"{self.label}: evaluating", self.seed + 1
        )
        scores = {f"eval/{spec.name}": result.score for spec, result in zip(specs, results, strict=True)}
        mean = float(np.mean(list(scores.values())))
        self.log.log(
            self.position,
            {
                **scores,
                "eval/score": mean,
                "time/seconds": self.seconds,
                "clock/seconds": self.seconds,
                "clock/updates": self.learner.updates,
            },
        )
        progress.write(f"{self.label}: score {mean:.3f} after {self.position} {progress.unit}")
        if self._early_stop is not None:
            self.stopped = self._early_stop.evaluated(self.scores)
        return mean

    def save(self, tensors: dict[str, dict[str, Tensor]] | None = None, values: dict[str, Any] | None = None) -> None:
        """Save everything needed to go on from here."""
        checkpoint.save(
            self.scratch,
            self.position,
            {
                "learner": self.learner.state_tensors(),
                "loop": {**self.sums, "generator": checkpoint.generator_state(self.generator)},
                **(tensors or {}),
            },
            {"num_summed": self.num_summed, "seconds": self.seconds, **(values or {})},
        )


def learn_offline(
    loop: Loop, settings: config.Pretrain, sample: Callable[[int, torch.Generator], Batch], specs: Sequence[TaskSpec]
) -> None:
    """Learn from demonstrations alone, up to `settings.updates`.

    Args:
        loop: what is updated, saved and logged.
        settings: sizes and intervals.
        sample: draws a batch of a given size from the demonstrations.
        specs: the tasks evaluated.
    """
    with Interrupt() as interrupt, Progress(loop.label, settings.updates, "updates", loop.position) as progress:
        while loop.position < settings.updates and not loop.stopped:
            loop.update(sample(settings.batch_size, loop.generator), "pretrain")
            loop.position += 1
            progress.update(1)
            last = loop.position == settings.updates
            if loop.position % settings.log_every == 0 or last:
                loop.log_averages(progress)
            if loop.position % settings.eval_every == 0 or last:
                loop.evaluate(specs, progress)
            if loop.position % settings.save_every == 0 or last or loop.stopped or interrupt.requested:
                loop.save()
            if interrupt.requested:
                interrupt.leave()


def learn_online(
    loop: Loop,
    settings: config.Finetune,
    demos: ReplayBuffer | None,
    replay: ReplayBuffer,
    envs: VectorEnv,
    env_specs: Sequence[TaskSpec],
    collecting: Actor,
    specs: Sequence[TaskSpec],
) -> None:
    """Learn online, up to `settings.env_steps` over all environments together.

    Args:
        loop: what is updated, saved and logged.
        settings: sizes and intervals.
        demos: demonstrations mixed into every batch; None where there are none.
        replay: takes the collected episodes.
        envs: the environments.
        env_specs: the task of each environment.
        collecting: collects; an actor of its own, since evaluation must not disturb its plans.
        specs: the tasks evaluated.
    """
    loop.learner.lr_scale = settings.lr_scale
    rows = collecting.rows([spec.name for spec in env_specs])
    collector = Collector(env_specs, rows, envs, collecting, replay, settings.imitate, loop.seed + 2)
    constraint = make_constraint(settings, rows, collecting.table.names, loop.seed + 4)
    updates_owed = 0.0
    if loop.resumed:
        _, tensors, values = loop.resumed
        replay.load_state_tensors(tensors["replay"])
        collector.load_state_tensors(tensors["collector"])
        constraint.load_state_tensors(tensors["constraint"])
        constraint.publish(loop.actor.table)
        updates_owed = values["updates_owed"]
    recent: dict[str, list[float]] = defaultdict(list)
    num_envs = len(env_specs)
    fraction = settings.demo_fraction if demos is not None else 0.0

    def save() -> None:
        loop.save(
            {
                "replay": replay.state_tensors(),
                "collector": collector.state_tensors(),
                "constraint": constraint.state_tensors(),
            },
            {"updates_owed": updates_owed},
        )

    with Interrupt() as interrupt, Progress(loop.label, settings.env_steps, "env_steps", loop.position) as progress:
        if loop.position == 0:
            loop.evaluate(specs, progress)
        while loop.position < settings.env_steps and not loop.stopped:
            seeded = bool((collector.episodes >= settings.seeding_episodes).all())
            for episode in collector.step(*constraint.choose(loop.position, seeded)):
                recent[episode.task].append(episode.score)
                constraint.record(episode, seeded)
            before, loop.position = loop.position, loop.position + num_envs
            progress.update(num_envs)
            updates_owed += num_envs * settings.utd if seeded else 0.0
            while updates_owed >= 1:
                updates_owed -= 1
                if demos is None:
                    batch = replay.sample(settings.batch_size, loop.generator)
                else:
                    batch = sample_mixture(demos, replay, settings.batch_size, fraction, loop.generator)
                loop.update(batch, "online")
                collecting.refresh()
            last = loop.position >= settings.env_steps
            if _due(before, loop.position, settings.log_every) or last:
                online = {f"online/{task}": float(np.mean(scores)) for task, scores in recent.items()}
                recent.clear()
                if online:
                    online["online/score"] = float(np.mean(list(online.values())))
                    online |= constraint.metrics()
                loop.log_averages(progress, **online)
            if _due(before, loop.position, settings.eval_every) or last:
                constraint.publish(loop.actor.table)
                loop.evaluate(specs, progress)
            if _due(before, loop.position, settings.save_every) or last or loop.stopped or interrupt.requested:
                save()
            if interrupt.requested:
                interrupt.leave()


def _due(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` was reached between two positions: several environments step at once."""
    return before // every != now // every
