"""One whole episode, as it was played."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        reward: (L,) float32; NaN in every step if it is unknown: dynamics and policy learn from such an episode, reward
            and value do not.
        terminated: whether the episode ended for good, not only by its time limit.
        success: the task's own success at the last step.
        score: the task's own score, in [0, 1]; NaN where it follows from rewards that are unknown.
        episode_return: undiscounted sum of rewards; NaN if they are unknown.
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

    @property
    def rewarded(self) -> bool:
        """Whether its rewards are known."""
        return not np.isnan(self.reward).all()

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
            if not np.isfinite(values).all() and (name != "reward" or self.rewarded):
                step = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise ValueError(f"`{name}` holds a value that is not finite at step {step}")
        for name in ("action", "expert_action"):
            if np.abs(getattr(self, name)).max() > 1:
                raise ValueError(f"`{name}` leaves [-1, 1]")
        self._check_outcome()

    def _check_outcome(self) -> None:
        """Refuse a score or return that does not follow from the rewards."""
        if not (0 <= self.score <= 1 or (np.isnan(self.score) and not self.rewarded)):
            raise ValueError(f"its score is {self.score}, expected 0 to 1")
        if not self.rewarded and not np.isnan(self.episode_return):
            raise ValueError(f"its rewards are unknown, `episode_return` says {self.episode_return:g}")
        total = float(self.reward.sum(dtype=np.float64))
        if self.rewarded and not abs(total - self.episode_return) <= 1e-3 * max(1.0, abs(total)):
            raise ValueError(f"its rewards sum to {total:g}, `episode_return` says {self.episode_return:g}: cut short?")


def mean_known(values: Iterable[float]) -> float | None:
    """Return the mean of those scores or returns that are known; None if none is."""
    known = [value for value in values if not np.isnan(value)]
    return sum(known) / len(known) if known else None


def say_unrewarded(episodes: Sequence[Episode]) -> str:
    """Say in how many episodes the reward is unknown, and what that means; nothing where all have one."""
    count = sum(not episode.rewarded for episode in episodes)
    if not count:
        return ""
    which = "all episodes" if count == len(episodes) else f"{count} of {len(episodes)} episodes"
    return f"reward unknown in {which}: policy and dynamics learn from them, reward and value do not"
