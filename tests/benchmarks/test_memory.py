"""The memory of simulators: what the sum counts, and how often."""

from __future__ import annotations

import pytest

from benchmarks import memory


def test_the_sum_counts_training_evaluation_workers_and_what_could_not_be_built():
    found = {"simulators": {"a": 10.0, "b": 1.0}, "worker": 100.0, "libraries": 50.0}
    sums = memory.summed(found, {"a": 4, "b": 2}, missing=3, workers=8, each=2)
    simulators = (4 * 10 + 2 * 1) * (1 + 3 / 6)
    expected = {"training": simulators, "evaluation": 2 * simulators, "workers": 16 * 100 + 50}
    assert {name: 1024 * value for name, value in sums.items()} == pytest.approx(
        expected | {"sum": sum(expected.values())}
    )
    shown = memory.show(found, {"a": 4, "b": 2}, sums, "Measured somewhere.")
    assert "| a | 4 | 10.0 |" in shown
    assert "| **sum** | 1.8 |" in shown


def test_a_simulator_takes_memory_of_its_own():
    (suite, specs), *_ = memory.by_domain()[0].items()
    before, _ = memory._resident()
    kept = memory._played(specs[0])
    after, libraries = memory._resident()
    kept.close()
    assert after > before > 0, suite
    assert libraries > 0
