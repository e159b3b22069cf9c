"""Any Gymnasium environment, by name, as a `Simulator`."""

from __future__ import annotations

import importlib
import os
import traceback
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, flatdim, flatten

from pipeline.config import near
from pipeline.tasks.opengl import backend, settle_backend, settle_window, why_off
from pipeline.tasks.own_vector import OneOfVector
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spaces import actions_of, layout_of
from pipeline.tasks.spec import Bounds

_STEP = "(observation, reward, terminated, truncated, info)"
# Packages that bring environments, by the module they are imported as.
_PACKAGES = {"gymnasium_robotics": "-c constraints.txt gymnasium-robotics"}


class GymnasiumSimulator:
    """A Gymnasium environment as a `Simulator`.

    Args:
        name: what errors call it.
        env: the environment, without a time limit; with `render_mode="rgb_array"` if it will be drawn.
        render_size: pixels of an image's side, 0 if none will be drawn.
        action_bounds: limits of a Box of actions that has none; see `TaskSpec.action_bounds`.

    Attributes:
        actions: how an action becomes one of the environment's own.
        layout: what stands where in an observation, in words.

    Raises:
        ValueError: its actions or observations are of a kind that the agent cannot use.
    """

    def __init__(
        self, name: str, env: gymnasium.Env, render_size: int = 0, action_bounds: Bounds | None = None
    ) -> None:
        self.env = env
        self._name, self._render_size = name, render_size
        self.actions, self.layout = (
            actions_of(name, env.action_space, action_bounds),
            layout_of(name, env.observation_space),
        )
        self.low, self.high = self.actions.low, self.actions.high
        self.obs_dim = flatdim(env.observation_space)
        self._is_box = isinstance(env.observation_space, Box)
        self._obs: Any = None

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self._obs, _ = _parts(self.env.reset(seed=seed), "reset", "(observation, info)")

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, terminated, truncated, success)."""
        found = self.env.step(self.actions.convert(action))
        self._obs, reward, terminated, truncated, info = _parts(found, "step", _STEP)
        if not isinstance(reward, float):
            reward = _number(reward)
        success = info.get("success", info.get("is_success", False)) if info else False
        return float(reward), bool(terminated), bool(truncated), bool(success == success and success)  # not NaN

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        # Gymnasium's flatten is slow, and needed for nested observations alone.
        flat = np.ravel(self._obs) if self._is_box else np.asarray(flatten(self.env.observation_space, self._obs))
        if flat.shape != out.shape:
            raise ValueError(f"expected {out.size} numbers, as its observation_space says, got shape {flat.shape}")
        out[:] = flat

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8."""
        try:
            return _resize(np.asarray(self.env.render()), self._render_size)
        except Exception as error:
            why = f"{why} (" if (why := why_off()) else f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} ("
            raise RenderingUnavailable(
                f"{self._name} cannot draw itself: {why}{type(error).__name__}: {error})"
            ) from error

    def close(self) -> None:
        """Release the environment."""
        self.env.close()


class GymnasiumTask(GymnasiumSimulator):
    """One registered Gymnasium environment, its own time limit taken off.

    Args:
        env_id: a registered id, `Pendulum-v1`, or `module:namespace/Name-v0`, which imports the module first.
        env_kwargs: keyword arguments of `gymnasium.make`.
        render_size: pixels of an image's side, 0 if none will be drawn.
        action_bounds: limits of a Box of actions that has none; see `TaskSpec.action_bounds`.

    Raises:
        ValueError: no such environment, or its actions or observations are of a kind that the agent cannot use.
    """

    def __init__(
        self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0, action_bounds: Bounds | None = None
    ) -> None:
        drawing, endless = drawing_options() if render_size else {}, {"max_episode_steps": -1}
        try:
            env = _make(env_id, {**endless, **drawing, **env_kwargs})
        except TypeError as error:
            if not drawing or "'render_mode'" not in str(error):
                raise
            env = _make(env_id, {**endless, **env_kwargs})  # it is not asked whether it draws: `render` finds out
        super().__init__(env_id, env, render_size, action_bounds)


def _parts(found: Any, method: str, expected: str) -> tuple[Any, ...]:
    """Refuse what an environment of before Gymnasium returns."""
    if isinstance(found, tuple) and len(found) == expected.count(",") + 1:
        return found
    came = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
    raise ValueError(
        f"its {method}() must return {expected}, as Gymnasium has it; it returned {came}. An environment of the "
        "old Gym is wrapped with the package shimmy"
    )


def _number(reward: Any) -> float:
    """Return a reward, which some environments give as an array of one number."""
    if reward is None or np.size(reward) != 1:
        raise ValueError(f"its reward is {reward!r}, expected one number")
    return float(np.ravel(reward)[0])


def drawing_options() -> dict[str, Any]:
    """Return the keyword argument that makes a Gymnasium environment draw without a display."""
    os.environ.setdefault("MUJOCO_GL", backend())  # Gymnasium reads it when it first draws
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame's: else it looks for a display, and complains of none
    settle_backend()
    settle_window()
    return {"render_mode": "rgb_array"}


def _make(env_id: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = gymnasium.registry.get(name)
        if spec and spec.entry_point is None:  # a vector environment alone, which has no time limit around it
            return OneOfVector(env_id, {name: value for name, value in kwargs.items() if name != "max_episode_steps"})
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except ModuleNotFoundError as error:
        if (missing := error.name or "") in _PACKAGES:
            how = f"It comes with a package: `pip install {_PACKAGES[missing]}`."
        elif env_id.partition(":")[0].startswith(missing):
            how = "The part before `:` is a module: put it beside the task file or into the folder you run in, or "
            how += "install its package."
        else:
            how = f"It imports {missing}: install that."
        raise ValueError(f"env_id {env_id!r}: {error}. {how}") from error
    except gymnasium.error.UnregisteredEnv as error:
        name = env_id.rpartition(":")[2]
        raise ValueError(
            f"env_id {env_id!r} is not a registered Gymnasium environment ({error})."
            f"{near(name, list(gymnasium.registry))} Environments of your own package are found as "
            "`module:namespace/Name-v0`."
        ) from error
    except gymnasium.error.Error as error:
        raise ValueError(f"env_id {env_id!r} cannot be built: {error}") from error
    except TypeError:  # arguments that it does not take: whoever has the task file says so
        raise
    except Exception as error:  # of its own code
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"env_id {env_id!r} cannot be built: {type(error).__name__}{f': {error}' if str(error) else ''} "
            f"({'/'.join(Path(place.filename).parts[-3:])}, line {place.lineno})"
        ) from error


def _resize(frame: np.ndarray, size: int) -> np.ndarray:
    """Pick the nearest pixels of an (H, W, 3) image."""
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"its render() gave {frame.dtype} of shape {frame.shape}; expected (height, width, 3)")
    rows = np.arange(size) * frame.shape[0] // size
    columns = np.arange(size) * frame.shape[1] // size
    return frame[rows[:, None], columns].astype(np.uint8)
