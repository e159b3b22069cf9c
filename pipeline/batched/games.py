"""Many episodes of one of MiniArcade's games, stepped together as arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.batched.env import Step
from pipeline.tasks.miniarcade.adapter import GAMES
from pipeline.tasks.miniarcade.game import Game
from pipeline.tasks.spec import TaskSpec

Shaping = Callable[[Game, np.ndarray], np.ndarray]  # what is added to the reward of the step to states (N, S), (N,)


class BatchedGame:
    """N copies of a game, as `BatchedEnv`: at different times of episodes of their own, each begun by a real reset.

    Args:
        spec: the task, of suite `miniarcade`.
        num: N.
        seed: of all episodes.
        shaping: added to the reward; None for nothing.
    """

    def __init__(self, spec: TaskSpec, num: int, seed: int, shaping: Shaping | None = None):
        self.task, self.num, self.shaping = spec, num, shaping
        self.rng = np.random.default_rng(seed)
        # One game holds what the episodes of all copies drew, the other one is reset.
        self.game, self._fresh = (GAMES[spec.env_id](**spec.env_kwargs) for _ in range(2))
        size = self.game.reset(np.random.default_rng(seed)).size
        self.game.gather(num)
        self.states = np.zeros((num, size))  # (N, S), where each copy stands
        self.obs = np.empty((num, spec.obs_dim), np.float32)
        self._begin(np.arange(num))
        self.steps = self.rng.integers(spec.episode_length, size=num)  # taken in each copy's episode

    def step(self, actions: np.ndarray) -> Step:
        """Take one agent step with every copy: actions (N, a), clipped to [-1, 1]."""
        clipped, reward = np.clip(actions, -1, 1), np.zeros(self.num)
        for _ in range(self.task.action_repeat):
            self.states = self.game.step(self.states, clipped)
            reward += self.game.reward(self.states)
            if self.shaping is not None:
                reward += self.shaping(self.game, self.states)
        success, final = self.game.success(self.states), self.game.observe(self.states).astype(np.float32)
        self.steps += 1
        truncated = self.steps >= self.task.episode_length
        self.obs = final.copy()
        if truncated.any():
            self._begin(np.flatnonzero(truncated))
            self.steps[truncated] = 0
        return Step(self.obs, reward, np.zeros(self.num, bool), truncated, success, final)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return where every copy stands: arrays, and the random generator."""
        drawn = {f"drawn.{name}": getattr(self.game, name) for name in self.game.drawn}
        now = {"states": self.states, "obs": self.obs, "steps": self.steps}
        return {**now, **drawn}, {"rng": self.rng.bit_generator.state}

    def load_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.states, self.obs, self.steps = (arrays[name].copy() for name in ("states", "obs", "steps"))
        for name in self.game.drawn:
            setattr(self.game, name, arrays[f"drawn.{name}"].copy())
        self.rng.bit_generator.state = values["rng"]

    def close(self) -> None:
        """Nothing to release."""

    def _begin(self, copies: np.ndarray) -> None:
        """Begin new episodes."""
        for number, seed in zip(copies, self.rng.integers(2**32, size=len(copies)), strict=True):
            self.states[number] = start = self._fresh.reset(np.random.default_rng(int(seed)))
            self.obs[number] = self._fresh.observe(start[None])[0]
            self.game.take(number, self._fresh)
