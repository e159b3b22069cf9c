"""ManiSkill for the planner: actions played on a second scene that is put where the episode's own one stands."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.maniskill import ManiSkill


class SceneSimulator:
    """Rolls out action sequences from wherever the episode stands.

    The second scene does not know what touched before it was put there, so that a rollout is near to what would happen
    and not the same. The episode's own scene is only read, and its actions, played again, lead to the same again.

    Args:
        own: the episode's own simulator.
        twin: another one of the same task, to roll out on.
        action_repeat: simulator steps of an agent step.
    """

    def __init__(self, own: ManiSkill, twin: ManiSkill, action_repeat: int):
        self._own, self._twin, self._action_repeat = own, twin, action_repeat
        self.action_dim = own.low.size
        self._center, self._half = (own.low + own.high) / 2, (own.high - own.low) / 2

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return the rewards (P, T) of actions (P, T, a) in [-1, 1]."""
        state, rewards = self._own.save(), np.zeros(actions.shape[:2])
        for sample, sequence in enumerate(self._center + self._half * actions):
            self._twin.restore(state)
            for step, action in enumerate(sequence):
                rewards[sample, step] = sum(self._twin.step(action)[0] for _ in range(self._action_repeat))
        return rewards
