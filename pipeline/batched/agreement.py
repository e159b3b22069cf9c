"""Whether what steps a task as arrays agrees with its real environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.batched.env import BatchedEnv, Step, full_state, simulation
from pipeline.batched.form import ArrayForm
from pipeline.batched.games import BatchedGame
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
            real = env.step(actions[_OURS])
            obs, _, terminated, truncated, _ = real
            _compare(spec, number, ours, real, batched.form.hidden, (tolerance, allowed))
            if terminated or truncated:
                obs, _ = env.reset(seed=4 + number)
    finally:
        env.close()
        batched.close()


def _check_shapes(spec: TaskSpec, batched: BatchedEnv) -> None:
    """Refuse a form that fails or returns other shapes than it should, which would else show as an error in numpy."""
    before, after = batched.roll(np.zeros((_COPIES, spec.action_dim)))
    form, each = batched.form, after.qpos.shape[:2]
    parts: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
        "observe": ((after,), (*each, spec.obs_dim)), "reward": ((after, before), each),
        "success": ((after,), each), "terminated": ((after,), each),
    }  # fmt: skip
    for name, (given, shape) in parts.items():
        if (function := getattr(form, name)) is None:
            continue
        try:
            found = function(*given)
        except Exception as error:
            raise ValueError(
                f"{spec.name}: `{name}` of the array form failed: {type(error).__name__}: {error}. It is called as "
                f"{name}({'states, before' if name == 'reward' else 'states'}), with qpos of shape {after.qpos.shape}; "
                "`--debug` shows where."
            ) from error
        if np.shape(found) != shape:
            raise ValueError(
                f"{spec.name}: `{name}` of the array form returned shape {np.shape(found)}, expected {shape}: "
                f"{each[0]} copies, {each[1]} control steps{f', {shape[2]} numbers seen' if name == 'observe' else ''}."
            )


def check_game(spec: TaskSpec, steps: int = 600, tolerance: float = EXACT) -> None:
    """Step a game of MiniArcade side by side in its real environment and among copies, on beyond an episode's end.

    Args:
        spec: the task.
        steps: agent steps compared.
        tolerance: of observations and rewards, absolute and relative.

    Raises:
        ValueError: they disagree, as `check_form` says.
    """
    rng, batched = np.random.default_rng(0), BatchedGame(spec, _COPIES, seed=0)
    env, over = make(spec, spec.obs_dim, spec.action_dim), True
    try:
        simulator: Any = env.simulator
        for number in range(1, steps + 1):
            if over:
                env.reset(seed=4 + number)
                batched.steps[_OURS] = 0
                batched.game.take(_OURS, simulator.game)
            batched.states[_OURS] = simulator.state  # else collisions would blow up what sums are rounded by
            actions = rng.uniform(-1.2, 1.2, (_COPIES, spec.action_dim)).astype(np.float32)
            ours, real = batched.step(actions), env.step(actions[_OURS])
            _compare(spec, number, ours, real, None, (tolerance, tolerance))
            over = real[2] or real[3]
    finally:
        env.close()
        batched.close()


def _compare(
    spec: TaskSpec, step: int, ours: Step, real: tuple, hidden: slice | None, allowed: tuple[float, float]
) -> None:
    """Refuse a step of the copies that is not the real one: observation and reward up to `allowed`."""
    obs, reward, terminated, truncated, info = real
    for key, flag in {"terminated": terminated, "truncated": truncated, "success": info["success"]}.items():
        if bool(getattr(ours, key)[_OURS]) != flag:
            raise _disagreement(spec, step, f"`{key}`", bool(getattr(ours, key)[_OURS]), flag)
    expected, found = obs.copy(), ours.final_obs[_OURS]
    if hidden is not None:
        expected[hidden] = 0
    apart = np.flatnonzero(np.abs(found - expected) > allowed[0] * np.maximum(1, np.abs(expected)))
    if apart.size:
        entry = int(apart[0])
        raise _disagreement(spec, step, f"entry {entry} of the observation", found[entry], expected[entry])
    if abs(ours.reward[_OURS] - reward) > allowed[1] * max(1, abs(reward)):
        raise _disagreement(spec, step, "the reward", ours.reward[_OURS], reward)


def _disagreement(spec: TaskSpec, step: int, what: str, ours: float | bool, real: float | bool) -> ValueError:
    return ValueError(
        f"{spec.name}: the array form disagrees with the environment at step {step}: {what} is {ours} on arrays and "
        f"{real} in the environment. A teacher would learn another task; mend the array form."
    )
