"""Many copies of one MuJoCo task, stepped together in C."""

# Beside the import of a submodule pyright does not see MuJoCo's native names.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.batched.form import ArrayForm
from pipeline.batched.forms import array_form
from pipeline.batched.states import States
from pipeline.extras import needs
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    import mujoco
    from mujoco.rollout import Rollout

_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS
_POOL = 1024  # real starts that are kept


class Simulation(NamedTuple):
    """What of a real environment is MuJoCo's own."""

    model: mujoco.MjModel
    data: mujoco.MjData
    substeps: int  # physics steps per control step


def simulation(spec: TaskSpec, simulator: Any) -> Simulation:
    """Return MuJoCo's part of a task's adapter."""
    if spec.suite in ("dmcontrol", "dmcontrol-ext"):
        physics = simulator.physics
        return Simulation(
            physics.model.ptr, physics.data.ptr, round(simulator.env.control_timestep() / physics.timestep())
        )
    body = simulator.env.unwrapped
    return Simulation(body.model, body.data, body.frame_skip)


def full_state(now: Simulation) -> np.ndarray:
    """Return MuJoCo's full-physics state, (n,): time, qpos, qvel, activations."""
    out = np.empty(mujoco.mj_stateSize(now.model, _FULL))
    mujoco.mj_getState(now.model, now.data, out, _FULL)
    return out


