"""What a run does when it goes on from a save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import LEARNING, TINY, make_model, make_table
from pipeline import config
from pipeline.learn.extension import Extension
from pipeline.learn.learner import Learner
from pipeline.learn.training_run import TrainingRun
from pipeline.tasks.spec import parse_spec

PARAMS = "tests/tiny.yaml"
NOTHING: Any = None  # in the place of what a run needs for playing
SPEC = parse_spec(
    {
        "name": "pendulum", "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole.",
        "instructions": ["Swing it up."], "obs_dim": 3, "action_dim": 1, "action_repeat": 1, "episode_length": 12,
        "score": "clip((return+200)/200,0,1)",
    },
    "the tests",
)  # fmt: skip


class Resting(Extension):
    """Says that every task rests, and is saved."""

    name = "resting"

    def __init__(self, rests: bool):
        self.rests = rests

    def plays(self, task: str) -> bool:
        return not self.rests

    def state_tensors(self) -> dict[str, Tensor]:
        return {"rests": torch.tensor([self.rests])}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        self.rests = bool(state["rests"])


def make_run(folder: Path, rests: bool) -> TrainingRun:
    learner = Learner(make_model(TINY), make_table(), LEARNING, extensions=[Resting(rests)])
    settings, runtime = config.load(config.Finetune, PARAMS), config.load(config.Runtime, PARAMS)
    return TrainingRun("test", folder, learner, NOTHING, settings, [SPEC], NOTHING, runtime, seed=1)


def test_a_run_that_ended_because_every_task_was_solved_does_not_begin_to_wait_when_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path, rests=False)
    assert run.unfinished
    (extension,) = run.learner.extensions
    extension.rests = True  # type: ignore[attr-defined]
    run.save()
    run.saves.finish()
    again = make_run(tmp_path, rests=False)
    assert again.resumed is not None
    assert not again.unfinished
