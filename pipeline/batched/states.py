"""Simulated states as arrays, and what observations and rewards are computed from."""

# Beside the import of a submodule pyright does not see MuJoCo's native names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.extras import needs

with needs("pipeline"):
    import mujoco


class States(NamedTuple):
    """P x T simulated states: P copies or samples, one state after each of T control steps."""

    qpos: np.ndarray  # (P, T, nq)
    qvel: np.ndarray  # (P, T, nv)
    ctrl: np.ndarray  # (P, T, nu) in the simulator's own units
    sensordata: np.ndarray  # (P, T, nsensordata), as the real environment reads it in this state
    full: np.ndarray  # (P, T, n) MuJoCo's full-physics state: time, qpos, qvel, activations
    model: mujoco.MjModel
    drawn: np.ndarray  # (P, 1, k) what the reset drew beside the state, e.g. where the target is

    def sensor(self, *names: str) -> np.ndarray:
        """Return the readings (P, T, width) of sensors of the model, side by side."""
        parts = []
        for name in names:
            sensor = self.model.sensor(name)
            start = int(sensor.adr[0])
            parts.append(self.sensordata[..., start : start + int(sensor.dim[0])])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def joint(self, name: str) -> np.ndarray:
        """Return the position (P, T) of a joint with one degree of freedom."""
        return self.qpos[..., int(self.model.joint(name).qposadr[0])]

    def at(self, step: np.ndarray) -> States:
        """Return one state of each copy: that after control step (P,), as states (P, 1, ...)."""
        rows = np.arange(len(step))[:, None]
        names = ("qpos", "qvel", "ctrl", "sensordata", "full")
        return self._replace(**{name: getattr(self, name)[rows, step[:, None]] for name in names})

    @property
    def time(self) -> np.ndarray:
        """Seconds (P, T) of simulation since the reset."""
        return self.full[..., 0]

    @property
    def activations(self) -> np.ndarray:
        """The state (P, T, na) of the actuators."""
        start = 1 + self.model.nq + self.model.nv
        return self.full[..., start : start + self.model.na]


class Plane(NamedTuple):
    """Where the frame of a body is that moves in the x-z plane."""

    x: np.ndarray  # (P, T) m
    z: np.ndarray  # (P, T) m
    angle: np.ndarray  # (P, T) rad, about the y axis

    def at(self, point: np.ndarray) -> Plane:
        """Return the frame moved to a point (3,) given in this frame."""
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        x, z = float(point[0]), float(point[2])
        return Plane(self.x + x * cosine + z * sine, self.z + z * cosine - x * sine, self.angle)


def plane(states: States, body: str) -> Plane:
    """Return the frame of a body whose joints, and those of its ancestors, all move it in the x-z plane."""
    model, chain = states.model, []
    number = int(model.body(body).id)
    while number:
        chain.append(number)
        number = int(model.body_parentid[number])
    zero = np.zeros(states.qpos.shape[:-1])
    frame = Plane(zero, zero, zero)
    for number in reversed(chain):
        w, _, y, _ = model.body_quat[number]
        frame = frame.at(model.body_pos[number])
        frame = frame._replace(angle=frame.angle + 2 * np.arctan2(y, w))
        first = int(model.body_jntadr[number])
        for joint in range(first, first + int(model.body_jntnum[number])):
            frame = _moved(frame, states, joint)
    return frame


def _moved(frame: Plane, states: States, joint: int) -> Plane:
    model = states.model
    place = int(model.jnt_qposadr[joint])
    moved, axis = states.qpos[..., place] - model.qpos0[place], model.jnt_axis[joint]
    if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
        sine, cosine = np.sin(frame.angle), np.cos(frame.angle)
        x, z = moved * axis[0], moved * axis[2]
        return Plane(frame.x + x * cosine + z * sine, frame.z + z * cosine - x * sine, frame.angle)
    anchor = model.jnt_pos[joint]
    turned = frame.at(anchor)._replace(angle=frame.angle + moved * axis[1])
    return turned.at(-anchor)
