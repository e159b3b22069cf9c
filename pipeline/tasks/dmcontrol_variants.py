"""Our own tasks on the DeepMind Control Suite's bodies.

Most share body, observation and distribution of starts with a task of the suite: under one seed the first
observations are equal to the bit, so only the instruction tells the two apart. The others change the body a little:
a third link, a second or a longer pole, ground that rises. Every reward is in [0, 1] per simulator step, as in the
suite, so the return of 500 agent steps with action repeat 2 is at most 1000.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as etree
from collections.abc import Callable
from typing import Any

import numpy as np
from dm_control.rl.control import Environment
from dm_control.suite import ball_in_cup, cartpole, cheetah, hopper, pendulum, reacher, walker
from dm_control.utils import rewards

from pipeline.tasks.dmcontrol_bodies import BODIES
from pipeline.tasks.dmcontrol_rewards import at_least

_POLE_SPEED = 8.0  # rad/s; the torque limit and the hinge's damping allow about 10
_BALL_SPEED = 8.0  # rad/s; the string stays taut at the top from about 6
_BALL_RADIUS = 0.2  # m; two thirds of the string, out of the cup's reach
_WALK_SPEED, _RUN_SPEED = 1.0, 8.0  # m/s, those of the suite's walker
_CHEETAH_SPEED = 8.0  # m/s; the suite asks for 10 forwards, the body is slower backwards
_ONE_LEG_SPEED = 4.0  # m/s; of a cheetah running on one of its two legs
_FOOT_DOWN, _FOOT_RAISED = 0.1, 0.6  # m; of the other foot, standing and raised
_TRUNK_LOW, _TRUNK_HIGH = 0.6, 1.4  # m; of the cheetah's trunk, standing and in a good jump
_HOP_SPEED, _HOPPER_HEIGHT = 2.0, 0.6  # m/s and m, the suite's
_BIG_TARGET, _SMALL_TARGET = 0.05, 0.015  # m, the suite's
_LONG_POLE = 2.0  # m; the suite's is 1
_SLOPE = math.radians(10)  # of the ground that rises before the walker


class PendulumSpin(pendulum.SwingUp):
    """Keep the pole whirling around its hinge, in either direction.

    Reward: |angular velocity| / 8 rad/s, at most 1.
    """

    def get_reward(self, physics: pendulum.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return at_least(abs(physics.angular_velocity().item()), _POLE_SPEED)


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
        return float(out) * at_least(abs(spin), _BALL_SPEED)


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
        return at_least(-float(physics.speed()), _CHEETAH_SPEED)


class CheetahOneLeg(cheetah.Cheetah):
    """Run forward on one leg, the other foot in the air.

    Reward: how high the other foot is (0 at 0.1 m, where it stands, rising linearly to 1 at 0.6 m) *
    (5 * move + 1) / 6, where move is the forward speed / 4 m/s, between 0 and 1.

    Args:
        raised: the foot to hold up, `bfoot` to run on the front leg, `ffoot` to run on the back leg.
    """

    def __init__(self, raised: str) -> None:
        super().__init__()
        self._raised = raised

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        height = physics.named.data.geom_xpos[self._raised, "z"]
        move = at_least(physics.speed(), _ONE_LEG_SPEED)
        return at_least(height - _FOOT_DOWN, _FOOT_RAISED - _FOOT_DOWN) * (5 * move + 1) / 6


class CheetahJump(cheetah.Cheetah):
    """Jump as high as possible, again and again, without turning over.

    Reward: how high the trunk is (0 at 0.6 m, where it stands, rising linearly to 1 at 1.4 m) * how level it is
    (1 where level, 0 where on end or upside down).
    """

    def get_reward(self, physics: cheetah.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        height = physics.named.data.xpos["torso", "z"]
        level = max(float(physics.named.data.xmat["torso", "zz"]), 0.0)
        return at_least(height - _TRUNK_LOW, _TRUNK_HIGH - _TRUNK_LOW) * level


class HopperBackward(hopper.Hopper):
    """Hop backwards.

    Reward: the suite's, with the horizontal speed counted backwards: 1 while the torso is 0.6 m or more above the
    foot, else 0, times a factor that is 1 from 2 m/s and falls linearly to 0.5 at 1 m/s.
    """

    def get_reward(self, physics: hopper.Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        standing = rewards.tolerance(physics.height(), (_HOPPER_HEIGHT, 2))
        hopping = rewards.tolerance(
            -physics.speed(), (_HOP_SPEED, float("inf")), _HOP_SPEED / 2, sigmoid="linear", value_at_margin=0.5
        )
        return float(standing * hopping)


class InclinePhysics(walker.Physics):
    """The suite's walker on ground that rises by 10 degrees in front of it; heights are above the ground."""

    def torso_height(self) -> float:
        """Return the height of the torso over the ground below it, in metres."""
        x, z = self.named.data.xpos["torso", ["x", "z"]]
        return z - x * math.tan(_SLOPE)


