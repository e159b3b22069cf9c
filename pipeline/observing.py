"""What an agent is given to observe: is it what the agent takes."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.spec import TaskSpec


def check_obs(obs: np.ndarray, batch: np.ndarray, spec: TaskSpec | None, widest: int, num_envs: int) -> None:
    """Refuse observations that do not fit.

    Args:
        obs: as they were given.
        batch: the same as (N, o).
        spec: the task they are of, where it is known.
        widest: O, what the model takes.
        num_envs: N, how many environments there are.

    Raises:
        ValueError: shape, number of environments or values are not what was expected.
    """
    wanted = {spec.obs_dim, widest} if spec else set(range(1, widest + 1))
    if obs.ndim not in (1, 2) or batch.shape[1] not in wanted:
        what = f"{spec.obs_dim} (or {widest}, zero-padded)" if spec else f"1 to {widest}"
        raise ValueError(f"`obs` has the shape {obs.shape}; expected {what} values, for one environment or (N, ...).")
    if len(batch) != num_envs:
        raise ValueError(
            f"`obs` is of {len(batch)} environments, but the agent was reset for {num_envs}: call "
            f"`agent.reset(num_envs={len(batch)})` when their episodes begin."
        )
    if not np.isfinite(batch).all():
        raise ValueError("`obs` holds values that are not finite (NaN or infinity).")
