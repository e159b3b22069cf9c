"""DeepMind Control tasks, and our variants and bodies, as arrays: observations and rewards.

Each is the suite's own, or our variant's (pipeline/tasks), written on generalised coordinates and sensors; a test holds
them equal to the real environment.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from pipeline.batched.form import ArrayForm, Observe, Reward, nothing
from pipeline.batched.states import States, plane
from pipeline.extras import needs

with needs("dmcontrol"):
    from dm_control.utils.rewards import tolerance

_INF = float("inf")
_WALKER_BODIES = ("torso", "right_thigh", "right_leg", "right_foot", "left_thigh", "left_leg", "left_foot")
_SLOPE = math.tan(math.radians(10))  # of the ground in front of the walker on an incline


def _rise(value: np.ndarray, target: float) -> np.ndarray:
    """Return 1 from `target` on, falling linearly to 0 at 0."""
    return np.clip(value / target, 0, 1)


# Observations, in the suite's order ----------------------------------------------------------------------------------


def observe_cartpole(states: States) -> np.ndarray:
    """Cart, cosine and sine of each pole against the vertical, velocities."""
    angles = np.cumsum(states.qpos[..., 1:], axis=-1)
    poles = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(*angles.shape[:-1], -1)
    return np.concatenate([states.qpos[..., :1], poles, states.qvel], axis=-1)


def observe_acrobot(states: States) -> np.ndarray:
    """Sines, then cosines of both links against the vertical, velocities."""
    angles = np.cumsum(states.qpos, axis=-1)
    return np.concatenate([np.sin(angles), np.cos(angles), states.qvel], axis=-1)


def observe_pendulum(states: States) -> np.ndarray:
    """Cosine and sine of the pole, velocity."""
    return np.concatenate([np.cos(states.qpos), np.sin(states.qpos), states.qvel], axis=-1)


def observe_reacher(states: States) -> np.ndarray:
    """Joint angles, from the finger to the target, velocities."""
    return np.concatenate([states.qpos, states.drawn - finger(states), states.qvel], axis=-1)


def observe_all(states: States) -> np.ndarray:
    """Positions and velocities."""
    return np.concatenate([states.qpos, states.qvel], axis=-1)


def observe_runner(states: States) -> np.ndarray:
    """Positions but the one along the ground, velocities."""
    return np.concatenate([states.qpos[..., 1:], states.qvel], axis=-1)


def observe_hopper(states: States) -> np.ndarray:
    """As `observe_runner`, and what the foot touches."""
    return np.concatenate([observe_runner(states), np.log1p(states.sensor("touch_toe", "touch_heel"))], axis=-1)


def observe_walker(states: States, slope: float = 0.0) -> np.ndarray:
    """Cosine and sine of each body's angle, height over the ground, velocities."""
    frames = [plane(states, body) for body in _WALKER_BODIES]
    angles = np.stack([frame.angle for frame in frames], axis=-1)
    bodies = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(*angles.shape[:-1], -1)
    height = frames[0].z - slope * frames[0].x
    return np.concatenate([bodies, height[..., None], states.qvel], axis=-1)


def observe_finger(states: States, turning: bool) -> np.ndarray:
    """Finger joints, where the spinner's tip is, velocities, touch; when turning also the target and how far it is."""
    middle = states.sensor("spinner")[..., [0, 2]]
    parts = [
        states.sensor("proximal", "distal"),
        states.sensor("tip")[..., [0, 2]] - middle,
        states.sensor("proximal_velocity", "distal_velocity", "hinge_velocity"),
        np.log1p(states.sensor("touchtop", "touchbottom")),
    ]
    if turning:
        parts += [np.broadcast_to(states.drawn - middle, middle.shape), turn_left(states)[..., None]]
    return np.concatenate(parts, axis=-1)


def observe_fish(states: States) -> np.ndarray:
    """Joint angles, how upright, the target seen from the mouth, velocities."""
    to_target, model = _mouth_to_target(states), states.model
    turned = _rotated(_quaternion(states, 3), to_target, inverse=True)  # into the torso's frame, then into the mouth's
    turned = _rotated(model.geom("mouth").quat, turned, inverse=True)
    upright = _upright(states, 3)[..., None]
    return np.concatenate([states.qpos[..., 7:], upright, turned, states.qvel], axis=-1)


