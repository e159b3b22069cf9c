"""What both training loops keep beside the learner, and what they do alike: log, evaluate, save, resume, leave."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.task_table import POLICY, TIED
from pipeline.progress import Progress
from pipeline.shapes import Batch
from pipeline.tasks.spec import TaskSpec
from pipeline.train.checkpoint import Saves
from pipeline.train.early_stop import EarlyStop
from pipeline.train.evaluate import Evaluator, GivenUp
from pipeline.train.expert_use import PREFIX, TABLE, RouterWatch, overall, table_rows
from pipeline.train.interrupt import Interrupt
from pipeline.train.metrics import Clock, MetricsLog, memory_mb, start_trackers
from pipeline.train.objective import UpdateDraws
from pipeline.train.ranks import Ranks
from pipeline.train.step import Learner, Mode

RANK_SEEDS = 1_000_003  # apart, so that no rank draws what another one, or another use of the seed, draws
_MEMBER_SEED = 17


class Loop:
    """The state of a training loop: random numbers, averages since the last log line, time, the log, the saves.

    Args:
        label: of the progress bar.
        scratch: where the run is saved; a save found there is taken up.
        learner: updated in place.
        actor: plays the evaluations.
        evaluator: plays them.
        seed: of everything drawn.
        runtime: how many saves are kept, how long a SIGTERM may take, which trackers are told.
        ranks: the processes of the run.
        plan: evaluate with planning, else the policy alone.
        early_stop: may end the loop after an evaluation. Where evaluations plan too, each then decides per task, from
            its own scores, whether the policy does better alone, and writes that into the table.

    Attributes:
        stopped: whether it did.
        heed: told the scores by task of every evaluation, on every rank alike; returns what is logged beside them.
    """

    def __init__(
        self,
        label: str,
        scratch: Path,
        learner: Learner,
        actor: Actor,
        evaluator: Evaluator,
        seed: int,
        runtime: config.Runtime,
        ranks: Ranks | None = None,
        plan: bool = False,
        early_stop: EarlyStop | None = None,
    ):
        self.label, self.scratch, self.learner, self.actor, self.evaluator = label, scratch, learner, actor, evaluator
        self.seed, self.plan, self.runtime, self.ranks = seed, plan, runtime, ranks or Ranks()
        self.generator = torch.Generator().manual_seed(seed + RANK_SEEDS * self.ranks.rank)
        # All ranks take the same Q members for their shares of a batch.
        self.members = self.generator if self.ranks.count == 1 else torch.Generator().manual_seed(seed + _MEMBER_SEED)
        self.sums: dict[str, Tensor] = {}
        self.num_summed = self.batch_size = 0
        self.position = 0
        self.owes_evaluation = False
        self.recent: dict[str, list[tuple[float, float]]] = {}  # score and return of the episodes since the last line
        self.clock = Clock()
        self.saves = Saves(scratch, runtime.keep_saves, self.ranks)
        self.resumed = self.saves.load()
        self._seconds_before = 0.0
        self._started = time.monotonic()
        if self.resumed:
            self._take_up()
        self.ranks.check_same("the weights to start from", _digest(learner))
        self.log: MetricsLog | None = None
        if self.ranks.is_main:
            run = f"{scratch.parent.name}-{scratch.name}" if scratch.parent.name.startswith("adapt-") else scratch.name
            trackers = start_trackers(runtime.trackers, run, self.position, {"seed": seed, "ranks": self.ranks.count})
            self.log = MetricsLog(scratch / "metrics", self.position, trackers)
        self._routers = RouterWatch(self.log.table(TABLE) if self.log is not None else ())
        self._logged = self.position, learner.updates
        self._early_stop = early_stop
        reached = early_stop is not None and self.resumed is not None and early_stop.reached(self.scores)
        self.stopped = self.ranks.from_main(reached)
        self.heed: Callable[[dict[str, float]], dict[str, float]] | None = None

    @property
    def scores(self) -> list[float]:
        """The mean score of every evaluation so far; known to rank 0."""
        return list(dict(self.history("eval/score")).values())  # once each: one that was owed may be logged twice

    @property
    def same_ranks(self) -> bool:
        """Whether the save taken up was written by as many processes as there are now."""
        return self.resumed is not None and self.resumed.num_ranks == self.ranks.count

    @property
    def seconds(self) -> float:
        """Seconds worked on this loop, over all its resumed runs."""
        return self._seconds_before + time.monotonic() - self._started

    def update(self, batch: Batch, mode: Mode) -> None:
        """Update the learner on this rank's share of a batch and add its metrics to the averages."""
        with self.clock.phase("update"):
            batch = batch.to(self.learner.scale.value.device)
            table, num_q = self.learner.table, self.learner.model.config.num_q
            draws = UpdateDraws.sample(batch, table.num_phrasings, num_q, self.generator, self.members)
            metrics = self.learner.update(batch, mode, draws)
            for name, value in metrics.items():
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.num_summed += 1
            self.batch_size = len(batch.task)

    def settle(
        self,
        before: int,
        total: int,
        settings: config.Pretrain | config.Finetune,
        specs: Sequence[TaskSpec],
        progress: Progress,
        interrupt: Interrupt,
        save: Callable[[], None],
        measure: Callable[[], dict[str, float]] = dict,
        stop: bool = False,
    ) -> None:
        """End a step of the loop: log, evaluate, save and leave where it is time for that.

        Args:
            before: position before the step.
            total: position at which the loop ends.
            settings: the intervals.
            specs: the tasks evaluated.
            progress: of the loop.
            interrupt: may ask to leave.
            save: saves everything; also asked for before leaving.
            measure: gives what else is logged; called on every rank, its values are those of rank 0.
            stop: some rank is to leave, as all have agreed.
        """
        last = self.position >= total
        if due(before, self.position, settings.log_every) or last:
            self.log_averages(progress, settings, measure())
        self.owes_evaluation = due(before, self.position, settings.eval_every) or last
        if self.owes_evaluation and not stop:
            stop = not self.evaluate(specs, progress, interrupt)
        if due(before, self.position, settings.save_every) or last or stop or self.stopped:
            with self.clock.phase("save"):
                save()
        if stop:
            interrupt.leave()

    def log_averages(
        self, progress: Progress, settings: config.Pretrain | config.Finetune, more: dict[str, float]
    ) -> None:
        """Log the averages since the last call, and `more`, at the present position."""
        total, phases = self.clock.read()
        use = {
            name: value.double().cpu().numpy() / max(self.num_summed, 1)
            for name, value in self.sums.items()
            if name.startswith(PREFIX)
        }
        own = {
            "train": {
                name: float(value) / max(self.num_summed, 1) for name, value in self.sums.items() if name not in use
            },
            "experts": use,
            "batch_size": self.batch_size,
            "recent": self.recent,
            "phases": {name: seconds / total for name, seconds in phases.items()},
            "memory": memory_mb(),
        }
        everyone = self.ranks.collect(own)
        self.sums, self.num_summed, self.recent = {}, 0, {}
        position, updates = self._logged
        self._logged = self.position, self.learner.updates
        if self.log is None:
            return
        slices = sum(one["batch_size"] for one in everyone)
        averages = {
            f"train/{name}": sum(one["train"][name] * one["batch_size"] for one in everyone) / slices
            for name in own["train"]
        }
        speed = {
            f"speed/{progress.unit}_per_second": (self.position - position) / total,
            "speed/updates_per_second": (self.learner.updates - updates) / total,
        }
        phases = {
            f"time/{name}_share": float(np.mean([one["phases"].get(name, 0.0) for one in everyone])) for name in phases
        }
        memory = {"memory/sum_mb": sum(one["memory"] for one in everyone)}
        episodes = _episodes([one["recent"] for one in everyone])
        scales = {f"harmony/{task}": scale for task, scale in self.learner.task_scales().items()}
        joint = {
            name: np.sum([one["experts"][name] * one["batch_size"] for one in everyone], 0) / slices for name in use
        }
        experts = self._log_experts(joint, progress) if joint else {}
        self.log.log(
            self.position,
            {
                **averages,
                **episodes,
                **scales,
                **more,
                **experts,
                **speed,
                **phases,
                **memory,
                "time/seconds": self.seconds,
            },
        )
        progress.update(0, **{key: averages[f"train/{key}"] for key in ("total_loss",) if f"train/{key}" in averages})

    def _log_experts(self, joint: dict[str, np.ndarray], progress: Progress) -> dict[str, float]:
        """Write down which tasks use which experts, say if a router has collapsed; return what else is to be logged."""
        assert self.log is not None
        rows = table_rows(joint, self.learner.table.names)
        self.log.append(TABLE, self.position, rows)
        shares = overall(rows)
        for line in self._routers.see(shares):
            progress.write(f"{self.label}: {line}")
        largest = {f"{PREFIX}{layer}_largest_share": float(share.max()) for layer, share in shares.items()}
        return largest | {f"{PREFIX}{layer}_smallest_share": float(share.min()) for layer, share in shares.items()}

    def evaluate(self, specs: Sequence[TaskSpec], progress: Progress, interrupt: Interrupt) -> bool:
        """Evaluate on all tasks and log scores per task and their mean; False if it was given up for an interrupt."""
        self.actor.refresh()
        told = [spec.name for spec in specs]
        try:
            with self.clock.phase("evaluate"):
                found = self._play(told, interrupt)
        except GivenUp:
            return False
        self.owes_evaluation = False
        scores, mean = {f"eval/{name}": score for name, score in found.items()}, float(np.mean(list(found.values())))
        more = {} if self.heed is None else self.heed(self.ranks.from_main(found))
        if self.log is not None:
            self.log.log(
                self.position,
                {
                    **scores,
                    "eval/score": mean,
                    **more,
                    "time/seconds": self.seconds,
                    "clock/seconds": self.seconds,
                    "clock/updates": self.learner.updates,
                },
            )
        progress.write(f"{self.label}: score {mean:.3f} after {self.position} {progress.unit}")
        if self._early_stop is not None:
            self.stopped = self.ranks.from_main(self._early_stop.evaluated(self.scores) if self.ranks.is_main else None)
        return True

    def _play(self, told: Sequence[str], interrupt: Interrupt) -> dict[str, float]:
        """Return each task's score, and leave in the table how it is to be acted."""

        def scores(plan: bool) -> dict[str, float]:
            stopped = lambda: interrupt.requested is not None  # noqa: E731
            label = f"{self.label}: evaluating"
            results = self.evaluator.run(self.actor, told, plan, label, self.seed + 1, stopped)
            return {name: result.score for name, result in zip(told, results, strict=True)}

        if not (self.plan and self._early_stop):
            return scores(self.plan)
        alone = scores(plan=False)
        constraint = self.actor.table.constraint
        rows = {name: self.actor.table.names.index(name) for name in told}
        for row in rows.values():
            if constraint[row] == POLICY:  # else plans would never be tried again
                constraint[row] = TIED
        planned = scores(plan=True)
        for name, row in rows.items():
            if alone[name] > planned[name]:
                constraint[row] = POLICY
        return {name: max(alone[name], planned[name]) for name in told}

    def save(
        self,
        of_rank: dict[str, Tensor] | None = None,
        values: dict[str, Any] | None = None,
        replay: ReplayBuffer | None = None,
    ) -> None:
        """Save everything needed to go on from here; every rank calls this."""
        own = {
            **{f"sum.{name}": value for name, value in self.sums.items()},
            "generator": self.generator.get_state().clone(),
            "members": self.members.get_state().clone(),
            **(of_rank or {}),
        }
        common = {"seconds": self.seconds, "owes_evaluation": self.owes_evaluation, **(values or {})}
        counts = {"num_summed": self.num_summed, "batch_size": self.batch_size, "recent": self.recent}
        self.saves.save(self.position, self.learner.state_tensors(), (own, counts), common, replay)

    def publish(self, target: str | Path) -> None:
        """End the log and put its files where DVC expects them."""
        if self.log is not None:
            self.log.publish(target)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return what was logged of one metric so far, as (position, value)."""
        return self.log.history(name) if self.log is not None else []

    def _take_up(self) -> None:
        saved = self.resumed
        assert saved is not None
        self.position = saved.position
        self.learner.load_state_tensors(saved.learner())
        self._seconds_before = saved.values["seconds"]
        self.owes_evaluation = saved.values["owes_evaluation"]
        if self.same_ranks:
            tensors, counts = saved.of_rank(self.ranks.rank)
            self.generator.set_state(tensors["generator"])
            self.members.set_state(tensors["members"])
            self.sums = {name.removeprefix("sum."): value for name, value in tensors.items() if name.startswith("sum.")}
            self.num_summed, self.batch_size = counts["num_summed"], counts["batch_size"]
            self.recent = {task: [tuple(one) for one in episodes] for task, episodes in counts["recent"].items()}
            return
        # Not the draws of the beginning again: what they gave has been learned from.
        self.generator.manual_seed(self.seed + RANK_SEEDS * self.ranks.rank + self.position)
        self.members.manual_seed(self.seed + _MEMBER_SEED + self.position)
        if self.ranks.is_main:
            print(
                f"{self.label}: goes on with {self.ranks.count} processes from a save of {saved.num_ranks}. Weights, "
                "optimisers, schedules and value scale are those of the save. What differs: environments and replayed "
                "episodes are dealt to the processes anew, and random numbers (of batches, noise and plans) start from "
                "new seeds, so that the result is not the one of an undisturbed run.",
                file=sys.stderr,
            )


def due(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` was reached between two positions: several environments step at once."""
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


def _digest(learner: Learner) -> float:
    return float(sum(parameter.detach().double().abs().sum() for parameter in learner.model.parameters()))
