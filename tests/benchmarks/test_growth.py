"""The benchmark of dynamic parameter scaling: what is read off curves, and what is claimed of them."""

from __future__ import annotations

import pytest

from benchmarks.growth import SCALING, row, steps_to, summarise
from pipeline import config
from pipeline.results import Curve


def a_run(*values: float, env_steps: int = 400) -> dict:
    return {"eval/score": ([0, 100, 200, 300][: len(values)], list(values)), "seconds": 1.0, "env_steps": env_steps,
            "stage": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "steps"), [([0.9, 0.5], 0), ([0.5, 0.7, 0.9], 150), ([0.5, 0.8], 100), ([0.5, 0.7], None)]
)
def test_steps_to_a_score_lie_between_evaluations(values, steps):
    assert steps_to(Curve([0, 100, 200][: len(values)], values), 0.8) == steps


def test_the_ratio_is_claimed_only_where_every_run_reached_the_score():
    plain, fast, never = (a_run(0.4, 0.6, 0.8), a_run(0.4, 0.8), a_run(0.4, 0.5))
    table = [row("plain", 1, plain, 0.8), row("scaled", 1, fast, 0.8)]
    assert summarise(table)["scaled_env_steps_ratio"]["value"] == 0.5
    assert summarise(table)["scaled_env_steps_ratio"]["holds"]
    assert summarise(table)["scaled_last_score_minus_plain"]["value"] == 0.0
    table.append(row("scaled", 2, never, 0.8))
    assert summarise(table)["scaled_env_steps_ratio"] == summarise([])["scaled_env_steps_ratio"]
    assert not summarise([])["scaled_env_steps_ratio"]["holds"]


def test_what_is_compared_is_a_valid_section():
    section = config.parse(config.Scaling, SCALING, "growth")
    assert section.rank == 64