def _pendulum_spin() -> Environment:
    return Environment(pendulum.Physics.from_xml_string(*pendulum.get_model_and_assets()), PendulumSpin())


def _cup_spin() -> Environment:
    physics = ball_in_cup.Physics.from_xml_string(*ball_in_cup.get_model_and_assets())
    return Environment(physics, CupSpin(), control_timestep=0.02)


def _walker_backward(speed: float) -> Environment:
    physics = walker.Physics.from_xml_string(*walker.get_model_and_assets())
    return Environment(physics, WalkerBackward(speed), control_timestep=0.025)


def _walker_incline(speed: float) -> Environment:
    """The suite's stand, walk and run: same observation (24), same reward."""
    xml, assets = walker.get_model_and_assets()
    model: Any = etree.fromstring(xml)
    floor = model.find("./worldbody/geom[@name='floor']")
    along, up = math.cos(_SLOPE), math.sin(_SLOPE)
    floor.set("pos", f"{248 * along} 0 {248 * up}")
    floor.set("zaxis", f"{-up} 0 {along}")
    physics = InclinePhysics.from_xml_string(etree.tostring(model), assets)
    return Environment(physics, walker.PlanarWalker(speed), control_timestep=0.025)


def _cheetah(task: cheetah.Cheetah) -> Environment:
    return Environment(cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets()), task)


def _hopper_backward() -> Environment:
    physics = hopper.Physics.from_xml_string(*hopper.get_model_and_assets())
    return Environment(physics, HopperBackward(hopping=True), control_timestep=0.02)


def _reacher_three(target: float) -> Environment:
    """The suite's reacher with a third link as long as the second; reward 1 while the fingertip is in the target.

    Observation (8): three joint angles, the vector from finger to target, three joint velocities.
    """
    xml, assets = reacher.get_model_and_assets()
    model: Any = etree.fromstring(xml)
    hand = model.find(".//body[@name='hand']")
    finger = hand.find("./body[@name='finger']")
    link = etree.SubElement(hand, "body", name="forearm", pos=".1 0 0")
    etree.SubElement(link, "geom", name="forearm", type="capsule", fromto="0 0 0 0.1 0 0", size=".01", material="self")
    etree.SubElement(link, "joint", name="elbow", limited="true", range="-160 160")
    hand.remove(finger)
    link.append(finger)
    etree.SubElement(model.find("./actuator"), "motor", name="elbow", joint="elbow")
    physics = reacher.Physics.from_xml_string(etree.tostring(model), assets)
    return Environment(physics, reacher.Reacher(target))


def _balance(xml: bytes, assets: dict) -> Environment:
    """The suite's sparse reward: 1 while every pole is within 6 degrees of upright and the cart near the middle."""
    task = cartpole.Balance(swing_up=False, sparse=True)
    return Environment(cartpole.Physics.from_xml_string(xml, assets), task)


def _long_pole() -> Environment:
    """Observation (5): the suite's. The pole is two metres long and as heavy as the suite's."""
    xml, assets = cartpole.get_model_and_assets()
    model: Any = etree.fromstring(xml)
    model.find(".//default[@class='pole']/geom").set("fromto", f"0 0 0 0 0 {_LONG_POLE}")
    model.find("./worldbody/geom[@name='floor']").set("pos", f"0 0 {1 - _LONG_POLE - 0.05}")
    model.find("./worldbody/camera").set("pos", "0 -5.5 1.5")
    return _balance(etree.tostring(model), assets)


VARIANTS: dict[str, Callable[..., Environment]] = {
    "pendulum/spin": _pendulum_spin,
    "ball_in_cup/spin": _cup_spin,
    "walker/walk_backward": lambda: _walker_backward(_WALK_SPEED),
    "walker/run_backward": lambda: _walker_backward(_RUN_SPEED),
    "walker/stand_incline": lambda: _walker_incline(0),
    "walker/walk_incline": lambda: _walker_incline(_WALK_SPEED),
    "walker/run_incline": lambda: _walker_incline(_RUN_SPEED),
    "cheetah/run_backward": lambda: _cheetah(CheetahBackward()),
    "cheetah/run_front": lambda: _cheetah(CheetahOneLeg("bfoot")),
    "cheetah/run_back": lambda: _cheetah(CheetahOneLeg("ffoot")),
    "cheetah/jump": lambda: _cheetah(CheetahJump()),
    "hopper/hop_backward": _hopper_backward,
    "reacher/three_easy": lambda: _reacher_three(_BIG_TARGET),
    "reacher/three_hard": lambda: _reacher_three(_SMALL_TARGET),
    "cartpole/balance_two_poles_sparse": lambda: _balance(*cartpole.get_model_and_assets(num_poles=2)),
    "cartpole/balance_long_sparse": _long_pole,
    **BODIES,
}
