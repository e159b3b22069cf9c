"""What the rewards of our own tasks on the DeepMind Control Suite's simulator are made of."""

from __future__ import annotations


def at_least(value: float, target: float) -> float:
    """Return 1 from `target` on, falling linearly to 0 at 0."""
    return min(max(float(value) / target, 0.0), 1.0)