class Starts:
    """States that the real environment begins episodes with.

    A real reset costs as much as many batched steps. So the last `_POOL` are kept, and each draw adds one new.

    Args:
        spec: the task.
        form: the task on arrays.
        rng: draws the seeds of the resets, and which starts are taken.
    """

    def __init__(self, spec: TaskSpec, form: ArrayForm, rng: np.random.Generator):
        self.env = make(spec, spec.obs_dim, spec.action_dim)
        self._form, self._rng = form, rng
        self._starts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._next = 0
        self.add()

    def add(self) -> None:
        """Reset the real environment once and keep how it began."""
        obs, _ = self.env.reset(seed=int(self._rng.integers(2**32)))
        if self._form.hidden is not None:
            obs[self._form.hidden] = 0
        start = full_state(simulation(self.env.task, self.env.simulator)), obs, self._form.drawn(self.env.simulator)
        if len(self._starts) < _POOL:
            self._starts.append(start)
        else:
            self._starts[self._next % _POOL] = start
        self._next += 1

    def draw(self, count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return (full state, observation, what else was drawn) of `count` starts, one of them new."""
        self.add()
        newest = self._starts[(self._next - 1) % _POOL]
        return [newest, *(self._starts[k] for k in self._rng.integers(len(self._starts), size=count - 1))]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the starts that are kept, and how many there have been."""
        full, obs, drawn = (np.stack(part) for part in zip(*self._starts, strict=True))
        return {"starts.full": full, "starts.obs": obs, "starts.drawn": drawn}, {"starts": self._next}

    def load_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        parts = arrays["starts.full"], arrays["starts.obs"], arrays["starts.drawn"]
        self._starts, self._next = list(zip(*parts, strict=True)), values["starts"]

    def close(self) -> None:
        """Release the real environment."""
        self.env.close()


class Step(NamedTuple):
    """What a step of N copies led to. Copies whose episode ended have begun a new one."""

    obs: np.ndarray  # (N, O) float32, where the episode ended that of the new one
    reward: np.ndarray  # (N,) summed over the control steps of an agent step
    terminated: np.ndarray  # (N,) bool, for good
    truncated: np.ndarray  # (N,) bool, by the time limit, or because the physics diverged
    success: np.ndarray  # (N,) bool
    final_obs: np.ndarray  # (N, O) float32, before any new episode


class BatchedEnv:
    """N copies of a task. Episodes begin as the real environment's do, at different times of the copies.

    Args:
        spec: the task; `pipeline.batched.forms` must know it.
        num: N.
        seed: of all randomness.
        coarseness: physics steps of the real environment that one of the copies' replaces. 1: the same physics.
        threads: of the physics; 0 is this thread alone.
        form: the task on arrays; None for the catalogue's.

    Raises:
        ValueError: the task has no array form, or `coarseness` does not divide its physics steps.
    """

    def __init__(
        self,
        spec: TaskSpec,
        num: int,
        seed: int,
        coarseness: int = 1,
        threads: int = 0,
        form: ArrayForm | None = None,
    ):
        self.task, self.num = spec, num
        self.form = form or array_form(spec)
        self.rng = np.random.default_rng(seed)
        self.starts = Starts(spec, self.form, self.rng)
        real = simulation(spec, self.starts.env.simulator)
        if real.substeps % coarseness:
            raise ValueError(
                f"{spec.name}: coarseness {coarseness} does not divide the {real.substeps} physics steps of a control "
                "step."
            )
        self.model = copy.deepcopy(real.model)
        self.model.opt.timestep *= coarseness
        self._substeps = real.substeps // coarseness
        self._repeat = spec.action_repeat
        self._seconds = self.model.opt.timestep * self._substeps  # of a control step
        self._center, self._half = self.starts.env.action_center, self.starts.env.action_half
        self._data = [mujoco.MjData(self.model) for _ in range(max(threads, 1))]
        self._rollout = Rollout(nthread=threads)
        # One physics step more where there are sensors: MuJoCo's readings at a step belong to the state before it.
        steps = self._substeps * self._repeat + (self.model.nsensor > 0)
        size = mujoco.mj_stateSize(self.model, _FULL)
        self._states = np.empty((num, steps, size))
        self._sensors = np.empty((num, steps, self.model.nsensordata))
        self._late = _late_columns(self.model)
        self.full = np.empty((num, size))  # where each copy stands
        self.drawn = np.empty((num, 1, self.form.drawn(self.starts.env.simulator).size))
        self.obs = np.empty((num, spec.obs_dim), np.float32)
        self.steps = self.rng.integers(spec.episode_length, size=num)  # taken in each copy's episode
        self._begin(np.arange(num))

    def step(self, actions: np.ndarray, warmstart: np.ndarray | None = None) -> Step:
        """Take one agent step with every copy.

        Args:
            actions: (N, a), clipped to [-1, 1].
            warmstart: (N, nv) where the solver begins; None for from nothing, as good up to its tolerance.

        Raises:
            FloatingPointError: a reward is not finite although the state is; names task, step and copy.
        """
        before, after = self.roll(actions, warmstart)
        with np.errstate(all="ignore"):  # diverged copies are put aside below
            ended = _holds(self.form.terminated, after)
            terminated: np.ndarray = np.any(ended, axis=1)
            end = np.where(terminated, ended.argmax(axis=1), ended.shape[1] - 1)  # the last control step that counts
            reward = self.form.reward(after, before)
            reward = np.where(np.arange(reward.shape[1]) <= end[:, None], reward, 0).sum(axis=1)
            last = after.at(end)
            obs = self.form.observe(last)[:, 0].astype(np.float32)
            success = _holds(self.form.success, last)[:, 0]
        self.steps += 1
        self.full[:] = last.full[:, 0]
        # MuJoCo puts a state that diverged back to its rest, where time begins anew.
        seconds = self._seconds * (end + 1)
        late = np.abs(last.time[:, 0] - before.time[:, 0] - seconds) > 1e-6
        diverged = ~(np.isfinite(obs).all(axis=1) & np.isfinite(self.full).all(axis=1)) | late
        obs[diverged], reward[diverged], terminated[diverged] = 0, 0, False
        if not np.isfinite(reward).all():
            copy_ = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise FloatingPointError(
                f"{self.task.name}: the array form's reward of copy {copy_} at step {self.steps[copy_]} is "
                f"{reward[copy_]}, of the finite state qpos {after.qpos[copy_, -1].tolist()}, action "
                f"{actions[copy_].tolist()}."
            )
        truncated = ((self.steps >= self.task.episode_length) | diverged) & ~terminated
        final = obs
        over = np.flatnonzero(terminated | truncated)
        self.obs = obs.copy()
        if over.size:
            self._begin(over)
            self.steps[over] = 0
        return Step(self.obs, reward, terminated, truncated, success, final)

    def roll(self, actions: np.ndarray, warmstart: np.ndarray | None = None) -> tuple[States, States]:
        """Return the states before and after each control step of an agent step, without going there."""
        clipped = np.clip(actions, -1, 1)
        ctrl = np.repeat((self._center + self._half * clipped)[:, None], self._states.shape[1], axis=1)
        self._rollout.rollout(
            self.model,
            self._data,
            self.full,
            ctrl,
            state=self._states,
            sensordata=self._sensors,
            initial_warmstart=warmstart,
        )
        ends = self._substeps * np.arange(1, self._repeat + 1)
        full = np.concatenate([self.full[:, None], self._states[:, ends - 1]], axis=1)
        nq, nv = self.model.nq, self.model.nv
        qpos, qvel = full[..., 1 : 1 + nq], full[..., 1 + nq : 1 + nq + nv]
        sensors = self._sensors[:, ends] if self.model.nsensor else self._sensors[:, ends - 1]
        sensors[..., self._late] = self._sensors[:, ends - 1][..., self._late]
        held = ctrl[:, : self._repeat]
        unknown = sensors[..., :0]  # what sensors read before is not kept
        before = States(qpos[:, :-1], qvel[:, :-1], held, unknown, full[:, :-1], self.model, self.drawn)
        after = States(qpos[:, 1:], qvel[:, 1:], held, sensors, full[:, 1:], self.model, self.drawn)
        return before, after

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return where every copy stands: arrays, and the random generator."""
        now = {"full": self.full, "drawn": self.drawn, "obs": self.obs, "steps": self.steps}
        arrays, values = self.starts.state()
        return {**now, **arrays}, {**values, "rng": self.rng.bit_generator.state}

    def load_state(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.starts.load_state(arrays, values)
        for name in ("full", "drawn", "obs", "steps"):
            getattr(self, name)[:] = arrays[name]
        self.rng.bit_generator.state = values["rng"]

    def close(self) -> None:
        """Release the real environment and the threads."""
        self.starts.close()
        self._rollout.close()

    def _begin(self, copies: np.ndarray) -> None:
        """Begin new episodes."""
        for number, (full, obs, drawn) in zip(copies, self.starts.draw(len(copies)), strict=True):
            self.full[number], self.obs[number], self.drawn[number, 0] = full, obs, drawn


def _holds(condition: Callable[[States], np.ndarray] | None, states: States) -> np.ndarray:
    """Return where a condition holds, (P, T); nowhere if there is none."""
    return np.zeros(states.qpos.shape[:2], bool) if condition is None else condition(states)


def _late_columns(model: mujoco.MjModel) -> np.ndarray:
    """Return which readings the real environment has of the last physics step: those of forces and accelerations."""
    columns = [
        np.arange(model.sensor_adr[number], model.sensor_adr[number] + model.sensor_dim[number])
        for number in range(model.nsensor)
        if model.sensor_needstage[number] == mujoco.mjtStage.mjSTAGE_ACC
    ]
    return np.concatenate(columns).astype(int) if columns else np.zeros(0, int)