def observe_quadruped(states: States) -> np.ndarray:
    """Joints and actuators, velocity and tilt of the torso, acceleration, turning, forces and torques at the toes."""
    toes = ("front_left", "front_right", "back_right", "back_left")
    forces = states.sensor(*(f"{kind}_toe_{toe}" for kind in ("force", "torque") for toe in toes))
    return np.concatenate(
        [
            states.qpos[..., 7:],
            states.qvel[..., 6:],
            states.activations,
            states.sensor("velocimeter"),
            _upright(states, 3)[..., None],
            states.sensor("imu_accel", "imu_gyro"),
            np.arcsinh(forces),
        ],
        axis=-1,
    )


def observe_spinner(states: States) -> np.ndarray:
    """Height, cosine and sine of the hub, leg joints, velocities."""
    hub = plane(states, "hub")
    seen = np.stack([hub.z, np.cos(states.joint("rooty")), np.sin(states.joint("rooty"))], axis=-1)
    return np.concatenate([seen, states.qpos[..., 3:], states.qvel], axis=-1)


# Rewards of a control step, from the state after it ------------------------------------------------------------------


def cartpole(states: States, before: States | None = None) -> np.ndarray:
    """Pole up, cart in the middle, little control, slow pole."""
    upright = (np.cos(states.qpos[..., 1]) + 1) / 2
    centered = (1 + tolerance(states.qpos[..., 0], margin=2)) / 2
    small_control = (4 + tolerance(states.ctrl[..., 0], margin=1, value_at_margin=0, sigmoid="quadratic")) / 5
    small_velocity = (1 + tolerance(states.qvel[..., 1], margin=5)) / 2
    return upright * small_control * small_velocity * centered


def cartpole_sparse(states: States, before: States | None = None) -> np.ndarray:
    """1 while every pole stands and the cart is near the middle."""
    near = np.abs(states.qpos[..., 0]) <= 0.25
    angles = np.cumsum(states.qpos[..., 1:], axis=-1)
    return (near & (np.cos(angles) >= 0.995).all(axis=-1)).astype(float)


def acrobot(states: States, before: States | None = None) -> np.ndarray:
    """The tip at the target above."""
    return np.asarray(tolerance(_tip_to_target(states), (0, states.model.site("target").size[0]), margin=1))


def reacher(states: States, before: States | None = None) -> np.ndarray:
    """1 while the finger touches the target."""
    touching = states.model.geom("target").size[0] + states.model.geom("finger").size[0]
    return (finger_to_target(states) <= touching).astype(float)


def pendulum_swingup(states: States, before: States | None = None) -> np.ndarray:
    """1 while the pole is within 8 degrees of upright."""
    return (np.cos(states.qpos[..., 0]) >= np.cos(np.deg2rad(8))).astype(float)


def pendulum_spin(states: States, before: States | None = None) -> np.ndarray:
    """Speed of the pole, full at 8 rad/s."""
    return _rise(np.abs(states.qvel[..., 0]), 8)


def cup_catch(states: States, before: States | None = None) -> np.ndarray:
    """1 while the ball is in the cup."""
    offset = np.abs(ball_to_target(states))
    room = states.model.site("target").size[[0, 2]] - states.model.geom("ball").size[0]
    return (offset < room).all(axis=-1).astype(float)


def cup_spin(states: States, before: States | None = None) -> np.ndarray:
    """The ball's angular speed around the string's end, full at 8 rad/s, times how far out it is."""
    x, z = np.moveaxis(ball_to_target(states) + np.array([0, 0.058]), -1, 0)  # the string ends below the target
    velocity = states.qvel[..., 2:4] - states.qvel[..., :2]
    distance = np.hypot(x, z)
    spin = (x * velocity[..., 1] - z * velocity[..., 0]) / np.maximum(distance**2, 1e-6)
    out = tolerance(distance, (0.2, _INF), margin=0.1, value_at_margin=0, sigmoid="linear")
    return out * _rise(np.abs(spin), 8)


