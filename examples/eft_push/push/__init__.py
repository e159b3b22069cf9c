"""Push a ball to a mark with a cart: a small MuJoCo environment that can be stepped as arrays too.

`Push` is an ordinary Gymnasium environment. Its method `array_form` says the same on arrays of states, for `eft teach`:
both use the two functions below, which do not mind how many states they are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

if TYPE_CHECKING:
    from pipeline.batched.form import ArrayForm

_MODEL = Path(__file__).with_name("push.xml")
_SUBSTEPS = 4  # of 10 ms, per step
_THERE = 0.03  # m from the mark, that count as being there


def observe(qpos: np.ndarray, qvel: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """Return what is seen, (..., 5): places and speeds of cart and ball, (..., 2) each; from the ball to the mark."""
    return np.concatenate([qpos, qvel, mark - qpos[..., 1:]], axis=-1)


def distance(qpos: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """Return how far the ball is from the mark, (...), m."""
    return np.abs(mark - qpos[..., 1:])[..., 0]


class Push(MujocoEnv):
    """A cart pushes a ball along a rail to a mark. It cannot pull: what rolls too far is lost.

    Observation (5): places of cart and ball and their speeds, m and m/s; from the ball to the mark, m.
    Action (1): the cart's motor, 1 = 4 N to the right.
    Reward: exp(-4 distance / m) of ball and mark. `info["success"]`: the ball is within 3 cm of the mark.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, **drawing: Any) -> None:
        seen = Box(-np.inf, np.inf, (5,), np.float64)
        self.mark = np.zeros(1)
        super().__init__(str(_MODEL), _SUBSTEPS, seen, camera_name="side", **drawing)

    def reset_model(self) -> np.ndarray:
        """Put the cart behind the ball and the mark before it."""
        draw = self.np_random.uniform
        self.mark = draw(0.1, 0.6, 1)
        self.model.site("goal").pos[0] = self.mark[0]  # is drawn, and touches nothing
        self.set_state(np.array([draw(-0.7, -0.5), draw(-0.3, -0.1)]), np.zeros(2))
        return observe(self.data.qpos, self.data.qvel, self.mark)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Advance by 40 ms.

        Only `qpos` and `qvel` are of the time after the step: what MuJoCo derives from them (`xpos`, sensors, contacts)
        is of one physics step before, in Gymnasium's `do_simulation`, and would not be the same on arrays.
        """
        self.do_simulation(action, self.frame_skip)
        away = float(distance(self.data.qpos, self.mark))
        seen = observe(self.data.qpos, self.data.qvel, self.mark)
        return seen, float(np.exp(-4 * away)), False, False, {"success": away < _THERE}

    def array_form(self) -> ArrayForm:
        """Return the same on arrays: states.qpos is (P, T, 2), states.drawn (P, 1, 1)."""
        from pipeline.batched.form import ArrayForm

        return ArrayForm(
            observe=lambda states: observe(states.qpos, states.qvel, states.drawn),
            reward=lambda states, before: np.exp(-4 * distance(states.qpos, states.drawn)),
            # Of the environment that was just reset, which is not this one.
            drawn=lambda simulator: simulator.env.unwrapped.mark,
            success=lambda states: distance(states.qpos, states.drawn) < _THERE,
        )


gymnasium.register("lab/Push-v0", entry_point=Push)
