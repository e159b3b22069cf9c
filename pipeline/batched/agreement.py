"""Whether a task's array form agrees with its real environment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.batched.env import BatchedEnv, full_state, simulation
from pipeline.batched.form import ArrayForm
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

EXACT = 1e-6
_COPIES = 3  # one of them stands where the real environment does, the others go their own ways
_OURS = 1


def check_form(
    spec: TaskSpec,
    form: ArrayForm | None = None,
    steps: int = 50,
    tolerance: float = EXACT,
    reward_tolerance: float | None = None,
    expert: Callable[[TaskEnv], Callable[[np.ndarray], np.ndarray]] | None = None,
) -> None:
    """Step real environment and array form side by side.

    Args:
        spec: the task.
        form: its array form; None for the catalogue's.
        steps: agent steps compared.
        tolerance: of observations, absolute and relative.
        reward_tolerance: of rewards; None for the same.
        expert: given the environment just reset, who acts; None for at random.

    Raises:
        ValueError: they disagree; names the task, what disagrees, the step and both values. Or the form returns arrays
            of another shape than it should.
    """
    rng, allowed = np.random.default_rng(0), tolerance if reward_tolerance is None else reward_tolerance
    batched, env = BatchedEnv(spec, _COPIES, seed=0, form=form), make(spec, spec.obs_dim, spec.action_dim)
    try:
        obs, _ = env.reset(seed=4)
        now = simulation(spec, env.simulator)
        _check_shapes(spec, batched)
        act = expert(env) if expert else lambda obs: rng.uniform(-1, 1, spec.action_dim)
        for number in range(1, min(steps, spec.episode_length) + 1):
            batched.full[_OURS], batched.drawn[_OURS, 0] = full_state(now), batched.form.drawn(env.simulator)
            batched.steps[_OURS] = number - 1
            warmstart = np.tile(now.data.qacc_warmstart, (_COPIES, 1))
            actions = rng.uniform(-1, 1, (_COPIES, spec.action_dim)).astype(np.float32)
            actions[_OURS] = act(obs)
            ours = batched.step(actions, warmstart)
            obs, reward, terminated, truncated, info = env.step(actions[_OURS])
            flags = {"terminated": terminated, "truncated": truncated, "success": info["success"]}
            for key, real in flags.items():
                if bool(getattr(ours, key)[_OURS]) != real:
                    raise _disagreement(spec, number, f"`{key}`", bool(getattr(ours, key)[_OURS]), real)
            expected = obs.copy()
            if batched.form.hidden is not None:
                expected[batched.form.hidden] = 0
            found = ours.final_obs[_OURS]
            apart = np.flatnonzero(np.abs(found - expected) > tolerance * np.maximum(1, np.abs(expected)))
            if apart.size:
                entry = int(apart[0])
                raise _disagreement(spec, number, f"entry {entry} of the observation", found[entry], expected[entry])
            if abs(ours.reward[_OURS] - reward) > allowed * max(1, abs(reward)):
                raise _disagreement(spec, number, "the reward", ours.reward[_OURS], reward)
            if terminated or truncated:
                obs, _ = env.reset(seed=4 + number)
    finally:
        env.close()
        batched.close()


def _check_shapes(spec: TaskSpec, batched: BatchedEnv) -> None:
    """Refuse a form that returns other shapes than it should, which would else show as an error within numpy."""
    before, after = batched.roll(np.zeros((_COPIES, spec.action_dim)))
    form, each = batched.form, after.qpos.shape[:2]
    parts = {"observe": (form.observe(after), (*each, spec.obs_dim)), "reward": (form.reward(after, before), each)}
    for name in ("success", "terminated"):
        if (condition := getattr(form, name)) is not None:
            parts[name] = condition(after), each
    for name, (found, shape) in parts.items():
        if np.shape(found) != shape:
            raise ValueError(
                f"{spec.name}: `{name}` of the array form returned shape {np.shape(found)}, expected {shape}: "
                f"{each[0]} copies, {each[1]} control steps{f', {shape[2]} numbers seen' if name == 'observe' else ''}."
            )


def _disagreement(spec: TaskSpec, step: int, what: str, ours: float | bool, real: float | bool) -> ValueError:
    return ValueError(
        f"{spec.name}: the array form disagrees with the environment at step {step}: {what} is {ours} on arrays and "
        f"{real} in the environment. A teacher would learn another task; mend the array form."
    )
