"""Numbers that change with time or with the task: discount, learning rate, how far a plan is tied to the policy."""

from __future__ import annotations


def discount(episode_length: int, low: float, high: float) -> float:
    """Return the discount of a task whose episodes take `episode_length` agent steps.

    One fifth of the episode is the time the agent looks ahead: gamma = clip((L/5 - 1) / (L/5), low, high).

    Source: TD-MPC2 (arXiv 2310.16828), appendix.
    """
    if episode_length < 1:
        raise ValueError(f"an episode takes at least 1 agent step, not {episode_length}")
    fifth = episode_length / 5
    return min(max((fifth - 1) / fifth, low), high)


def warmup(update: int, warmup_updates: int) -> float:
    """Return the share of the learning rate for update number `update` (from 0): linear, then 1."""
    return min(1.0, (update + 1) / warmup_updates) if warmup_updates else 1.0


def cooldown(position: int, total: int, part: float) -> float:
    """Return the share of the learning rate at `position` of `total`: 1, then linear to 0 over the last `part` of it.

    Where the rate stays constant to the end, the weights that are kept are one point of a noisy walk.

    Source: the trapezoidal schedule; Hägele et al. 2024 (arXiv 2405.18392).
    """
    return min(1.0, (total - position) / (part * total)) if part else 1.0


def constraint_weight(env_steps: int, constraint_steps: int, constraint_decay: int) -> float:
    """Return the weight in [0, 1] by which a plan starts from the policy: 1, then falling linearly to 0.

    Args:
        env_steps: environment steps made so far.
        constraint_steps: up to here the weight is 1.
        constraint_decay: it then falls to 0 over this many steps; 0 drops it at once.

    Source: Newt (arXiv 2511.19584), constrained planning.
    """
    if env_steps < constraint_steps:
        return 1.0
    if constraint_decay == 0:
        return 0.0
    return max(0.0, 1 - (env_steps - constraint_steps) / constraint_decay)
