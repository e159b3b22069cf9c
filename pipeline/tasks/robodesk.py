"""RoboDesk: a robot arm at a desk with buttons, a drawer, a sliding door and blocks, as a `Simulator`.

The package's physics, control, starts and dense rewards (in [0, 1] per simulator step), without three oversights:
blocks are compared with where they lay at the start, not with where they are; the places of objects are observed, not
their velocities twice; and no image is drawn for every observation.

Action (5): motion of the gripper (x, y, z, 1 = 1 cm), turn of the wrist, opening of the fingers.
Observation (76): 9 joint angles and 9 joint velocities of the arm, place of the gripper (3), 29 coordinates of the
objects (drawer, door, 3 buttons, 3 lights, then ball, upright and flat block as place and quaternion) and their 26
velocities.
Success: the package's own, of the current step.
"""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

import contextlib
import io
from typing import Any

import mujoco
import numpy as np

from pipeline.config import near
from pipeline.tasks.rendering import Camera

with contextlib.redirect_stderr(io.StringIO()):  # gym tells everyone who imports it that it is no longer kept
    import robodesk

_CAMERA = {"distance": 1.8, "azimuth": 90.0, "elevation": -60.0, "lookat": (0.0, 0.535, 1.1)}  # the package's own


class _Desk(robodesk.RoboDesk):
    def render(self, mode: str = "rgb_array", resize: bool = True) -> None:
        """Draw nothing: the package's way of drawing no longer runs, and it draws with every observation."""

    def _get_obs(self) -> None:
        return None

    def step(self, action: np.ndarray) -> float:
        """Advance one simulator step, ten of the physics, and return the dense reward: the package's own, leaner."""
        physics, arm = self.physics, self.num_joints
        model, data = physics.model.ptr, physics.data.ptr
        data.ctrl[:arm] = self._convert_action(action)[:arm]
        applied, bias = data.qfrc_applied[:arm], data.qfrc_bias[:arm]
        with physics.check_invalid_state():
            for _ in range(10):
                applied[:] = bias  # holds the arm up against gravity
                mujoco.mj_step2(model, data)
                mujoco.mj_step1(model, data)
        self.physics_copy.data.qpos[:] = physics.data.qpos
        return self._get_task_reward(self.task, "dense_reward")

    def _ik(self, pos: np.ndarray) -> np.ndarray:
        # The search moves a copy of the arm about: where its hand is depends on no contact, which would be found and
        # solved each time.
        options = self.physics.model.opt
        before = options.disableflags
        options.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT
        try:
            return super()._ik(pos)
        finally:
            options.disableflags = before


class RoboDesk:
    """One task.

    Args:
        env_id: the package's name, e.g. `open_slide`.
        env_kwargs: keyword arguments of the environment's constructor.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        desk: Any = _Desk  # its own signature calls None, no time limit, a mistake
        self.desk = desk(task=env_id, action_repeat=1, episode_length=None, **env_kwargs)
        known = self.desk.all_tasks
        if env_id not in known:
            raise ValueError(f"env_id {env_id!r} is not a RoboDesk task; one is `open_slide`.{near(env_id, known)}")
        self.physics = self.desk.physics
        self.low, self.high = -np.ones(5), np.ones(5)
        self.obs_dim = self.physics.model.nq + self.physics.model.nv + 3
        self._success = self.desk.reward_functions[env_id]
        self._camera: Camera | None = None
        self._render_size = render_size

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        before = np.random.get_state()  # the package draws from numpy's global generator alone
        np.random.seed(seed)
        try:
            self.desk.reset()
        finally:
            np.random.set_state(before)
        # Copies: the package keeps views, which move along with the blocks.
        self.desk.original_pos = {name: place.copy() for name, place in self.desk.original_pos.items()}

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one simulator step; return (reward, terminated, truncated, success)."""
        reward = self.desk.step(action)
        return float(reward), False, False, bool(np.all(self._success("success")))

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        arm, data = self.desk.num_joints, self.physics.data
        hand = self.physics.named.data.site_xpos["end_effector"]
        np.concatenate(
            [data.qpos[:arm], data.qvel[:arm], hand, data.qpos[arm:], data.qvel[arm:]], out=out, casting="same_kind"
        )

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8."""
        if self._camera is None:
            self._camera = Camera(self.physics.model.ptr, self._render_size, _CAMERA)
        return self._camera.draw(self.physics.data.ptr)

    def close(self) -> None:
        """Release the drawing context and the simulator."""
        if self._camera is not None:
            self._camera.close()
        self.physics.free()
        self.desk.physics_copy.free()
