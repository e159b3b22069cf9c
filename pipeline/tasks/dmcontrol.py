"""DeepMind Control Suite tasks, and our variants on its bodies, as a `Simulator`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pipeline.config import near
from pipeline.tasks.rendering import Camera

with warnings.catch_warnings():  # it looks for a display at import and warns where there is none
    warnings.filterwarnings("ignore", message=r".*DISPLAY environment variable is missing.*")
    from dm_control import suite
    from dm_control.rl.control import Environment, PhysicsError

from pipeline.tasks.dmcontrol_variants import VARIANTS

_CAMERA = {"quadruped": 2}  # the others look best through camera 0; this one's camera 0 is fixed to the world


class DMControl:
    """One task of the suite.

    The observation is the suite's dictionary, flattened in its own order.

    Args:
        env_id: `domain/task`, e.g. `walker/walk`, or a variant, e.g. `walker/walk_backward`.
        env_kwargs: keyword arguments of the suite's task function.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        self.env = _build(env_id, env_kwargs)
        self.physics, self.task = self.env.physics, self.env.task
        self._substeps = round(self.env.control_timestep() / self.physics.timestep())
        self._camera_id = _CAMERA.get(env_id.split("/")[0], 0)
        self._camera: Camera | None = None
        self._render_size = render_size
        action = self.env.action_spec()
        self.low, self.high = action.minimum, action.maximum
        self.obs_dim = sum(int(np.prod(part.shape)) for part in self.env.observation_spec().values())

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self.task._random = np.random.RandomState(seed)  # the suite's one source of randomness; it has no setter
        self.env.reset()

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one control step; return (reward, terminated, truncated, success). The suite defines no success."""
        self.task.before_step(action, self.physics)
        try:
            self.physics.step(self._substeps)
        except PhysicsError as error:
            raise FloatingPointError(f"the physics diverged: {error}") from None
        self.task.after_step(self.physics)
        discount = self.task.get_termination(self.physics)  # None while the episode goes on, as in almost every task
        return float(self.task.get_reward(self.physics)), discount == 0, discount is not None and discount != 0, False

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        parts = self.task.get_observation(self.physics).values()
        np.concatenate([np.ravel(part) for part in parts], out=out, casting="same_kind")

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8, upright."""
        if self._camera is None:
            self._camera = Camera(self.physics.model.ptr, self._render_size, self._camera_id)
        return self._camera.draw(self.physics.data.ptr)

    def close(self) -> None:
        """Release the drawing context and the simulator."""
        if self._camera is not None:
            self._camera.close()
        self.env.close()


def _build(env_id: str, env_kwargs: dict[str, Any]) -> Environment:
    if env_id in VARIANTS:
        return VARIANTS[env_id](**env_kwargs)
    known = [f"{domain}/{task}" for domain, task in suite.ALL_TASKS]
    if env_id not in known:
        raise ValueError(
            f"env_id {env_id!r} is not a task of the DeepMind Control Suite; it looks like `walker/walk`."
            + near(env_id, [*known, *VARIANTS])
        )
    domain, task = env_id.split("/")
    return suite.load(domain, task, task_kwargs={"time_limit": float("inf"), **env_kwargs})
