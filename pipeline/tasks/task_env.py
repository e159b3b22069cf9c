"""`TaskEnv`: any simulator as a Gymnasium environment of the widths and limits that a `TaskSpec` promises."""

from __future__ import annotations

import math
import operator
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np

from pipeline.tasks.spec import TaskSpec

_LARGEST = float(np.finfo(np.float32).max)  # of a reward: beyond it is infinite where it is kept


class SimulationError(RuntimeError):
    """A simulator, or an expert asked in it, failed or returned what it must not; names the task."""


class Simulator(Protocol):
    """What an adapter gives: one simulator, unpadded, without action repeat or time limit."""

    obs_dim: int  # width of the observation
    low: np.ndarray  # (a,) bounds of the simulator's own action
    high: np.ndarray  # (a,)

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` alone determines, whatever happened before."""

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, terminated, truncated, success)."""
        ...

    def observe(self, out: np.ndarray) -> None:
        """Write the current observation into `out`, (obs_dim,) float32."""

    def render(self) -> np.ndarray:
        """Draw the scene, uint8 RGB, upright."""
        ...

    def close(self) -> None:
        """Release everything."""


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One task with zero-padded observations, masked actions, action repeat and an exact time limit.

    Observation: (obs_dim,) float32; the first `spec.obs_dim` entries are the simulator's, the others are 0.
    Action: (action_dim,) in [-1, 1]; values outside are clipped; the first `spec.action_dim` entries are rescaled to
    the simulator's bounds, the others have no effect.
    `reset(seed=s)` alone determines the episode. `info["success"]` is a bool, True where the simulator says so in the
    last of the repeated steps. `truncated` comes exactly at `spec.episode_length` agent steps, or where the simulator
    itself gives up.

    Args:
        spec: the task.
        simulator: its adapter; closed with this environment. Experts may read it as `env.simulator`.
        obs_dim: padded width of the observation.
        action_dim: padded width of the action.
        render: whether `render()` will be called.

    Raises:
        ValueError: the spec's widths are not the simulator's, or exceed the padded ones.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, spec: TaskSpec, simulator: Simulator, obs_dim: int, action_dim: int, render: bool) -> None:
        _check_width(spec, "obs_dim", spec.obs_dim, simulator.obs_dim, obs_dim)
        _check_width(spec, "action_dim", spec.action_dim, simulator.low.size, action_dim)
        self.task = spec
        self.simulator = simulator
        self.render_mode = "rgb_array" if render else None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        low, high = np.asarray(simulator.low, np.float64).ravel(), np.asarray(simulator.high, np.float64).ravel()
        self.action_center, self.action_half = (low + high) / 2, (high - low) / 2
        self._blank = np.zeros(obs_dim, np.float32)
        self._steps_left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode.

        Args:
            seed: below 2**32, numpy's too; None draws one from this environment's own generator.
            options: not used by any task.

        Returns:
            The first observation and `{"success": False}`.
        """
        seed = None if seed is None else operator.index(seed)
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**32)) if seed is None else seed
        try:
            self.simulator.reset(self._seed)
        except Exception as error:
            raise SimulationError(
                f"task {self.task.name}: reset with seed {self._seed}: {type(error).__name__}: {error}."
            ) from error
        self._steps_left = self.task.episode_length
        return self._observe(None), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one agent step.

        Args:
            action: (action_dim,) in [-1, 1].

        Returns:
            Observation, reward summed over the repeated simulator steps, terminated, truncated, `{"success": bool}`.

        Raises:
            SimulationError: the simulator failed, or returned NaN, infinity or a wrong shape.
            RuntimeError: the episode is over.
            ValueError: the action has a wrong shape or is not finite.
        """
        if self._steps_left == 0:
            raise RuntimeError(f"task {self.task.name}: the episode is over (or never began): call reset() first.")
        action = np.asarray(action)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            raise ValueError(
                f"task {self.task.name}: expected a finite action of shape {self.action_space.shape}, "
                f"got shape {action.shape}: {action}."
            )
        self._steps_left -= 1
        used = action[: self.task.action_dim].astype(np.float64)
        np.minimum(np.maximum(used, -1.0, out=used), 1.0, out=used)
        used *= self.action_half
        used += self.action_center
        total, terminated, truncated, success = 0.0, False, False, False
        try:
            for _ in range(self.task.action_repeat):
                reward, terminated, truncated, success = self.simulator.step(used)
                total += reward
                if terminated or truncated:
                    break
        except Exception as error:
            raise self._error(action, f"{type(error).__name__}: {error}") from error
        if not abs(total) <= _LARGEST:  # nor NaN
            raise self._error(action, f"the reward is {total}")
        obs = self._observe(action)
        truncated = truncated or self._steps_left == 0
        if terminated or truncated:
            self._steps_left = 0
        return obs, total, terminated, truncated, {"success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw the scene, uint8 RGB, upright.

        Raises:
            RenderingUnavailable: this machine cannot draw.
        """
        if self.render_mode is None:
            raise RuntimeError(f"task {self.task.name}: build it with make(..., render_size=224) to draw it.")
        return self.simulator.render()

    def close(self) -> None:
        """Release the simulator."""
        self.simulator.close()

    def _observe(self, action: np.ndarray | None) -> np.ndarray:
        obs = self._blank.copy()
        real = obs[: self.task.obs_dim]
        try:
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite and is refused below
                self.simulator.observe(real)
        except Exception as error:
            what = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise self._error(action, f"the observation is malformed: {what}") from error
        if not math.isfinite(real.sum()) and not np.isfinite(real).all():
            where = np.flatnonzero(~np.isfinite(real)).tolist()
            raise self._error(action, f"the observation is not finite at entries {where}")
        return obs

    def _error(self, action: np.ndarray | None, problem: str) -> SimulationError:
        if action is None:
            return SimulationError(f"task {self.task.name}: after reset with seed {self._seed}: {problem}.")
        step = self.task.episode_length - self._steps_left
        return SimulationError(
            f"task {self.task.name}: step {step} of the episode with seed {self._seed}, "
            f"action {action[: self.task.action_dim].tolist()}: {problem}."
        )


def _check_width(spec: TaskSpec, key: str, written: int, real: int, padded: int) -> None:
    if written != real:
        raise ValueError(f"task {spec.name}: its file says {key}: {written}, the simulator has {real}. Write {real}.")
    if real > padded:
        raise ValueError(
            f"task {spec.name}: its {key} {real} is wider than model.{key} {padded} in params.yaml. "
            f"Raise model.{key} to at least {real} (which means pretraining anew) or leave the task out."
        )
