"""Our own tasks on the DeepMind Control Suite's bodies.

Each shares body, observation and distribution of starts with a task of the suite: under one seed the first
observations are equal to the bit, so only the instruction tells the two apart. Every reward is in [0, 1] per
simulator step, as in the suite, so the return of 500 agent steps with action repeat 2 is at most 1000.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import ball_in_cup, cheetah, pendulum, walker
from dm_control.utils import rewards

_POLE_SPEED = 8.0  # rad/s; the torque limit and the hinge's damping allow about 10
_BALL_SPEED = 8.0  # rad/s; the string stays taut at the top from about 6
_BALL_RADIUS = 0.2  # m; two thirds of the string, out of the cup's reach
_WALK_SPEED, _RUN_SPEED = 1.0, 8.0  # m/s, those of the suite's walker
_CHEETAH_SPEED = 8.0  # m/s; the suite asks for 10 forwards, the body is slower backwards


class PendulumSpin(pendulum.SwingUp):
    """Keep the pole whirling around its hinge, in either direction.

    Reward: |angular velocity| / 8 rad/s, at most 1.
    """

    def get_reward(self, physics: pendulum.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return _at_least(abs(physics.angular_velocity().item()), _POLE_SPEED)


class CupSpin(ball_in_cup.BallInCup):
    """Swing the ball in circles around the cup on a stretched string, in either direction.

    Reward: |angular velocity of the ball around the string's end at the cup| / 8 rad/s, at most 1, times how far out
    the ball is (1 from 0.2 m, falling linearly to 0 at 0.1 m), so that a ball rattling in the cup earns nothing.
    """

    def get_reward(self, physics: ball_in_cup.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        data = physics.named.data
        x, z = data.site_xpos["ball", ["x", "z"]] - data.site_xpos["cup", ["x", "z"]]
        cup_x, cup_z, ball_x, ball_z = physics.velocity()
        distance = np.hypot(x, z)
        spin = (x * (ball_z - cup_z) - z * (ball_x - cup_x)) / max(distance**2, 1e-6)
        out = rewards.tolerance(
            distance, (_BALL_RADIUS, float("inf")), margin=_BALL_RADIUS / 2, value_at_margin=0, sigmoid="linear"
        )
        return float(out) * _at_least(abs(spin), _BALL_SPEED)


class WalkerBackward(walker.PlanarWalker):
    """Walk or run backwards, upright.

    Reward: the suite's, with the horizontal speed counted backwards:
    stand * (5 * move + 1) / 6, where move is 1 from the target speed and falls linearly to 0.5 at half of it.
    """

    def get_reward(self, physics: walker.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        standing = rewards.tolerance(physics.torso_height(), (1.2, float("inf")), margin=0.6)
        upright = (1 + physics.torso_upright()) / 2
        speed = self._move_speed
        move = rewards.tolerance(
            -physics.horizontal_velocity(), (speed, float("inf")), speed / 2, sigmoid="linear", value_at_margin=0.5
        )
        return float((3 * standing + upright) / 4 * (5 * move + 1) / 6)


class CheetahBackward(cheetah.Cheetah):
    """Run backwards.

    Reward: backward speed / 8 m/s, between 0 and 1.
    """

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return _at_least(-float(physics.speed()), _CHEETAH_SPEED)


def _at_least(value: float, target: float) -> float:
    """Return 1 from `target` on, falling linearly to 0 at 0."""
    return min(max(value / target, 0.0), 1.0)


def _pendulum_spin() -> Environment:
    return Environment(pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets()), PendulumSpin())


def _cup_spin() -> Environment:
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    return Environment(physics, CupSpin(), control_timestep=0.02)


def _walker_backward(speed: float) -> Environment:
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    return Environment(physics, WalkerBackward(speed), control_timestep=0.025)


def _cheetah_backward() -> Environment:
    return Environment(cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets()), CheetahBackward())


VARIANTS: dict[str, Callable[..., Environment]] = {
    "pendulum/spin": _pendulum_spin,
    "ball_in_cup/spin": _cup_spin,
    "walker/walk_backward": lambda: _walker_backward(_WALK_SPEED),
    "walker/run_backward": lambda: _walker_backward(_RUN_SPEED),
    "cheetah/run_backward": _cheetah_backward,
}
