"""A planning copy of a MuJoCo simulation: many action sequences rolled out natively from the present state."""

# Beside the import of a submodule pyright does not see MuJoCo's native names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy

import numpy as np

from pipeline.batched.states import States
from pipeline.extras import needs

with needs("pipeline"):
    import mujoco
    from mujoco.rollout import Rollout

_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS


class PlanningSimulator:
    """Rolls out action sequences from wherever the episode's own simulation stands.

    Args:
        model: of the episode, just reset: what the reset drew into it (targets, damping) is copied.
        data: the episode's own state, read at every call.
        steps: physics steps per agent step.
        coarseness: the copy takes `steps / coarseness` longer physics steps instead: cheaper and hardly worse.
        runge_kutta: whether the copy uses this method where the model does, else MuJoCo's implicit one.
        drawn: what the reset drew beside the state, (k,), for rewards that read it.

    Raises:
        ValueError: `coarseness` does not divide `steps`.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        steps: int,
        coarseness: int,
        runge_kutta: bool = True,
        drawn: np.ndarray | None = None,
    ):
        if steps % coarseness:
            raise ValueError(f"coarseness {coarseness} does not divide the {steps} physics steps of an agent step")
        self.steps = steps // coarseness
        self._source, self._episode, self.model = model, data, copy.deepcopy(model)
        self.model.opt.timestep *= coarseness
        if not runge_kutta and self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
            self.model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self.action_dim = self.model.nu
        self._drawn = np.zeros((1, 1, 0)) if drawn is None else drawn[None, None]
        self._low, self._high = model.actuator_ctrlrange.T
        self._data = mujoco.MjData(self.model)
        self._rollout = Rollout(nthread=0)  # in this thread: whole episodes are what runs in parallel
        self._size = mujoco.mj_stateSize(self.model, _FULL)
        self._buffers: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, actions: np.ndarray) -> States:
        """Roll out actions (P, T, nu) in [-1, 1]. The states are views that the next call overwrites."""
        num = len(actions)
        ctrl = self._low + (actions + 1) / 2 * (self._high - self._low)
        # One physics step more: MuJoCo's sensor readings at a step belong to the state before it.
        held = np.concatenate([np.repeat(ctrl, self.steps, axis=1), ctrl[:, -1:]], axis=1)
        shape = held.shape[:2]
        if shape not in self._buffers:
            self._buffers[shape] = np.empty((*shape, self._size)), np.empty((*shape, self.model.nsensordata))
        states, sensors = self._buffers[shape]
        now = np.empty(self._size)
        mujoco.mj_getState(self._source, self._episode, now, _FULL)
        self._rollout.rollout(
            self.model,
            self._data,
            np.tile(now, (num, 1)),
            held,
            state=states,
            sensordata=sensors,
            initial_warmstart=np.tile(self._episode.qacc_warmstart, (num, 1)),
        )
        full = states[:, self.steps - 1 : -1 : self.steps]
        qpos, qvel = full[..., 1 : 1 + self.model.nq], full[..., 1 + self.model.nq :][..., : self.model.nv]
        return States(qpos, qvel, ctrl, sensors[:, self.steps :: self.steps], full, self.model, self._drawn)
