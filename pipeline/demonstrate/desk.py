"""Scripted experts for RoboDesk: where the hand should go next, from what is observed alone.

The drawer has none: pulled by its handle, the arm folds up to its joint limits before the drawer is half open. The door
is opened in time only where it stands ajar at the start: the arm pushes it by no more than 6 mm per agent step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_HAND, _SLIDE, _BLOCK = slice(18, 21), 22, slice(43, 46)  # places in the observation; m
_BUTTONS = {"red": -0.45, "green": -0.25, "blue": -0.05}  # x of the buttons
_BUTTON_Y, _BUTTON_Z = 0.625, 0.76
_STEP = 0.01  # m per simulator step at full action
_CLOSED = -1.0

# Observation -> where the hand should go (3,), and how hastily.
Reach = Callable[[np.ndarray], tuple[np.ndarray, float]]


def has_desk_script(env_id: str) -> bool:
    """Return whether RoboDesk's task `env_id`, e.g. `push_red`, has an expert."""
    return env_id in _REACHES


def desk_script(env_id: str) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Return who acts in a task of RoboDesk."""
    reach = _REACHES[env_id]

    def act(obs: np.ndarray, success: bool) -> np.ndarray:
        goal, haste = reach(obs.astype(float))
        motion = np.clip(haste * (goal - obs[_HAND]) / _STEP, -1, 1)
        return np.array([*motion, 0.0, _CLOSED])

    return act


def _press(colour: str) -> Reach:
    x = _BUTTONS[colour]

    def reach(obs: np.ndarray) -> tuple[np.ndarray, float]:
        aside = np.hypot(obs[_HAND][0] - x, obs[_HAND][1] - _BUTTON_Y)
        return np.array([x, _BUTTON_Y, _BUTTON_Z + (0.1 if aside > 0.03 else -0.02)]), 0.3

    return reach


def _slide(obs: np.ndarray) -> tuple[np.ndarray, float]:
    """Reach in to the left of the handle, then push it to the right."""
    hand, handle = obs[_HAND], np.array([obs[_SLIDE] - 0.3, 0.78, 0.935])
    left = handle[0] - hand[0]
    if hand[1] < 0.75 and left < 0.06:  # in front of it, or past it
        return np.array([handle[0] - 0.1, 0.68, handle[2]]), 1.0
    if left < 0.02:  # behind it on the wrong side
        return np.array([hand[0], 0.68, handle[2]]), 1.0
    if hand[1] < 0.75:
        return np.array([handle[0] - 0.08, handle[1], handle[2]]), 1.0
    return handle + np.array([0.2, 0, 0]), 1.0


def _block_in_bin(obs: np.ndarray) -> tuple[np.ndarray, float]:
    """Push the block in line with the bin, then over the edge of the desk."""
    hand, block = obs[_HAND], obs[_BLOCK]
    if block[2] < 0.7:
        return np.array([hand[0], hand[1], 0.95]), 0.3
    if 0.31 < block[0] < 0.49:
        way, room = np.array([0.0, -1.0]), 0.12
    else:
        way, room = np.array([1.0 if block[0] < 0.4 else -1.0, 0.0]), 0.12
    offset = hand[:2] - block[:2]
    along, aside = offset @ way, offset - (offset @ way) * way
    start = block[:2] - room * way
    if along < -0.01 and np.linalg.norm(aside) < 0.05 and hand[2] < 0.83:
        return np.array([*(block[:2] + 0.1 * way), 0.78]), 0.4
    if np.linalg.norm(hand[:2] - start) < 0.03:
        return np.array([*start, 0.77]), 0.5
    if hand[2] < 0.88:
        return np.array([hand[0], hand[1], 0.95]), 0.7
    return np.array([*start, 0.93]), 0.7


_REACHES: dict[str, Reach] = {
    **{f"push_{colour}": _press(colour) for colour in _BUTTONS},
    "open_slide": _slide,
    "flat_block_in_bin": _block_in_bin,
}
