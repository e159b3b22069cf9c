"""What leads on where a task's reward is flat: added to it in planning, and early in a teacher's training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.batched.dmcontrol import (
    ball_to_target,
    cartpole,
    finger_to_target,
    hopper_stand,
    mouth_to_target,
    torso_over_foot,
    turn_left,
)
from pipeline.batched.states import States
from pipeline.extras import needs

with needs("dmcontrol"):
    from dm_control.utils.rewards import tolerance


def toward_upright_energy(states: States) -> np.ndarray:
    """Draw the pole to the energy of standing still upright, and a little upwards.

    With it a planner that looks half a second ahead pumps the same way in the same state, which a clone can learn;
    from the bare reward it would have to see the whole swing-up.
    """
    angle, velocity = states.qpos[..., 0], states.qvel[..., 0]
    length, radius = states.model.geom("mass").pos[2], states.model.geom("mass").size[0]
    frequency_squared = 9.81 * length / (length**2 + 0.4 * radius**2)  # of small swings: gravity over inertia
    energy = velocity**2 / (2 * frequency_squared) + np.cos(angle) - 1
    return tolerance(np.cos(angle), (np.cos(np.deg2rad(8)), 1), margin=1) - 0.5 * np.abs(energy) + 0.1 * np.cos(angle)


def toward_middle(states: States) -> np.ndarray:
    """The dense reward, and the cart drawn to the middle more strongly: the sparse one leaves it little room."""
    return cartpole(states) - 0.1 * np.abs(states.qpos[..., 0])


def toward_middle_poles(states: States) -> np.ndarray:
    """Every pole up, slowly, and the cart in the middle."""
    angles = np.cumsum(states.qpos[..., 1:], axis=-1)
    upright = ((np.cos(angles) + 1) / 2).prod(axis=-1)
    return upright / (1 + 0.05 * np.square(states.qvel).sum(axis=-1)) - 0.1 * np.abs(states.qpos[..., 0])


def toward_cup(states: States) -> np.ndarray:
    """Draw the ball to the cup."""
    return -0.3 * np.linalg.norm(ball_to_target(states), axis=-1)


def toward_spin(states: States) -> np.ndarray:
    """Draw the free body into turning the right way round."""
    return -0.01 * states.qvel[..., 2].clip(-30, 15)


def toward_target(states: States) -> np.ndarray:
    """Draw the finger to the target, and let it come to rest there."""
    return -finger_to_target(states) - 0.001 * np.square(states.qvel).sum(axis=-1)


def toward_food(states: States) -> np.ndarray:
    """Draw the mouth to the target."""
    return -2 * mouth_to_target(states)


def toward_standing(states: States) -> np.ndarray:
    """Draw the torso up over the foot, and upright."""
    angle = np.arctan2(np.sin(states.qpos[..., 2]), np.cos(states.qpos[..., 2]))
    return torso_over_foot(states).clip(None, 0.9) - 0.2 * np.abs(angle)


def toward_the_sky(states: States) -> np.ndarray:
    """Draw the acrobot to the energy of standing on end, and its tip up.

    Both links are 1 m long, weigh the same, and have their centre of mass in the middle.
    """
    first, second = states.qpos[..., 0], states.qpos[..., 0] + states.qpos[..., 1]
    turning, swinging = states.qvel[..., 0], states.qvel[..., 0] + states.qvel[..., 1]
    model = states.model
    mass, inertia = model.body("lower_arm").mass[0], model.body("lower_arm").inertia[0]
    kinetic = 0.5 * inertia * (turning**2 + swinging**2) + 0.5 * mass * (
        1.25 * turning**2 + 0.25 * swinging**2 + turning * swinging * np.cos(states.qpos[..., 1])
    )
    potential = 9.81 * mass * (1.5 * np.cos(first) + 0.5 * np.cos(second))
    standing = 9.81 * mass * 2
    height = (np.cos(first) + np.cos(second) + 2) / 4
    return height - np.abs(kinetic + potential - standing) / (2 * standing)


def toward_the_turn(states: States) -> np.ndarray:
    """Draw the tip of the free body to the target."""
    return -0.5 * np.maximum(turn_left(states), 0)


def toward_hopping(states: States) -> np.ndarray:
    """Stand, and move forward while standing, at any speed."""
    speed = states.sensor("torso_subtreelinvel")[..., 0]
    standing = hopper_stand(states)
    return 0.2 * toward_standing(states) + 0.3 * standing + 0.3 * standing * speed.clip(-1, 2)


def toward_hopping_backward(states: States) -> np.ndarray:
    """The same, backwards."""
    speed = -states.sensor("torso_subtreelinvel")[..., 0]
    standing = hopper_stand(states)
    return 0.2 * toward_standing(states) + 0.3 * standing + 0.3 * standing * speed.clip(-1, 2)


SHAPING: dict[str, Callable[[States], np.ndarray]] = {
    "pendulum-swingup": toward_upright_energy,
    "cartpole-balance-sparse": toward_middle,
    "cartpole-balance-long-sparse": toward_middle,
    "cartpole-swingup-sparse": toward_middle,
    "reacher-easy": toward_target,
    "reacher-hard": toward_target,
    "cup-catch": toward_cup,
    "finger-spin": toward_spin,
    "fish-swim": toward_food,
    "hopper-stand": toward_standing,
}
# What only teachers are led by.
TEACHING: dict[str, Callable[[States], np.ndarray]] = {
    **SHAPING,
    "acrobot-swingup": toward_the_sky,
    "reacher-three-easy": toward_target,
    "reacher-three-hard": toward_target,
    "finger-turn-easy": toward_the_turn,
    "finger-turn-hard": toward_the_turn,
    "hopper-hop": toward_hopping,
    "hopper-hop-backward": toward_hopping_backward,
    "cartpole-balance-two-poles-sparse": toward_middle_poles,
}
