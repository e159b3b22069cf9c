"""Meta-World's own scripted experts, made to end where the task is scored: at the last step."""

from __future__ import annotations

import warnings

import numpy as np

from pipeline.extras import needs

with needs("metaworld"):
    from metaworld.policies import ENV_POLICY_MAP

# Their experts reach success and then move on and lose it, in at least one of ten episodes. While such a task is
# successful its expert stops. The others do better without: stopping on the border of success is a habit that a clone
# imitates a little short of it.
OVERSHOOTING = frozenset(
    f"{name}-v3"
    for name in (
        "basketball", "box-close", "button-press-wall", "coffee-button", "coffee-push", "door-close", "door-lock",
        "faucet-close", "faucet-open", "lever-pull", "peg-unplug-side", "plate-slide-back", "plate-slide-back-side",
        "plate-slide-side", "push-back", "shelf-place", "stick-pull", "sweep-into",
    )
)  # fmt: skip
# Here success is a height that the handle must keep: their experts press it through, and it springs back when let go.
PRESSING = frozenset({"handle-press-v3", "handle-press-side-v3"})

_HAND, _HAND_BEFORE, _OBJECT_HEIGHT, _GOAL_HEIGHT = slice(0, 3), slice(18, 21), 6, 38  # places in the observation
_BRAKE = 100.0  # actions are 1 cm; the arm still has some way to go to where it was last sent
_PRESS_GAIN, _PRESS_RANGE = 25.0, 0.03  # per metre; metres above the goal from which the expert presses gently


class Script:
    """The scripted expert of one task.

    Args:
        env_id: Meta-World's name of the task, e.g. `reach-v3`.
    """

    def __init__(self, env_id: str):
        self._policy = ENV_POLICY_MAP[env_id]()
        self._stops, self._presses = env_id in OVERSHOOTING, env_id in PRESSING

    def act(self, obs: np.ndarray, success: bool) -> np.ndarray:
        """Return the action (4,) in [-1, 1] for an observation (39,) in which the task is successful or not."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")  # clipped below, as there
            action = np.clip(self._policy.get_action(obs.astype(np.float64)), -1.0, 1.0)
        if success and self._stops:  # the gripper keeps its force
            action[:3] = np.clip(_BRAKE * (obs[_HAND_BEFORE] - obs[_HAND]), -1.0, 1.0)
        below = float(obs[_GOAL_HEIGHT] - obs[_OBJECT_HEIGHT])
        if self._presses and below > -_PRESS_RANGE:
            action[2] = np.clip(_PRESS_GAIN * below, -1.0, 1.0)
        return action
