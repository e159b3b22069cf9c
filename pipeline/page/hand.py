"""Driving a body by hand: what arrow keys, two sticks and a gripper key mean to each kind of body."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.tasks.spec import TaskSpec

_DEAD = 0.15  # of a gamepad's stick: less is its own noise


class Stick(NamedTuple):
    """What the hands do."""

    x: float = 0.0  # in [-1, 1]: left to right
    y: float = 0.0  # down to up, or near to far
    z: float = 0.0  # S to W, or the second stick
    turn: float = 0.0  # A to D
    grip: bool = False  # the gripper key was pressed an odd number of times
    heading: float = 0.0  # radians that the viewer looks away from +y, to the left

    @property
    def moved(self) -> bool:
        """Whether something is pushed."""
        return any((self.x, self.y, self.z, self.turn))


class Hands:
    """The hands of all viewers, of which one drives: the last that began to push. May be called from any thread."""

    def __init__(self) -> None:
        self._lock, self._of = threading.Lock(), dict[int | None, Stick]()
        self._driver: int | None = None
        self._now = Stick()

    def push(self, viewer: int, stick: Stick) -> Stick:
        """Take what a viewer's hands do now, and return what drives. Who pushes nothing takes it from nobody."""
        with self._lock:
            before = self._of.get(viewer, Stick())
            self._of[viewer] = stick
            grip = self._now.grip != (stick.grip != before.grip)  # a viewer who comes has not pressed the key yet
            if stick.moved and not (before.moved and self._of.get(self._driver, Stick()).moved):
                self._driver = viewer
            if viewer == self._driver:
                self._now = stick
            self._now = self._now._replace(grip=grip)
            return self._now

    def part(self, viewer: int) -> Stick:
        """Forget a viewer who has left, and return what drives."""
        with self._lock:
            self._of.pop(viewer, None)
            if viewer == self._driver:
                self._driver, self._now = None, Stick(grip=self._now.grip)
            return self._now


def read_stick(text: str) -> Stick | None:
    """Read what the browser sends, `x y z turn grip`; None for anything else, since a browser may send anything."""
    try:
        x, y, z, turn, grip = (float(part) for part in text[:80].split())
    except ValueError:
        return None
    if not all(map(math.isfinite, (x, y, z, turn, grip))):
        return None
    axes = (0.0 if abs(value) < _DEAD else min(max(value, -1.0), 1.0) for value in (x, y, z, turn))
    return Stick(*axes, grip=grip > 0.5)


def steer(spec: TaskSpec, stick: Stick) -> np.ndarray:
    """Return the action (a,) float32 in [-1, 1] of a task's body."""
    action = np.zeros(max(spec.action_dim, 5))
    _kind(spec)[0](stick, action)
    return np.clip(action[: spec.action_dim], -1, 1).astype(np.float32)


def explain(spec: TaskSpec) -> str:
    """Say what the keys do to this body."""
    return _kind(spec)[1]


def waits(spec: TaskSpec) -> bool:
    """Return whether a body stands still by itself, so that time may stand still while nothing is pushed."""
    return spec.suite in ("metaworld", "robodesk", "maniskill") or spec.env_id.startswith("point")


def _arm(stick: Stick, action: np.ndarray) -> None:
    """A hand in space: arrows as the viewer sees them, W and S up and down, then the gripper."""
    cos, sin = math.cos(stick.heading), math.sin(stick.heading)
    action[0], action[1] = cos * stick.x - sin * stick.y, sin * stick.x + cos * stick.y
    action[2], action[3] = stick.z, 1.0 if stick.grip else -1.0


def _desk(stick: Stick, action: np.ndarray) -> None:
    _arm(stick, action)
    action[3], action[4] = stick.turn, -1.0 if stick.grip else 1.0  # it opens with 1


def _point(stick: Stick, action: np.ndarray) -> None:
    cos, sin = math.cos(stick.heading), math.sin(stick.heading)
    action[0], action[1] = cos * stick.x - sin * stick.y, sin * stick.x + cos * stick.y


def _joystick(stick: Stick, action: np.ndarray) -> None:
    """A console's joystick as distance and angle, and its button."""
    action[0] = 2 * min(math.hypot(stick.x, stick.y), 1.0) - 1
    action[1], action[2] = math.atan2(stick.y, stick.x) / math.pi, 1.0 if stick.grip else -1.0


def _lander(stick: Stick, action: np.ndarray) -> None:
    action[0], action[1] = stick.y if stick.y > 0 else -1.0, stick.x


def _motors(stick: Stick, action: np.ndarray) -> None:
    action[:5] = stick.x, stick.y, stick.z, stick.turn, 1.0 if stick.grip else -1.0


_ARM = "Arrows move the hand as you see it, W and S up and down, space closes and opens the gripper."
_KINDS: dict[str, tuple[Callable[[Stick, np.ndarray], None], str]] = {
    "metaworld": (_arm, _ARM),
    "maniskill": (_arm, _ARM),
    "robodesk": (_desk, f"{_ARM} A and D turn the wrist."),
    "point": (_point, "Arrows move the point."),
    "atari": (_joystick, "Arrows are the joystick, space holds and releases the button."),
    "lander": (_lander, "Up is the main engine, left and right the side engines."),
}


def _kind(spec: TaskSpec) -> tuple[Callable[[Stick, np.ndarray], None], str]:
    for key in (spec.suite, spec.env_id.split("/")[0]):
        if key in _KINDS:
            return _KINDS[key]
    names = ["left and right", "up and down", "S and W", "A and D", "space"]
    parts = ", ".join(f"{name} number {number + 1}" for number, name in enumerate(names[: spec.action_dim]))
    rest = "" if spec.action_dim <= 5 else f" The other {spec.action_dim - 5} stay 0."
    return _motors, f"The action has {spec.action_dim} numbers. Keys set them: {parts}.{rest}"
