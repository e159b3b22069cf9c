"""One whole episode, as it was played."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Episode:
    """L steps of one task, unpadded: L + 1 observations, the last one included, and L of everything else.

    Attributes:
        task: name of the task.
        obs: (L + 1, o) float32.
        action: (L, a) float32 in [-1, 1], what was executed.
        expert_action: (L, a) float32 in [-1, 1], what the expert intended; differs where noise was injected.
        reward: (L,) float32.
        terminated: whether the episode ended for good, not only by its time limit.
        success: the task's own success at the last step.
        score: the task's own score, in [0, 1].
        episode_return: undiscounted sum of rewards.
        seed: what the episode was reset with.
        method: who played, e.g. `scripted` or `planner`.
    """

    task: str
    obs: np.ndarray
    action: np.ndarray
    expert_action: np.ndarray
    reward: np.ndarray
    terminated: bool
    success: bool
    score: float
    episode_return: float
    seed: int
    method: str

    def check(self) -> None:
        """Refuse an episode that cannot have been played.

        Raises:
            ValueError: shapes do not fit each other, a value is not finite, or an action or score is out of range.
        """
        length = len(self.action)
        if length == 0:
            raise ValueError("it has no steps")
        if len(self.obs) == length:
            raise ValueError(f"it has {length} observations for {length} actions: the last observation is missing")
        shapes = {
            "obs": (self.obs.shape, (length + 1, *self.obs.shape[1:2])),
            "action": (self.action.shape, (length, *self.action.shape[1:2])),
            "expert_action": (self.expert_action.shape, self.action.shape),
            "reward": (self.reward.shape, (length,)),
        }
        for name, (got, expected) in shapes.items():
            if got != expected or (name != "reward" and len(got) != 2):
                raise ValueError(f"`{name}` has shape {got}, expected {expected} beside {length} actions")
            values = getattr(self, name)
            if values.dtype != np.float32:
                raise ValueError(f"`{name}` is {values.dtype}, expected float32")
            if not np.isfinite(values).all():
                step = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise ValueError(f"`{name}` holds a value that is not finite at step {step}")
        for name in ("action", "expert_action"):
            if np.abs(getattr(self, name)).max() > 1:
                raise ValueError(f"`{name}` leaves [-1, 1]")
        if not 0 <= self.score <= 1:
            raise ValueError(f"its score is {self.score}, expected 0 to 1")
        total = float(self.reward.sum(dtype=np.float64))
        if abs(total - self.episode_return) > 1e-3 * max(1.0, abs(total)):
            raise ValueError(f"its rewards sum to {total:g}, `episode_return` says {self.episode_return:g}: cut short?")
