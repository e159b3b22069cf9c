"""Which tasks are solved, and when the next stage of training begins.

Every rank gets the same scores and makes the same updates, and so decides alike.

Source: ScaleZero (arXiv 2509.07945), dynamic parameter scaling. Ours: a solved task that falls below its target comes
back, what was solved before anything was learned does not count as newly solved, and stage 0 may end early like any
other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from pipeline import config
from pipeline.learn.extension import Extension
from pipeline.learn.learner import Learner
from pipeline.systems.scalezero.staged_lora import StagedLora


def check_targets(settings: config.Scaling, tasks: Sequence[str]) -> None:
    """Refuse targets of tasks that are not trained.

    Raises:
        ValueError: names the task.
    """
    for name in settings.targets:
        if name not in tasks:
            near = config.near(name, list(tasks))
            raise ValueError(f"finetune.scaling.targets names {name!r}, which is not in tasks.train.{near}")


class Curriculum(Extension):
    """Lets solved tasks rest, and moves the model on from stage to stage.

    Args:
        lora: the stages of the learner's model.
        tasks: all that are trained.

    Attributes:
        solved: the tasks that are solved, which are not played.

    Raises:
        ValueError: a target is of a task that is not trained.
    """

    name = "staged_lora"
    pauses = True

    def __init__(self, lora: StagedLora, tasks: Sequence[str]):
        check_targets(lora.settings, tasks)
        self.lora, self._settings, self._tasks = lora, lora.settings, list(tasks)
        self.solved: set[str] = set()
        self._open: set[str] | None = None  # unsolved when the stage began; None before the first evaluation
        self._began = 0  # updates made when the stage began

    def attach(self, learner: Learner) -> None:
        """Take the learner whose optimisers follow the stages."""
        assert learner.model is self.lora.model
        self._learner, self._began = learner, learner.updates

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Compute each sum of a matrix and its adapters once per loss, however often it is read."""
        with parametrize.cached():
            yield

    def plays(self, task: str) -> bool:
        """Whether a task is played: solved ones rest."""
        return task not in self.solved

    def on_evaluation(self, scores: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Find out from the scores which tasks are solved; perhaps the next stage begins."""
        lines = self._update_solved(scores)
        if self._open is None:
            self._open = set(self._tasks) - self.solved
        else:
            left, new = self.lora.last - self.lora.stage, sorted(self._open & self.solved)
            if left and new and len(new) >= math.ceil(len(self._open) / left):
                lines += self._enter_next(f"{len(new)} of {len(self._open)} tasks newly solved")
        each = {f"solved/{task}": float(task in self.solved) for task in self._tasks}
        return {"scaling/solved_sum": float(len(self.solved)), **each}, lines

    def after_update(self) -> list[str]:
        """Begin the next stage if this one has had its updates."""
        most = self._settings.stage_updates if self.lora.stage else self._settings.first_stage_updates
        if self.lora.stage == self.lora.last or self._learner.updates - self._began < most:
            return []
        return self._enter_next(f"after {most} updates")

    def metrics(self) -> dict[str, float]:
        """Return the stage, and how many parameters train in it."""
        return {
            "scaling/stage": float(self.lora.stage),
            "scaling/trainable_parameters": float(self.lora.trainable_parameters),
        }

    def summary(self) -> dict[str, Any]:
        """Return the stage and the solved tasks at the end of a run."""
        return {"stage": self.lora.stage, "solved": sorted(self.solved)}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the stage, when it began, and which tasks are solved and were unsolved then."""
        state = {"stage": torch.tensor([self.lora.stage]), "began": torch.tensor([self._began])}
        for name, tasks in (("solved", self.solved), ("open", self._open)):
            if tasks is not None:
                state[name] = torch.tensor([task in tasks for task in self._tasks])
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; nothing, where the save is of a run without stages."""
        if not state:
            return
        self.solved, self._began = self._named(state["solved"]), int(state["began"])
        self._open = self._named(state["open"]) if "open" in state else None
        self._enter(int(state["stage"]))

    def _update_solved(self, scores: Mapping[str, float]) -> list[str]:
        lines = []
        for task in self._tasks:
            target, score = self._settings.target_of(task), scores[task]
            if task not in self.solved and score >= target:
                self.solved.add(task)
                lines.append(f"{task} is solved ({score:.2f}, target {target:g}) and no longer played")
            elif task in self.solved and score < target - self._settings.slack:
                self.solved.remove(task)
                lines.append(f"{task} comes back ({score:.2f}, target {target:g})")
        return lines

    def _enter_next(self, why: str) -> list[str]:
        self._enter(self.lora.stage + 1)
        self._began, self._open = self._learner.updates, set(self._tasks) - self.solved
        trained = f"{self.lora.trainable_parameters:,} parameters train"
        return [f"stage {self.lora.stage} of {self.lora.last} begins: {why}; {trained}"]

    def _enter(self, stage: int) -> None:
        """Enter a stage: what goes on being trained keeps its Adam moments, what is frozen loses them."""
        self.lora.enter(stage)
        self._learner.rebuild_optimizers()

    def _named(self, which: Tensor) -> set[str]:
        return {task for task, on in zip(self._tasks, which.tolist(), strict=True) if on}
