"""Our own tasks on our own bodies: jumper, spinner, giraffe. In the suite's form, rewards in [0, 1] per simulator step.

Every observation leaves out the position along the ground. The bodies are in `bodies/`.
"""

from __future__ import annotations

import collections
import math
import xml.etree.ElementTree as etree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dm_control.mujoco import Physics
from dm_control.rl.control import Environment
from dm_control.suite import base, common

from pipeline.tasks.dmcontrol_rewards import at_least

_BODIES = Path(__file__).parent / "bodies"
_CONTROL_SECONDS = 0.02
_SETTLE_STEPS = 200  # physics steps after a random start, before the episode begins
_SPIN_SPEED = 6.0  # rad/s
_GIRAFFE_SPEED = 6.0  # m/s


class _Settled(base.Task):
    """An episode begins with random joint angles, once the body has come to rest on the ground."""

    def initialize_episode(self, physics: Physics) -> None:
        """Draw the joint angles, and for a body that can turn over its angle, and let it settle."""
        limited = physics.model.jnt_limited == 1
        lower, upper = physics.model.jnt_range[limited].T
        physics.data.qpos[limited] = self.random.uniform(lower, upper) / 2
        self._place(physics)
        physics.step(nstep=_SETTLE_STEPS)
        physics.data.time = 0
        super().initialize_episode(physics)

    def _place(self, physics: Physics) -> None:
        """Set what is not a limited joint."""

    def get_observation(self, physics: Physics) -> collections.OrderedDict:
        """Return positions but the first, and velocities."""
        return collections.OrderedDict(position=physics.data.qpos[1:].copy(), velocity=physics.velocity())


class JumperJump(_Settled):
    """Jump as high as possible, again and again.

    Observation (7): height of the torso against its rest, hip and knee; their velocities and the one along the ground.
    Reward: 0 at the height of standing (0.85 m), rising linearly to 1 at 1.5 m.
    """

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return at_least(physics.named.data.xpos["torso", "z"] - 0.85, 0.65)


class Spinner(_Settled):
    """A hub with legs all around it.

    Observation (6 + 2 x legs): height, cosine and sine of the hub's angle, leg joints; velocities along the ground,
    upwards, of rotation, of the leg joints.
    """

    def _place(self, physics: Physics) -> None:
        physics.named.data.qpos["rooty"] = self.random.uniform(-math.pi, math.pi)

    def get_observation(self, physics: Physics) -> collections.OrderedDict:
        """Return height, orientation, joints and velocities: the angle itself grows as the body rolls."""
        angle = physics.named.data.qpos["rooty"].item()
        hub = [physics.named.data.xpos["hub", "z"], math.cos(angle), math.sin(angle)]
        return collections.OrderedDict(
            hub=np.array(hub), joints=physics.data.qpos[3:].copy(), velocity=physics.velocity()
        )


class SpinnerSpin(Spinner):
    """Roll over and over, forwards or backwards.

    Reward: angular velocity in the direction asked for / 6 rad/s, between 0 and 1.
    """

    def __init__(self, direction: int) -> None:
        super().__init__()
        self._direction = direction

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return at_least(self._direction * physics.named.data.qvel["rooty"].item(), _SPIN_SPEED)


class SpinnerJump(Spinner):
    """Jump as high as possible, again and again.

    Reward: 0 while the hub is at most 0.55 m high, the length of a stretched leg, rising linearly to 1 at 1.05 m.
    """

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return at_least(physics.named.data.xpos["hub", "z"] - 0.55, 0.5)


class GiraffeRun(_Settled):
    """Run forward.

    Observation (19): height and angle of the trunk against its rest, neck, three joints of each leg; their velocities
    and the one along the ground.
    Reward: forward speed of the whole body / 6 m/s, between 0 and 1.
    """

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the current state, in [0, 1]."""
        return at_least(physics.named.data.sensordata["torso_subtreelinvel"][0], _GIRAFFE_SPEED)


def _environment(xml: bytes, task: base.Task) -> Environment:
    physics = Physics.from_xml_string(xml, common.ASSETS)
    return Environment(physics, task, control_timestep=_CONTROL_SECONDS)


def _body(name: str) -> bytes:
    return (_BODIES / f"{name}.xml").read_bytes()


def _spinner(legs: int) -> bytes:
    model: Any = etree.fromstring(_body("spinner"))
    hub, actuators = model.find("./worldbody/body"), model.find("./actuator")
    for number in range(legs):
        angle = 2 * math.pi * number / legs
        name = f"leg_{number + 1}"
        where = f"{0.14 * math.cos(angle):.6f} 0 {0.14 * math.sin(angle):.6f}"
        leg = etree.SubElement(hub, "body", name=name, pos=where, childclass="leg", euler=f"0 {-math.degrees(angle)} 0")
        etree.SubElement(leg, "joint", name=name)
        etree.SubElement(leg, "geom", name=name)
        etree.SubElement(actuators, "motor", name=name, joint=name)
    return etree.tostring(model)


BODIES: dict[str, Callable[..., Environment]] = {
    "jumper/jump": lambda: _environment(_body("jumper"), JumperJump()),
    "spinner/spin": lambda: _environment(_spinner(5), SpinnerSpin(+1)),
    "spinner/spin_backward": lambda: _environment(_spinner(5), SpinnerSpin(-1)),
    "spinner/jump": lambda: _environment(_spinner(5), SpinnerJump()),
    "spinner_four/jump": lambda: _environment(_spinner(4), SpinnerJump()),
    "giraffe/run": lambda: _environment(_body("giraffe"), GiraffeRun()),
}
