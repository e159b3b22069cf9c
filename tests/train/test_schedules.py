"""Discount, warm-up, cool-down, and the weight of the policy in a plan."""

from __future__ import annotations

import pytest

from pipeline.train.schedules import constraint_weight, cooldown, discount, warmup


@pytest.mark.parametrize(("length", "expected"), [(500, 0.99), (100, 0.95), (1000, 0.995), (25, 0.95), (1, 0.95)])
def test_discount(length: int, expected: float) -> None:
    assert discount(length, 0.95, 0.995) == pytest.approx(expected)


def test_discount_refuses_an_empty_episode() -> None:
    with pytest.raises(ValueError, match="at least 1 agent step, not 0"):
        discount(0, 0.95, 0.995)


def test_warmup_is_linear_and_never_zero() -> None:
    assert [warmup(update, 4) for update in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup(0, 0) == 1


def test_cooldown_is_linear_at_the_end_and_never_zero() -> None:
    assert [cooldown(position, 8, 0.5) for position in range(8)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert cooldown(7, 8, 0) == 1


def test_constraint_weight() -> None:
    assert [constraint_weight(step, 20, 100) for step in (0, 19, 20, 70, 120, 500)] == [1, 1, 1, 0.5, 0, 0]
    assert [constraint_weight(step, 20, 0) for step in (19, 20)] == [1, 0]
