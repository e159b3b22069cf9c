"""Meta-World v3 tasks as a `Simulator`: random goals, goal visible in the observation."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

from pipeline.config import near
from pipeline.tasks.rendering import Camera

_SUFFIX = "-goal-observable"
_CAMERA, _CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)  # nearer than its own, which shows mostly floor


class MetaWorld:
    """One Meta-World task.

    The observation is Meta-World's own, 39 wide: hand, gripper and objects now and one simulator step ago, goal.
    Episodes never terminate; `success` is Meta-World's, of the current step.

    Args:
        env_id: Meta-World's name, e.g. `reach-v3`.
        env_kwargs: keyword arguments of the environment's constructor.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE.get(env_id + _SUFFIX)
        if make is None:
            known = [name.removesuffix(_SUFFIX) for name in ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE]
            raise ValueError(
                f"env_id {env_id!r} is not a Meta-World task; it looks like `reach-v3`.{near(env_id, known)}"
            )
        self.env = make(seed=0, **env_kwargs)  # with a seed it leaves numpy's global generator as it was
        self.env._freeze_rand_vec = False  # a new goal every episode ...
        self.env.seeded_rand_vec = True  # ... drawn from the seeded generator; Meta-World has no setters for these
        self.env.max_path_length = 2**31  # episodes are cut by us alone
        self.env.touching_object = self.touching  # its own walks all contacts in Python: a quarter of a step and more
        self.low, self.high = self.env.action_space.low, self.env.action_space.high
        self.obs_dim = self.env.observation_space.shape[0]
        self._obs = np.zeros(self.obs_dim)
        self._camera: Camera | None = None
        self._render_size = render_size

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self.env.seed(seed)
        mujoco.mj_resetData(self.env.model, self.env.data)  # its reset begins by moving on from the last episode
        self._obs, _ = self.env.reset()

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, terminated, truncated, success)."""
        self._obs, reward, _, _, info = self.env.step(action)
        return float(reward), False, False, bool(info["success"])

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        out[:] = self._obs

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8, upright."""
        if self._camera is None:
            self.env.model.camera(_CAMERA).pos = _CAMERA_POSITION
            mujoco.mj_camlight(self.env.model, self.env.data)
            self._camera = Camera(self.env.model, self._render_size, _CAMERA)
        return self._camera.draw(self.env.data)[::-1, ::-1].copy()  # this camera is mounted upside down

    def touching(self, geom: int) -> bool:
        """Whether both fingers press on a geom: what Meta-World's `touching_object` says, by arrays."""
        data = self.env.data
        first, second = data.contact.geom.T
        of_geom, addresses = (first == geom) | (second == geom), data.contact.efc_address
        pads = (data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
        # Summed in its order, and to 0 where nothing touches.
        return all(sum(data.efc_force[addresses[of_geom & ((first == pad) | (second == pad))]]) > 0 for pad in pads)

    def close(self) -> None:
        """Release the drawing context and the simulator."""
        if self._camera is not None:
            self._camera.close()
        self.env.close()
