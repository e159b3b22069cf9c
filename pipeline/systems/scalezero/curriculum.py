"""Which tasks are solved, and when the next stage of dynamic parameter scaling begins.

Every rank hears the same scores and makes the same updates, and so decides alike.

Source: ScaleZero (arXiv 2509.07945). Ours: a solved task that falls below its target comes back, what was solved
before anything was learned does not count as newly solved, and stage 0 may end early like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import config
from pipeline.train.step import Learner


def check_targets(settings: config.Scaling, tasks: Sequence[str]) -> None:
    """Refuse targets of tasks that are not trained.

    Raises:
        ValueError: names the task.
    """
    for name in settings.targets:
        if name not in tasks:
            near = config.near(name, list(tasks))
            raise ValueError(f"finetune.scaling.targets names {name!r}, which is not in tasks.train.{near}")


class Curriculum:
    """Hears of evaluations and updates, and moves the learner's model on from stage to stage.

    Args:
        settings: targets and intervals.
        learner: with the stages of its model.
        tasks: all that are trained.

    Attributes:
        solved: the tasks that are solved, which are not played.

    Raises:
        ValueError: the learner has no stages, its policy step is clipped, or a target is of a task that is not trained.
    """

    def __init__(self, settings: config.Scaling, learner: Learner, tasks: Sequence[str]):
        if learner.stages is None:
            raise ValueError("finetune.scaling needs a learner with stages")
        if learner.learning.clipped is not None:
            raise ValueError(
                "finetune.scaling lets solved tasks rest, whose policy is kept by imitating demonstrations, and "
                "learning.clipped learns from new episodes alone: set one of the two to null"
            )
        check_targets(settings, tasks)
        self._settings, self._learner, self._stages, self._tasks = settings, learner, learner.stages, list(tasks)
        self.solved: set[str] = set()
        self._open: set[str] | None = None  # unsolved when the stage began; None before the first evaluation
        self._began = learner.updates  # updates made when the stage began

    @property
    def finished(self) -> bool:
        """Whether every task is solved."""
        return len(self.solved) == len(self._tasks)

    def playing(self, tasks: Sequence[str]) -> list[bool]:
        """Return for each of these tasks, repeated as often as it has environments, whether it is played."""
        return [task not in self.solved for task in tasks]

    def evaluated(self, scores: Mapping[str, float]) -> list[str]:
        """Learn each task's score and return what follows from it, in words."""
        said = []
        for task in self._tasks:
            target, score = self._settings.target_of(task), scores[task]
            if task not in self.solved and score >= target:
                self.solved.add(task)
                said.append(f"{task} is solved ({score:.2f}, target {target:g}) and no longer played")
            elif task in self.solved and score < target - self._settings.slack:
                self.solved.remove(task)
                said.append(f"{task} comes back ({score:.2f}, target {target:g})")
        if self._open is None:
            self._open = set(self._tasks) - self.solved
            return said
        left = self._stages.last - self._stages.stage
        new = sorted(self._open & self.solved)
        if left and new and len(new) >= math.ceil(len(self._open) / left):
            said += self._next(f"{len(new)} of {len(self._open)} tasks newly solved")
        return said

    def updated(self) -> list[str]:
        """Count the update just made and return what follows from it, in words."""
        if self._stages.stage == self._stages.last or self._learner.updates - self._began < self._most_updates:
            return []
        return self._next(f"after {self._most_updates} updates")

    def metrics(self) -> dict[str, float]:
        """Return what is logged with the averages."""
        return {
            "scaling/stage": float(self._stages.stage),
            "scaling/trainable_parameters": float(self._stages.trainable_parameters),
        }

    def solutions(self) -> dict[str, float]:
        """Return what is logged with an evaluation: how many tasks are solved, and 0 or 1 of each."""
        each = {f"solved/{task}": float(task in self.solved) for task in self._tasks}
        return {"scaling/solved_sum": float(len(self.solved)), **each}

    def state(self) -> dict[str, Any]:
        """Return everything needed to go on bit for bit, as JSON; the stage itself is in the learner's state."""
        unsolved = None if self._open is None else sorted(self._open)
        return {"solved": sorted(self.solved), "open": unsolved, "began": self._began}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.solved = set(state["solved"])
        self._open = None if state["open"] is None else set(state["open"])
        self._began = state["began"]

    @property
    def _most_updates(self) -> int:
        return self._settings.stage_updates if self._stages.stage else self._settings.first_stage_updates

    def _next(self, why: str) -> list[str]:
        self._learner.enter_stage(self._stages.stage + 1)
        self._began, self._open = self._learner.updates, set(self._tasks) - self.solved
        trained = f"{self._stages.trainable_parameters:,} parameters train"
        return [f"stage {self._stages.stage} of {self._stages.last} begins: {why}; {trained}"]
