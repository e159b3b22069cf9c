"""Our own tasks on ManiSkill's robots: what MMBench lists and ManiSkill 3 does not have.

Torch is ManiSkill's own language; only methods of its tensors are used here, each with a leading axis of 1.

| env_id | reward of one simulator step | success |
|---|---|---|
| AntWalk, AntRun | ManiSkill's: speed along x up to the target, upright | 0.8 of that speed, torso off the ground |
| CartpoleBalanceSparse, CartpoleSwingUpSparse | 1 while the pole is upright near the middle | none |
| Reach | nearness of the tool to a point; 1 once there and still | tool within 2.5 cm and still |
| PickYCB | ManiSkill's, for one object of the YCB set | object within 2.5 cm of the goal and robot still |
| PushYCB | nearness of tool to object and object to goal; 1 on success | object within 10 cm of the goal, on table |

Observations are ManiSkill's of the base task; in `Reach`, tool pose, goal and their difference follow the joints.
"""

# pyright: reportMissingImports=false
# (ManiSkill takes gigabytes and is not part of the development install.)

from __future__ import annotations

from typing import Any

import numpy as np
import sapien
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.control.ant import AntRun as ManiSkillAntRun
from mani_skill.envs.tasks.control.ant import AntWalk as ManiSkillAntWalk
from mani_skill.envs.tasks.control.cartpole import CartpoleBalanceEnv, CartpoleSwingUpEnv
from mani_skill.envs.tasks.tabletop.pick_cube import PickCubeEnv
from mani_skill.envs.tasks.tabletop.pick_single_ycb import PickSingleYCBEnv
from mani_skill.utils import common
from mani_skill.utils.building import actors
from mani_skill.utils.scene_builder.table import TableSceneBuilder
from mani_skill.utils.structs.pose import Pose

_FAST_ENOUGH = 0.8  # of the target speed: a gait's speed swings around its mean
_TORSO_UP = 0.4  # meters; it stands at 0.56
_UPRIGHT, _CENTERED = 0.995, 0.25  # cosine of the pole's angle, meters from the middle: as DMControl's sparse cartpole


class _AntSucceeds:
    """ManiSkill's ants define no success, which the score of these tasks is made of."""

    ASSETS: tuple[str, ...] = ()
    SPEED: float  # meters per second along x

    def evaluate(self: Any) -> dict[str, Any]:
        info = super().evaluate()  # type: ignore[misc]
        fast = info["cmass_linvel"][:, 0] >= _FAST_ENOUGH * self.SPEED
        # The height of ManiSkill's own reward is an entry of the torso's rotation; this one is the height.
        return {**info, "success": fast & (self.agent.robot.links_map["torso"].pose.p[:, 2] >= _TORSO_UP)}


class AntWalk(_AntSucceeds, ManiSkillAntWalk):
    """An ant walks along x."""

    SPEED = 0.5


class AntRun(_AntSucceeds, ManiSkillAntRun):
    """An ant runs along x."""

    SPEED = 4.0


class _SparseCartpole:
    ASSETS: tuple[str, ...] = ()

    def compute_dense_reward(self: Any, obs: Any, action: Any, info: dict) -> Any:
        cart = self.agent.robot.links_map["cart"].pose.p[:, 0]
        return ((self.pole_angle_cosine >= _UPRIGHT) & (cart.abs() <= _CENTERED)).float()


class CartpoleBalanceSparse(_SparseCartpole, CartpoleBalanceEnv):
    """Keep the pole upright; the reward is 1 or 0."""


class CartpoleSwingUpSparse(_SparseCartpole, CartpoleSwingUpEnv):
    """Swing the pole up; the reward is 1 or 0."""