def walker(
    states: States, before: States | None = None, *, speed: float, direction: int = 1, slope: float = 0.0
) -> np.ndarray:
    """Stand tall and upright; with a `speed` (m/s), move at least that fast into `direction`."""
    height = states.qpos[..., 0] + 1.3 - slope * states.qpos[..., 1]  # the root's z is measured from 1.3 m
    standing = tolerance(height, (1.2, _INF), margin=0.6)
    stand = (3 * standing + (1 + np.cos(states.qpos[..., 2])) / 2) / 4
    if speed == 0:
        return stand
    velocity = direction * states.sensor("torso_subtreelinvel")[..., 0]
    move = tolerance(velocity, (speed, _INF), margin=speed / 2, value_at_margin=0.5, sigmoid="linear")
    return stand * (5 * move + 1) / 6


def cheetah(states: States, before: States | None = None, *, speed: float, direction: int = 1) -> np.ndarray:
    """Speed into `direction`, full at `speed` m/s."""
    return _rise(direction * states.sensor("torso_subtreelinvel")[..., 0], speed)


def cheetah_one_leg(states: States, before: States | None = None, *, raised: str) -> np.ndarray:
    """One foot in the air, and forward speed, full at 4 m/s."""
    model = states.model
    geom = model.geom(raised)
    height = plane(states, model.body(int(geom.bodyid[0])).name).at(geom.pos).z
    move = _rise(states.sensor("torso_subtreelinvel")[..., 0], 4)
    return _rise(height - 0.1, 0.5) * (5 * move + 1) / 6


def cheetah_jump(states: States, before: States | None = None) -> np.ndarray:
    """The trunk high, and level."""
    torso = plane(states, "torso")
    return _rise(torso.z - 0.6, 0.8) * np.maximum(np.cos(torso.angle), 0)


def finger_spin(states: States, before: States | None = None) -> np.ndarray:
    """1 while the free body turns at 15 rad/s or more, the right way round."""
    return (states.qvel[..., 2] <= -15).astype(float)


def finger_turn(states: States, before: States | None = None) -> np.ndarray:
    """1 while the tip of the free body is in the target."""
    return (turn_left(states) <= 0).astype(float)


def fish_swim(states: States, before: States | None = None) -> np.ndarray:
    """The mouth at the target, and a little for swimming upright."""
    radii = states.model.geom("mouth").size[0] + states.model.geom("target").size[0]
    at_target = tolerance(np.linalg.norm(_mouth_to_target(states), axis=-1), (0, radii), margin=2 * radii)
    return (7 * at_target + (_upright(states, 3) + 1) / 2) / 8


def hopper_stand(states: States, before: States | None = None) -> np.ndarray:
    """The torso over the foot, with little control."""
    standing = tolerance(torso_over_foot(states), (0.6, 2))
    control = np.asarray(tolerance(states.ctrl, margin=1, value_at_margin=0, sigmoid="quadratic")).mean(axis=-1)
    return standing * (control + 4) / 5


def hopper_hop(states: States, before: States | None = None, *, direction: int = 1) -> np.ndarray:
    """The torso over the foot, and speed into `direction`, full at 2 m/s."""
    standing = tolerance(torso_over_foot(states), (0.6, 2))
    speed = direction * states.sensor("torso_subtreelinvel")[..., 0]
    return standing * np.asarray(tolerance(speed, (2, _INF), margin=1, value_at_margin=0.5, sigmoid="linear"))


def quadruped(states: States, before: States | None = None, *, speed: float) -> np.ndarray:
    """Upright, and forward speed of the torso, full at `speed` m/s."""
    forward = states.sensor("velocimeter")[..., 0]
    move = tolerance(forward, (speed, _INF), margin=speed, value_at_margin=0.5, sigmoid="linear")
    upright = tolerance(_upright(states, 3), (1, _INF), margin=2, value_at_margin=0, sigmoid="linear")
    return np.asarray(move * upright)


def jumper(states: States, before: States | None = None) -> np.ndarray:
    """The torso high."""
    return _rise(plane(states, "torso").z - 0.85, 0.65)


