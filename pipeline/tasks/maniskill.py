"""ManiSkill 3 tasks, and our variants on its robots, as a `Simulator`."""

# pyright: reportMissingImports=false
# (ManiSkill takes gigabytes and is not part of the development install.)

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import sapien
from mani_skill import logger
from mani_skill.agents.registration import REGISTERED_AGENTS
from mani_skill.utils import assets
from mani_skill.utils.registration import REGISTERED_ENVS

from pipeline.config import near
from pipeline.tasks.domains import AssetsUnavailable, DomainUnavailable
from pipeline.tasks.maniskill_variants import VARIANTS

logger.setLevel(logging.ERROR)  # it warns of its own scenes, twice for each that is built

# Scenes that each episode builds anew: of a body of two shapes, the order in which they touch outlives all else.
_REBUILT = ("PullCubeTool-v1",)


class ManiSkill:
    """One ManiSkill task on the CPU, one robot per instance.

    The observation is ManiSkill's own `state`, flattened in its order: joints, then poses of tool, objects and goal.
    Rewards are its normalised dense ones, at most 1 per simulator step. `success` is the task's own, False where it
    defines none. Episodes never terminate: what ManiSkill calls success or failure does not end one, as in MMBench.

    Args:
        env_id: ManiSkill's name, e.g. `PickCube-v1`, or one of our variants, e.g. `Reach`.
        env_kwargs: keyword arguments of the environment's constructor, e.g. `control_mode`, `robot_uids`.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such task.
        DomainUnavailable: this machine has no Vulkan device.
        AssetsUnavailable: files that the task needs are not on this machine.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        registered = REGISTERED_ENVS.get(env_id)
        make: Any = VARIANTS.get(env_id) or (registered and registered.cls)
        if not make:
            raise ValueError(
                f"env_id {env_id!r} is not a ManiSkill task; it looks like `PickCube-v1`."
                + near(env_id, [*REGISTERED_ENVS, *VARIANTS])
            )
        self.require_files(env_id, env_kwargs)
        drawing = {
            "render_mode": "rgb_array",
            "human_render_camera_configs": {"width": render_size, "height": render_size},
        }
        try:
            # Built directly: gym.make would add a time limit and, where files are missing, wait for an answer.
            self.env: Any = make(
                obs_mode="state",
                reward_mode="normalized_dense",
                num_envs=1,
                sim_backend="physx_cpu",
                render_backend="gpu" if _has_cuda() else "cpu",
                **(drawing if render_size else {}),
                **env_kwargs,
            )
        except RuntimeError as error:
            if not any(word in str(error) for word in ("rendering device", "vk::", "Vulkan")):
                raise
            raise DomainUnavailable(
                "ManiSkill found no Vulkan device, which it needs even where nothing is drawn. Without a GPU, Mesa's "
                "lavapipe 24.3 or newer will do: on Debian 12 `apt install -t bookworm-backports "
                "mesa-vulkan-drivers`, on newer Debian or Ubuntu `apt install mesa-vulkan-drivers`."
            ) from error
        self._rebuilt = env_id in _REBUILT
        self.low, self.high = self.env.action_space.low.ravel(), self.env.action_space.high.ravel()
        self._obs: Any = self.env.reset(seed=0)[0]
        self.obs_dim = self._obs.shape[-1]

    @staticmethod
    def require_files(env_id: str, env_kwargs: dict[str, Any]) -> None:
        """Look for the files that a task needs.

        Raises:
            AssetsUnavailable: some are not on this machine.
        """
        registered, own = REGISTERED_ENVS.get(env_id), VARIANTS.get(env_id)
        needed = registered.asset_download_ids if registered else own.ASSETS if own else []
        robot = REGISTERED_AGENTS.get(env_kwargs.get("robot_uids", ""))
        _require([*(needed or []), *(robot.asset_download_ids if robot else [])])

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        if self._rebuilt:
            self._obs, _ = self.env.reset(seed=seed, options={"reconfigure": True})
            return
        self._forget_contacts()
        self._obs, _ = self.env.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one control step; return (reward, terminated, truncated, success)."""
        self._obs, reward, _, _, info = self.env.step(action.astype(np.float32))
        return float(reward), False, False, bool(info.get("success", False))

    def save(self) -> dict[str, Any]:
        """Return where all bodies of the scene are and how they move, for `restore` of this or another instance."""
        return self.env.get_state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Put all bodies where `save` found them; what touched is not remembered."""
        self.env.set_state_dict(state)

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        out[:] = self._obs[0].numpy()

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8, upright."""
        return self.env.render_rgb_array()[0].cpu().numpy()

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def _forget_contacts(self) -> None:
        # PhysX keeps what touched at the end of an episode through a reset, and the next one would depend on it.
        # Steps with everything out of reach leave nothing to keep: of contacts the first, of their forces the second.
        loose = [actor for actor in self.env.scene.actors.values() if actor.px_body_type == "dynamic"]
        loose += [body for body in self.env.scene.articulations.values() if not body.fixed_root_link.all()]
        for number, body in enumerate(loose):
            body.set_pose(sapien.Pose([0, 0, 100 + 10 * number]))
        for _ in range(2):
            self.env.scene.step()


def _has_cuda() -> bool:
    with contextlib.suppress(RuntimeError):
        return sapien.Device("cuda").can_render()
    return False


def _require(names: list[str]) -> None:
    missing = [name for name in names if not assets.is_data_source_downloaded(name)]
    if missing:
        places = ", ".join(
            f"{name} in {assets.DATA_SOURCES[name].output_dir / assets.DATA_SOURCES[name].target_path}"
            for name in missing
        )
        raise AssetsUnavailable(
            f"the files it needs are not on this machine: {places}. Fetch them with "
            + " and ".join(f"`python -m mani_skill.utils.download_asset {name}`" for name in missing)
            + " (MS_ASSET_DIR moves them elsewhere)."
        )