class Reach(PickCubeEnv):
    """Bring the tool to a point in the air over an empty table, drawn as in PickCube."""

    ASSETS: tuple[str, ...] = ()

    def _load_scene(self, options: dict) -> None:
        self.table_scene = TableSceneBuilder(self, robot_init_qpos_noise=self.robot_init_qpos_noise)
        self.table_scene.build()
        self.goal_site = actors.build_sphere(
            self.scene,
            radius=self.goal_thresh,
            color=[0, 1, 0, 1],
            name="goal_site",
            body_type="kinematic",
            add_collision=False,
            initial_pose=sapien.Pose(),
        )

    def _initialize_episode(self, env_idx: Any, options: dict) -> None:
        self.table_scene.initialize(env_idx)
        side = self.cube_spawn_half_size
        goal = self._episode_rng.uniform([-side, -side, 0.02], [side, side, self.max_goal_height])
        self.goal_site.set_pose(Pose.create_from_pq(common.to_tensor(goal[None].astype(np.float32))))

    def _get_obs_extra(self, info: dict) -> dict[str, Any]:
        tool, goal = self.agent.tcp.pose, self.goal_site.pose.p
        return {"tcp_pose": tool.raw_pose, "goal_pos": goal, "tcp_to_goal_pos": goal - tool.p}

    def evaluate(self) -> dict[str, Any]:
        distance = _distance(self.agent.tcp.pose.p, self.goal_site.pose.p)
        reached = distance <= self.goal_thresh
        return {"distance": distance, "reached": reached, "success": reached & self.agent.is_static(0.2)}

    def compute_dense_reward(self, obs: Any, action: Any, info: dict) -> Any:
        still = 1 - (5 * self.agent.tcp.linear_velocity.norm(dim=1)).tanh()
        reward = (1 - (5 * info["distance"]).tanh() + info["reached"] * (1 + still)) / 3
        return reward.masked_fill(info["success"], 1.0)

    def compute_normalized_dense_reward(self, obs: Any, action: Any, info: dict) -> Any:
        return self.compute_dense_reward(obs, action, info)


class PickYCB(PickSingleYCBEnv):
    """Pick up one object of the YCB set and hold it at a point in the air.

    Args:
        model: which one, by ManiSkill's name, e.g. `013_apple`.
        kwargs: of PickSingleYCB.
    """

    ASSETS: tuple[str, ...] = ("ycb",)

    def __init__(self, *, model: str, **kwargs: Any) -> None:
        self._model = model
        super().__init__(reconfiguration_freq=0, **kwargs)  # one object: the scene is built once

    def _load_scene(self, options: dict) -> None:
        if self._model not in self.all_model_ids:
            raise ValueError(f"the YCB set has no {self._model!r}; it has {', '.join(self.all_model_ids)}.")
        self.all_model_ids = np.array([self._model])
        super()._load_scene(options)


class PushYCB(PickYCB):
    """Push one object of the YCB set 20 cm away from the robot, to a marked place on the table."""

    def _initialize_episode(self, env_idx: Any, options: dict) -> None:
        super()._initialize_episode(env_idx, options)
        goal = self.obj.pose.p.clone()
        self._resting_height = goal[:, 2].clone()
        goal[:, 0] += 0.2
        self.goal_site.set_pose(Pose.create_from_pq(goal))

    def evaluate(self) -> dict[str, Any]:
        place = self.obj.pose.p
        there = _distance(place[:, :2], self.goal_site.pose.p[:, :2]) <= 0.1
        on_table = (place[:, 2] - self._resting_height).abs() <= 0.05
        return {"success": there & on_table, "is_grasped": self.agent.is_grasping(self.obj)}

    def compute_dense_reward(self, obs: Any, action: Any, info: dict) -> Any:
        place, goal = self.obj.pose.p, self.goal_site.pose.p
        behind = place.clone()
        behind[:, 0] -= 0.05
        reaching = 1 - (5 * _distance(self.agent.tcp.pose.p, behind)).tanh()
        pushed = 1 - (5 * _distance(place[:, :2], goal[:, :2])).tanh()
        return ((reaching + 3 * pushed) / 4).masked_fill(info["success"], 1.0)

    def compute_normalized_dense_reward(self, obs: Any, action: Any, info: dict) -> Any:
        return self.compute_dense_reward(obs, action, info)


def _distance(one: Any, other: Any) -> Any:
    return (one - other).norm(dim=1)


_VARIANTS = (AntWalk, AntRun, CartpoleBalanceSparse, CartpoleSwingUpSparse, Reach, PickYCB, PushYCB)
VARIANTS: dict[str, type[BaseEnv]] = {one.__name__: one for one in _VARIANTS}