def spinner_spin(states: States, before: States | None = None, *, direction: int) -> np.ndarray:
    """Angular speed into `direction`, full at 6 rad/s."""
    return _rise(direction * states.qvel[..., int(states.model.joint("rooty").dofadr[0])], 6)


def spinner_jump(states: States, before: States | None = None) -> np.ndarray:
    """The hub high."""
    return _rise(plane(states, "hub").z - 0.55, 0.5)


def giraffe(states: States, before: States | None = None) -> np.ndarray:
    """Forward speed, full at 6 m/s."""
    return _rise(states.sensor("torso_subtreelinvel")[..., 0], 6)


# Geometry ------------------------------------------------------------------------------------------------------------


def finger(states: States) -> np.ndarray:
    """Return where the finger of a reacher is, (P, T, 2), m."""
    model, angles = states.model, np.cumsum(states.qpos, axis=-1)
    links, body = [], int(model.body("finger").id)
    while body != model.body("arm").id:  # each link is as long as its child is far away
        links.append(float(model.body_pos[body, 0]))
        body = int(model.body_parentid[body])
    lengths = np.array(links[::-1])
    return np.stack([np.cos(angles) @ lengths, np.sin(angles) @ lengths], axis=-1)


def finger_to_target(states: States) -> np.ndarray:
    """Return (P, T), m."""
    return np.linalg.norm(states.drawn - finger(states), axis=-1)


def ball_to_target(states: States) -> np.ndarray:
    """Return x and z from the cup's target to the ball, (P, T, 2), m."""
    cup, ball = states.qpos[..., :2], states.qpos[..., 2:4]
    model = states.model
    rest = model.body("ball").pos - model.body("cup").pos - model.site("target").pos
    return ball - cup + rest[[0, 2]]


def torso_over_foot(states: States) -> np.ndarray:
    """Return how far the torso's centre of mass is above the foot's, (P, T), m: of the hopper."""
    model = states.model
    torso, foot = (plane(states, body).at(model.body(body).ipos).z for body in ("torso", "foot"))
    return torso - foot


def mouth_to_target(states: States) -> np.ndarray:
    """Return (P, T), m: of the fish."""
    return np.linalg.norm(_mouth_to_target(states), axis=-1)


def _mouth_to_target(states: States) -> np.ndarray:
    forward = _rotated(_quaternion(states, 3), states.model.geom("mouth").pos)
    return states.drawn - (states.qpos[..., :3] + forward)


def turn_left(states: States) -> np.ndarray:
    """Return how far the spinner's tip is from the target's surface, (P, T), m; negative inside."""
    to_target = states.drawn - states.sensor("tip")[..., [0, 2]]
    return np.linalg.norm(to_target, axis=-1) - states.model.site("target").size[0]


def _tip_to_target(states: States) -> np.ndarray:
    """Return (P, T), m. Both links of the acrobot are 1 m long and the target is where they stand on end."""
    first, second = states.qpos[..., 0], states.qpos[..., 0] + states.qpos[..., 1]
    return np.hypot(np.sin(first) + np.sin(second), 2 - np.cos(first) - np.cos(second))


def _quaternion(states: States, start: int) -> np.ndarray:
    """Return the quaternion (w, x, y, z) of a free joint, (P, T, 4), as MuJoCo uses it: of length 1."""
    found = states.qpos[..., start : start + 4]
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def _upright(states: States, start: int) -> np.ndarray:
    """Return the cosine of the angle between a free body's z axis and the vertical, (P, T)."""
    _, x, y, _ = np.moveaxis(_quaternion(states, start), -1, 0)
    return 1 - 2 * (x * x + y * y)


