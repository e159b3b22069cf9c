"""What both loops, offline and online, have in common: updates, logging, evaluation, saving, resuming, stopping."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.early_stop import EarlyStop
from pipeline.learn.evaluator import Evaluator, GivenUp, Result
from pipeline.learn.learner import Learner, Mode, RateSchedule, UpdateDraws
from pipeline.learn.learner_state import digest, load_state_tensors, state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.device import restore
from pipeline.model.task_table import POLICY, TIED
from pipeline.progress import Progress
from pipeline.run.interrupt import Interrupt
from pipeline.run.metrics import Clock, MetricsLog, memory_mb, start_trackers
from pipeline.run.ranks import RANK_SEEDS
from pipeline.run.saves import Saves
from pipeline.shapes import Batch
from pipeline.tasks.spec import TaskSpec

_MEMBER_SEED = 17


class Savable(Protocol):
    """A part of a run that is saved per rank, beside the learner."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything needed to continue bit for bit."""
        ...


class TrainingRun:
    """One run of learning, from its start or from its last save to its end; `with TrainingRun(...) as run`.

    Args:
        label: of the progress bar.
        folder: where the run is saved; a save found there is resumed.
        learner: updated in place.
        actor: plays the evaluations.
        settings: sizes and intervals of this run.
        specs: the tasks evaluated.
        evaluator: plays them; closed at the end.
        runtime: how many saves are kept, how long a SIGTERM may take, which trackers get the metrics.
        seed: of all random numbers.
        plan: the last evaluation plays both the policy alone and plans, and writes into the task table which of them
            was better on each task.
        early_stop: may end the run after an evaluation. With `plan`, each evaluation then does so.

    Attributes:
        position: updates (learning from demonstrations) or env_steps (online) done.
        resumed: the save that was found, if any.
        stopped: the run is to end before its planned length.
        updates_owed: updates due by the environment steps so far (`utd`) and not made yet; may be fractional.
        parts: what else is saved of this rank, by name.
        replay: of this rank, saved with the run; None where nothing is collected.
        recent: score and return of the episodes since the last log line, by task.
        before_update: called before the batch of an update is sampled.
        on_save: called after each save: what is not saved is computed anew there, as a resumed run does.
    """

    def __init__(
        self,
        label: str,
        folder: Path,
        learner: Learner,
        actor: Actor,
        settings: config.Pretrain | config.Finetune,
        specs: Sequence[TaskSpec],
        evaluator: Evaluator,
        runtime: config.Runtime,
        seed: int,
        plan: bool = False,
        early_stop: EarlyStop | None = None,
    ):
        self.label, self.folder, self.learner, self.actor, self.evaluator = label, folder, learner, actor, evaluator
        self.settings, self.runtime, self.seed, self.ranks = settings, runtime, seed, learner.ranks
        self.online = isinstance(settings, config.Finetune)
        self.total = settings.env_steps if isinstance(settings, config.Finetune) else settings.updates
        self.position, self.stopped, self.updates_owed = 0, False, 0.0
        self.parts: dict[str, Savable] = {}
        self.replay: ReplayBuffer | None = None
        self.measures: list[Callable[[], dict[str, float]]] = []  # what else is logged with the averages
        self.recent: dict[str, list[tuple[float, float]]] = {}
        self.before_update: Callable[[], None] = lambda: None
        self.on_save: Callable[[], None] = lambda: None
        self.clock = Clock()
        self.generator = torch.Generator().manual_seed(seed + RANK_SEEDS * self.ranks.rank)
        # All ranks take the same Q members for their shares of a batch.
        self._members = self.generator if self.ranks.count == 1 else torch.Generator().manual_seed(seed + _MEMBER_SEED)
        # Noise is drawn where it is used: on a GPU, by a generator there.
        device = learner.value_scale.device
        self._noise = self.generator if device.type == "cpu" else torch.Generator(device)
        self._noise.manual_seed(self.generator.initial_seed())
        for extension in learner.extensions:
            extension.start(self.generator)
        self._names, self._plan, self._early_stop = [spec.name for spec in specs], plan, early_stop
        self._sums: dict[str, Tensor] = {}
        self._num_summed = self._batch_size = 0
        self._owes_evaluation, self._seconds_before, self._started = False, 0.0, time.monotonic()
        scale = settings.lr_scale if isinstance(settings, config.Finetune) else 1.0
        learner.rate = RateSchedule(
            learner.learning.lr, scale, settings.warmup_updates, settings.cooldown, max(self.total, 1)
        )
        self.saves = Saves(folder, runtime.keep_saves, self.ranks)
        self.resumed = self.saves.load()
        if self.resumed:
            self._resume()
        self.ranks.check_same("the weights to start from", digest(learner))
        self.log = self._open_log() if self.ranks.is_main else None
        self._logged = self.position, learner.updates
        reached = early_stop is not None and self.resumed is not None and early_stop.reached(self.scores)
        self.stopped = self.ranks.from_main(reached) or self._all_rest

    def __enter__(self) -> TrainingRun:
        with ExitStack() as stack:
            stack.enter_context(self.evaluator)
            self.interrupt = stack.enter_context(Interrupt(self.runtime.stop_seconds))
            unit, quiet = "env_steps" if self.online else "updates", not self.ranks.is_main
            self.progress = stack.enter_context(Progress(self.label, self.total, unit, self.position, quiet=quiet))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not isinstance(error, KeyboardInterrupt):  # who leaves at once leaves the save under way half written
                self.saves.join()
        finally:
            self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    @property
    def unfinished(self) -> bool:
        """Whether there is more to learn."""
        return self.position < self.total and not self.stopped

    @property
    def _all_rest(self) -> bool:
        """Whether every task rests, because all are solved: there is nothing left to play."""
        return not any(map(self.learner.extensions.plays, self._names))

    @property
    def scores(self) -> list[float]:
        """The mean score of every evaluation so far; empty on other ranks than 0."""
        return list(dict(self.logged("eval/score")).values())  # by position: a resume may log one twice

    @property
    def same_ranks(self) -> bool:
        """Whether the save found was written by as many processes as there are now."""
        return self.resumed is not None and self.resumed.num_ranks == self.ranks.count

    @property
    def seconds(self) -> float:
        """Seconds this run has taken, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    # --- updates ------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, mode: Mode) -> None:
        """Update the learner on this rank's share of a batch and add its metrics to the averages."""
        learner = self.learner
        with self.clock.phase("update"):
            batch = batch.to(learner.value_scale.device)
            num_phrasings, num_q = learner.table.num_phrasings, learner.model.config.num_q
            draws = UpdateDraws.sample(batch, num_phrasings, num_q, self._noise, self._members)
            found, summed = learner.update(batch, mode, draws), set(self._sums)
            self._sums |= {name: value.clone() for name, value in found.items() if name not in self._sums}
            if known := [name for name in found if name in summed]:
                both = [self._sums[name] for name in known], [found[name] for name in known]
                added = torch._foreach_add(*both)  # pyright: ignore[reportPrivateImportUsage]
                self._sums |= dict(zip(known, added, strict=True))
            self._num_summed += 1
            self._batch_size = len(batch.task)
        self.show(learner.extensions.lines("after_update"))

    def advance(self, steps: int) -> None:
        """Count updates or env_steps that were made."""
        self.position += steps
        self.progress.update(steps)

    def updates_due(self) -> range:
        """Return the whole updates of `updates_owed`, and subtract them."""
        due = int(self.updates_owed)
        self.updates_owed -= due
        return range(due)

    def show(self, lines: Sequence[str]) -> None:
        """Show lines beside the progress bar."""
        for line in lines:
            self.progress.write(f"{self.label}: {line}; {self.position} {self.progress.unit}")

    # --- the end of each step -----------------------------------------------------------------------------------------

    def log_evaluate_save(self, before: int, stop: bool = False) -> None:
        """End a step that began at position `before`: log, evaluate and save where that is due.

        With `stop`, equal on all ranks, the run was interrupted: save and exit without evaluating.

        Raises:
            OSError: the save before this step could not be written.
        """
        self.saves.check()
        settings, last = self.settings, self.position >= self.total
        if due(before, self.position, settings.log_every) or last:
            self._log_averages()
        self._owes_evaluation = due(before, self.position, settings.eval_every) or last
        if self._owes_evaluation and not stop:
            stop = not self.evaluate()
        if stop:
            self.save_and_leave()
        if due(before, self.position, settings.save_every) or last or self.stopped:
            self.save()
        if not self.unfinished:
            self.saves.finish()

    def evaluate_first(self, always: bool = False) -> None:
        """Evaluate before the first step, if an interrupt cut an evaluation off, or `always`."""
        self._owes_evaluation |= always
        if self._owes_evaluation and not self.evaluate():
            self.interrupt.leave()

    def evaluate(self) -> bool:
        """Evaluate on all tasks and log scores per task and their mean; False if an interrupt cut it off."""
        self.learner.finite.settle(self.learner)
        self.actor.refresh()
        try:
            with self.clock.phase("evaluate"):
                found, plans = self._scores()
        except GivenUp:
            return False
        self._owes_evaluation = False
        mean = float(np.mean(list(found.values())))
        more, lines = self.learner.extensions.on_evaluation(self.ranks.from_main(found))
        if self.log is not None:
            seconds = {"time/seconds": self.seconds, "clock/seconds": self.seconds}
            scores = {f"eval/{name}": score for name, score in found.items()}
            clock = {**seconds, "clock/updates": self.learner.updates}
            self.log.write(self.position, {**scores, "eval/score": mean, **plans, **more, **clock})
        self.progress.write(f"{self.label}: score {mean:.3f} after {self.position} {self.progress.unit}")
        self.show(lines)
        self.stopped |= self._all_rest
        if self._early_stop is not None:
            enough = self._early_stop.evaluated(self.scores) if self.ranks.is_main else None
            self.stopped |= self.ranks.from_main(enough)
        return True

    def _scores(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return each task's score, and as `plans/<task>` that of plans on it where these are judged.

        They are in the end, and wherever a run may stop: whether the agent plans for a task is written into the table.
        """
        alone = self._played(plan=False)
        if not self._plan or not (self._early_stop or self.position >= self.total):
            return {name: result.score for name, result in alone.items()}, {}
        constraint = self.actor.table.constraint
        rows = {name: self.actor.table.names.index(name) for name in self._names}
        for row in rows.values():
            if constraint[row] == POLICY:  # evaluate plans here too, or they would never be tried again
                constraint[row] = TIED
        planned = self._played(plan=True)
        found = {name: planned[name] if planned[name].better_than(alone[name]) else alone[name] for name in self._names}
        for name, row in rows.items():
            if found[name] is alone[name]:
                constraint[row] = POLICY
        plans = {f"plans/{name}": result.score for name, result in planned.items()}
        shown = found if self._early_stop else alone
        return {name: result.score for name, result in shown.items()}, plans

    def _played(self, plan: bool) -> dict[str, Result]:
        results = self.evaluator.run(
            self.actor, self._names, plan, f"{self.label}: evaluating", self.seed + 1, self.interrupt.is_requested
        )
        return dict(zip(self._names, results, strict=True))

    # --- the log ------------------------------------------------------------------------------------------------------

    def _log_averages(self) -> None:
        """Log the averages since the last call, over all ranks, at the present position."""
        self.learner.finite.settle(self.learner)
        total, phases = self.clock.read()
        more = {name: value for measure in self.measures for name, value in measure().items()}
        own = {
            # Sorted, as a save returns them: a resumed run logs the same bytes.
            "means": {name: self._sums[name].double().cpu() / max(self._num_summed, 1) for name in sorted(self._sums)},
            "batch_size": self._batch_size,
            "recent": self.recent,
            "phases": {name: seconds / total for name, seconds in phases.items()},
            "memory": memory_mb(),
        }
        everyone = self.ranks.collect(own)
        self._sums, self._num_summed, self.recent = {}, 0, {}
        position, updates = self._logged
        self._logged = self.position, self.learner.updates
        if self.log is None:
            return
        slices = max(sum(one["batch_size"] for one in everyone), 1)
        means = {
            name: torch.stack([one["batch_size"] / slices * one["means"][name] for one in everyone]).sum(0)
            for name in own["means"]
        }
        scalars = {f"train/{name}": float(value) for name, value in means.items() if value.numel() == 1}
        tables = {name: value.numpy() for name, value in means.items() if value.numel() > 1}
        speed = {
            f"speed/{self.progress.unit}_per_second": (self.position - position) / total,
            "speed/updates_per_second": (self.learner.updates - updates) / total,
        }
        shares = {
            f"time/{name}_share": float(np.mean([one["phases"].get(name, 0.0) for one in everyone])) for name in phases
        }
        memory = {"memory/sum_mb": sum(one["memory"] for one in everyone), "time/seconds": self.seconds}
        episodes = _episodes([one["recent"] for one in everyone])
        described = self.learner.extensions.describe(tables, self.learner.table.names)
        for line in described.lines:
            self.progress.write(f"{self.label}: {line}")
        extra = {**self.learner.extensions.metrics(), **described.metrics}
        row = {**scalars, **episodes, **extra, **more, **speed, **shares, **memory}
        self.log.write(self.position, row, described.tables)
        self.progress.update(
            0, **({"total_loss": scalars["train/total_loss"]} if "train/total_loss" in scalars else {})
        )

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Return what was logged of one metric so far, as (position, value)."""
        return self.log.logged(name) if self.log is not None else []

    def publish(self, target: str | Path) -> None:
        """End the log and put its files where DVC expects them."""
        if self.log is not None:
            self.log.publish(target)

    def _open_log(self) -> MetricsLog:
        parent = self.folder.parent.name
        run = f"{parent}-{self.folder.name}" if parent.startswith("adapt-") else self.folder.name
        about = {"seed": self.seed, "ranks": self.ranks.count}
        trackers = start_trackers(self.runtime.trackers, run, self.position, about)
        log = MetricsLog(self.folder / "metrics", self.position, trackers)
        self.learner.extensions.read_log(list(log.rows()))
        return log

    # --- saves --------------------------------------------------------------------------------------------------------

    def save_and_leave(self) -> None:
        """Save and end the process, after SIGTERM or Ctrl-C."""
        self.save()
        self.saves.finish()
        self.interrupt.leave()

    def save(self) -> None:
        """Begin to save everything needed to go on from here; every rank calls this."""
        with self.clock.phase("save"):
            self._save()
        self.on_save()

    def _save(self) -> None:
        self.learner.finite.settle(self.learner)
        own = {f"sum.{name}": value for name, value in self._sums.items()}
        own |= {"generator": self.generator.get_state().clone(), "members": self._members.get_state().clone()}
        own |= {} if self._noise is self.generator else {"noise": self._noise.get_state().clone()}
        for name, part in self.parts.items():
            own |= {f"{name}.{key}": value for key, value in part.state_tensors().items()}
        own |= self.learner.extensions.state_tensors(of_rank=True)
        common = {
            "seconds": self.seconds, "owes_evaluation": self._owes_evaluation, "updates_owed": self.updates_owed,
        }  # fmt: skip
        counts = {"num_summed": self._num_summed, "batch_size": self._batch_size, "recent": self.recent}
        self.saves.save(self.position, state_tensors(self.learner), (own, counts), common, self.replay)

    def saved_part(self, name: str, rank: int) -> dict[str, Tensor]:
        """Return the saved tensors of one of `parts`, or of an extension, of one rank."""
        assert self.resumed is not None
        tensors, _ = self.resumed.of_rank(rank)
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    def _resume(self) -> None:
        saved = self.resumed
        assert saved is not None
        self.position, self.updates_owed = saved.position, saved.values["updates_owed"]
        load_state_tensors(self.learner, saved.learner())
        self._seconds_before, self._owes_evaluation = saved.values["seconds"], saved.values["owes_evaluation"]
        if self.same_ranks:
            tensors, counts = saved.of_rank(self.ranks.rank)
            self.generator.set_state(tensors["generator"])
            self._members.set_state(tensors["members"])
            if self._noise is not self.generator:
                restore(self._noise, tensors.get("noise", tensors["generator"]))
            sums = {key.removeprefix("sum."): value for key, value in tensors.items() if key.startswith("sum.")}
            self._sums = {name: value.to(self.learner.value_scale.device) for name, value in sums.items()}
            self._num_summed, self._batch_size = counts["num_summed"], counts["batch_size"]
            self.recent = {task: [tuple(one) for one in episodes] for task, episodes in counts["recent"].items()}
            return
        # With another number of ranks: new seeds, or the run would draw the batches of its beginning again.
        for generator in (self.generator, self._noise):
            generator.manual_seed(self.seed + RANK_SEEDS * self.ranks.rank + self.position)
        self._members.manual_seed(self.seed + _MEMBER_SEED + self.position)
        if self.ranks.is_main:
            print(
                f"{self.label}: goes on with {self.ranks.count} processes from a save of {saved.num_ranks}. Weights, "
                "optimisers, schedules and value scale are those of the save. What differs: environments and replayed "
                "episodes are shared out anew, and random numbers (of batches, noise and plans) start from new seeds, "
                "so that the result is not the one of an undisturbed run.",
                file=sys.stderr,
            )


def due(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` was passed between two positions, which may be several steps apart."""
    return before // every != now // every


def _episodes(recent: Sequence[dict[str, list[tuple[float, float]]]]) -> dict[str, float]:
    """Return scores and returns per task, and the mean score over tasks, over the episodes of all ranks."""
    joined: dict[str, list[tuple[float, float]]] = {}
    for part in recent:
        for task, episodes in part.items():
            joined.setdefault(task, []).extend(episodes)
    shown = {}
    for task in sorted(joined):
        score, episode_return = np.mean(joined[task], axis=0)
        shown |= {f"online/{task}": float(score), f"return/{task}": float(episode_return)}
    if joined:
        shown["online/score"] = float(np.mean([shown[f"online/{task}"] for task in joined]))
        shown["online/episodes_sum"] = float(sum(len(episodes) for episodes in joined.values()))
    return shown
