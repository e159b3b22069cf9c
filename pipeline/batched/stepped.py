"""Copies of a task that has no array form, stepped one after the other: slower."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.batched.env import BatchedEnv, Step
from pipeline.batched.form import ArrayForm
from pipeline.batched.forms import array_form, has_array_form
from pipeline.batched.games import BatchedGame, Shaping
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv


class SteppedEnv:
    """N copies of a task, as `BatchedEnv`.

    Args:
        spec: the task.
        num: N.
        seed: of all episodes.
    """

    def __init__(self, spec: TaskSpec, num: int, seed: int):
        self.task, self.num, self._seed = spec, num, seed
        self._begun = 0  # how often new episodes were begun from a saved state
        self._open()

    def _open(self) -> None:
        seed = int(np.random.SeedSequence([self._seed, self._begun]).generate_state(1)[0])
        widths = self.task.obs_dim, self.task.action_dim
        self._env = VectorEnv([self.task] * self.num, *widths, seed, num_workers=0)
        self.obs = self._env.reset().copy()

    def step(self, actions: np.ndarray) -> Step:
        """Take one agent step with every copy; an episode that failed counts as cut."""
        step = self._env.step(np.clip(actions, -1, 1).astype(np.float32))
        self.obs = step.obs.copy()
        cut = step.truncated | step.lost
        reward = np.where(step.lost, 0.0, step.reward.astype(np.float64))
        return Step(self.obs, reward, step.terminated.copy(), cut, step.success.copy(), step.final_obs.copy())

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return what is known of where it stands: any simulator's state cannot be saved."""
        return {}, {"begun": self._begun}

    def load_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Begin new episodes, other ones than before."""
        self._begun = values["begun"] + 1
        self.close()
        self._open()

    def close(self) -> None:
        """Release the simulators and end the processes."""
        self._env.close()


Copies = BatchedEnv | BatchedGame | SteppedEnv


def open_copies(
    spec: TaskSpec,
    num: int,
    seed: int,
    coarseness: int = 1,
    form: ArrayForm | None = None,
    shaping: Shaping | None = None,
) -> Copies:
    """Return N copies of a task: batched if it is a game or has an array form, else stepped one by one.

    Raises:
        ValueError: a game, or a task without an array form, cannot be made coarser.
    """
    if spec.suite == "miniarcade":
        if coarseness != 1:
            raise ValueError(f"{spec.name}: coarseness {coarseness}: a game has no physics steps to save, write 1.")
        return BatchedGame(spec, num, seed, shaping)
    if form is None and not has_array_form(spec):
        if coarseness != 1:
            raise ValueError(
                f"{spec.name}: coarseness {coarseness}: a task without an array form is stepped as it is, write 1."
            )
        return SteppedEnv(spec, num, seed)
    return BatchedEnv(spec, num, seed, coarseness, form=form or array_form(spec))