def _rotated(quaternion: np.ndarray, vector: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Return vectors (..., 3) turned by quaternions (..., 4), or back."""
    w, axis = quaternion[..., :1], quaternion[..., 1:] * (-1 if inverse else 1)
    vector = np.broadcast_to(vector, np.broadcast_shapes(axis.shape, vector.shape))
    twice = 2 * np.cross(axis, vector)
    return vector + w * twice + np.cross(axis, twice)


# Tasks ---------------------------------------------------------------------------------------------------------------


def _geom_target(width: int) -> Any:
    def drawn(simulator: Any) -> np.ndarray:
        return np.array(simulator.physics.named.model.geom_pos["target"][:width])

    return drawn


def _site_target(simulator: Any) -> np.ndarray:
    return np.array(simulator.physics.named.model.site_pos["target", ["x", "z"]])


def _form(observe: Observe, reward: Reward, drawn: Any = nothing) -> ArrayForm:
    return ArrayForm(observe=observe, reward=reward, drawn=drawn)


_TURNING = partial(observe_finger, turning=True)
_UPHILL = partial(observe_walker, slope=_SLOPE)
FORMS: dict[str, ArrayForm] = {
    "acrobot/swingup": _form(observe_acrobot, acrobot),
    "ball_in_cup/catch": _form(observe_all, cup_catch),
    "ball_in_cup/spin": _form(observe_all, cup_spin),
    "cartpole/balance": _form(observe_cartpole, cartpole),
    "cartpole/balance_long_sparse": _form(observe_cartpole, cartpole_sparse),
    "cartpole/balance_sparse": _form(observe_cartpole, cartpole_sparse),
    "cartpole/balance_two_poles_sparse": _form(observe_cartpole, cartpole_sparse),
    "cartpole/swingup": _form(observe_cartpole, cartpole),
    "cartpole/swingup_sparse": _form(observe_cartpole, cartpole_sparse),
    "cheetah/jump": _form(observe_runner, cheetah_jump),
    "cheetah/run": _form(observe_runner, partial(cheetah, speed=10)),
    "cheetah/run_back": _form(observe_runner, partial(cheetah_one_leg, raised="ffoot")),
    "cheetah/run_backward": _form(observe_runner, partial(cheetah, speed=8, direction=-1)),
    "cheetah/run_front": _form(observe_runner, partial(cheetah_one_leg, raised="bfoot")),
    "finger/spin": _form(partial(observe_finger, turning=False), finger_spin),
    "finger/turn_easy": _form(_TURNING, finger_turn, _site_target),
    "finger/turn_hard": _form(_TURNING, finger_turn, _site_target),
    "fish/swim": _form(observe_fish, fish_swim, _geom_target(3)),
    "giraffe/run": _form(observe_runner, giraffe),
    "hopper/hop": _form(observe_hopper, hopper_hop),
    "hopper/hop_backward": _form(observe_hopper, partial(hopper_hop, direction=-1)),
    "hopper/stand": _form(observe_hopper, hopper_stand),
    "jumper/jump": _form(observe_runner, jumper),
    "pendulum/spin": _form(observe_pendulum, pendulum_spin),
    "pendulum/swingup": _form(observe_pendulum, pendulum_swingup),
    "quadruped/run": _form(observe_quadruped, partial(quadruped, speed=5)),
    "quadruped/walk": _form(observe_quadruped, partial(quadruped, speed=0.5)),
    "reacher/easy": _form(observe_reacher, reacher, _geom_target(2)),
    "reacher/hard": _form(observe_reacher, reacher, _geom_target(2)),
    "reacher/three_easy": _form(observe_reacher, reacher, _geom_target(2)),
    "reacher/three_hard": _form(observe_reacher, reacher, _geom_target(2)),
    "spinner/jump": _form(observe_spinner, spinner_jump),
    "spinner/spin": _form(observe_spinner, partial(spinner_spin, direction=1)),
    "spinner/spin_backward": _form(observe_spinner, partial(spinner_spin, direction=-1)),
    "spinner_four/jump": _form(observe_spinner, spinner_jump),
    "walker/run": _form(observe_walker, partial(walker, speed=8)),
    "walker/run_backward": _form(observe_walker, partial(walker, speed=8, direction=-1)),
    "walker/run_incline": _form(_UPHILL, partial(walker, speed=8, slope=_SLOPE)),
    "walker/stand": _form(observe_walker, partial(walker, speed=0)),
    "walker/stand_incline": _form(_UPHILL, partial(walker, speed=0, slope=_SLOPE)),
    "walker/walk": _form(observe_walker, partial(walker, speed=1)),
    "walker/walk_backward": _form(observe_walker, partial(walker, speed=1, direction=-1)),
    "walker/walk_incline": _form(_UPHILL, partial(walker, speed=1, slope=_SLOPE)),
}
