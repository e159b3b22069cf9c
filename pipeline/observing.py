"""What an agent is given to observe: is it what the agent takes, and how do pictures get into it."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.spec import TaskSpec
from pipeline.vision.sight import Sight


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


def check_picture(sight: Sight | None, num_envs: int, obs_dim: int, widest: int, picture: np.ndarray | None) -> None:
    """Refuse a picture that does not fit, or that is missing.

    Args:
        sight: what the agent sees by; None for one that does not see.
        num_envs: N, how many environments there are.
        obs_dim: how many values the state has.
        widest: O, what the model takes.
        picture: as it was given.

    Raises:
        ValueError: it is missing or not asked for, of another number of environments, or does not fit in.
    """
    if (sight is None) != (picture is None):
        raise ValueError(
            "this agent observes pictures beside or in place of the state: give `picture`."
            if sight
            else "this agent observes states alone: leave out `picture`, or load an agent that sees."
        )
    if sight is None or picture is None:
        return
    if sight.width(obs_dim) > widest:
        raise ValueError(
            f"a state of {obs_dim} and a picture's vector of {sight.encoder.dim} values do not fit into the "
            f"{widest} that this agent observes: give the state without padding."
        )
    pictures = picture if picture.ndim == 4 else picture[None]
    if len(pictures) != num_envs:
        raise ValueError(f"`picture` is of {len(pictures)} environments, `obs` of {num_envs}.")
    sight.encoder.check(pictures)


def look(sight: Sight | None, padded: np.ndarray, obs_dim: int, name: str, picture: np.ndarray | None) -> None:
    """Put what is seen, which was checked, into the padded states (N, O), whose first `obs_dim` values are the state.

    `name` is that of the row of the task table: of a task, or of an instruction.
    """
    if sight is None or picture is None:
        return
    pictures = picture if picture.ndim == 4 else picture[None]
    sight.look(padded, [obs_dim] * len(padded), sight.encode(pictures, [name] * len(pictures)))
