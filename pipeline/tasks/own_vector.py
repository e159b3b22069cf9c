"""Gymnasium's vector environments: a user's own, as an agent sees them, and one that exists in no other form."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, flatdim, flatten
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from pipeline.tasks.spaces import actions_of, layout_of
from pipeline.tasks.spec import Bounds


class FlatVectorEnv(VectorWrapper):
    """A vector environment whose observations are those of `Agent.act`, and whose actions are what it returns.

    Observation: (N, o) float32, the parts of a Dict or Tuple side by side, in the order that `layout` says.
    Action: (N, a) in [-1, 1], which becomes the environment's own as in training (`actions`); values outside are
    clipped. All else, `info` and who resets an episode that ended, is the environment's.

    Args:
        env: the vector environment, as `gymnasium.make_vec` or a package of its own makes it.
        name: what errors call it.
        action_bounds: limits of a Box of actions that has none, as in a task file.

    Attributes:
        actions: how an action becomes one of the environment's own.
        layout: what stands where in an observation, in words.

    Raises:
        ValueError: its actions or observations are of a kind that the agent cannot use.
    """

    def __init__(self, env: VectorEnv, name: str = "the environment", action_bounds: Bounds | None = None) -> None:
        super().__init__(env)
        self.actions = actions_of(name, env.single_action_space, action_bounds)
        self.layout = layout_of(name, env.single_observation_space)
        self._obs_dim = flatdim(env.single_observation_space)
        self.single_observation_space = Box(-np.inf, np.inf, (self._obs_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (self.actions.low.size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment; `seed` and `options` are the environment's."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._flat(obs), info

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step with actions (N, a) in [-1, 1].

        Raises:
            ValueError: they are of another shape, or not finite.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape or not np.isfinite(actions).all():
            raise ValueError(
                f"expected finite actions of shape {self.action_space.shape}, got shape {actions.shape}: {actions}."
            )
        space, own = self.env.single_action_space, [self.actions.of_unit(action) for action in actions]
        batch: Any = concatenate(space, own, create_empty_array(space, self.num_envs))
        obs, reward, terminated, truncated, info = self.env.step(batch)
        return self._flat(obs), reward, terminated, truncated, info

    def _flat(self, obs: Any) -> np.ndarray:
        """Put the parts of each observation side by side, (N, o)."""
        space, flat = self.env.single_observation_space, np.empty((self.num_envs, self._obs_dim), np.float32)
        for row, one in zip(flat, iterate(self.env.observation_space, obs), strict=True):
            row[:] = np.asarray(flatten(space, one))
        return flat


class OneOfVector(gymnasium.Env):
    """One environment of an id that is registered as a vector environment alone.

    Args:
        env_id: the id, with its module where that is to be imported.
        kwargs: keyword arguments of its constructor.
    """

    def __init__(self, env_id: str, kwargs: dict[str, Any]) -> None:
        self._envs = gymnasium.make_vec(env_id, num_envs=1, vectorization_mode="vector_entry_point", **kwargs)
        self.observation_space, self.action_space = self._envs.single_observation_space, self._envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        obs, info = self._envs.reset(seed=seed, options=options)
        return self._first(obs), _first_info(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step."""
        space = self.action_space
        batch: Any = concatenate(space, [action], create_empty_array(space, 1))
        obs, reward, terminated, truncated, info = self._envs.step(batch)
        return self._first(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first_info(info)

    def render(self) -> Any:
        """Draw it."""
        frames = self._envs.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Release it."""
        self._envs.close()

    def _first(self, obs: Any) -> Any:
        return next(iter(iterate(self._envs.observation_space, obs)))


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return what a vector environment says of its first environment: arrays (N, ...), with `_name` where it holds."""
    return {
        name: value[0]
        for name, value in info.items()
        if isinstance(value, np.ndarray | list) and len(value) and not name.startswith("_")
    }
