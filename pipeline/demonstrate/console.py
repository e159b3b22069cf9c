"""Atari for the planner: actions played from a saved state of the console, which then goes back to it."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.atari import Atari


class ConsoleSimulator:
    """Rolls out action sequences from wherever the game stands.

    A life that is lost costs as much as the largest reward of one step that any rollout has met, at least 1: points are
    worth 1 in one game and 1,000 in another.

    Args:
        simulator: the episode's own console.
    """

    action_dim = 3

    def __init__(self, simulator: Atari):
        self._simulator, self._largest = simulator, 1.0
        self._center, self._half = (simulator.low + simulator.high) / 2, (simulator.high - simulator.low) / 2

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return the rewards (P, T), less what lost lives cost, of actions (P, T, 3) in [-1, 1]."""
        console, state = self._simulator, self._simulator.save()
        points, lost = np.zeros(actions.shape[:2]), np.zeros(actions.shape[:2])
        for sample, sequence in enumerate(self._center + self._half * actions):
            console.restore(state)
            lives = console.lives
            for step, action in enumerate(sequence):
                points[sample, step], over, _, _ = console.step(action)
                lost[sample, step], lives = max(lives - console.lives, 0), console.lives
                if over:
                    lost[sample, step] += 1
                    break
        console.restore(state)
        self._largest = max(self._largest, float(points.max()))
        return points - self._largest * lost
