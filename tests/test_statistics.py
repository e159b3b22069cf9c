"""Bootstrap intervals against scipy's, and what must hold of any of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.statistics import bootstrap_mean, bootstrap_runs, summarise_tasks

scores = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_one_task_agrees_with_scipy():
    values = rng(3).beta(2, 3, size=30)
    ours = bootstrap_mean([values], 0.9, 20_000, rng())
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=rng(1)
    ).confidence_interval
    assert ours.score == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=3e-3)


def test_the_mean_over_tasks_is_stratified():
    # Two tasks without spread, far apart: drawing across them would give a wide interval, within them none.
    assert bootstrap_mean([[0.1] * 5, [0.9] * 5], 0.95, 200, rng()) == pytest.approx((0.5, 0.5, 0.5))


def test_tasks_count_the_same_however_many_episodes():
    assert bootstrap_mean([[0.0] * 30, [1.0]], 0.95, 10, rng()).score == pytest.approx(0.5)


def test_the_variance_of_a_mean_over_tasks_is_that_of_independent_tasks():
    tasks = [rng(seed).uniform(size=12) for seed in range(6)]
    low, high = bootstrap_mean(tasks, 0.6827, 40_000, rng())[1:]
    expected = np.sqrt(sum(task.var() / len(task) for task in tasks)) / len(tasks)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(confidence):
    draws = rng(5)
    covered = 0
    for _ in range(300):
        _, low, high = bootstrap_mean([draws.uniform(size=40)], confidence, 400, draws)
        covered += low <= 0.5 <= high
    assert covered / 300 == pytest.approx(confidence, abs=0.07)


@given(st.lists(scores, min_size=1, max_size=5))
def test_the_interval_lies_within_the_scores_and_repeats_under_a_seed(tasks):
    estimate = bootstrap_mean(tasks, 0.95, 50, rng())
    assert estimate == bootstrap_mean(tasks, 0.95, 50, rng())
    least, most = (np.mean([bound(task) for task in tasks]) for bound in (min, max))
    assert least - 1e-9 <= estimate.low <= estimate.high <= most + 1e-9


def test_a_task_does_not_depend_on_the_others():
    alone, _ = summarise_tasks({"a": [0.1, 0.5, 0.9]}, 0.95, 100, seed=7)
    both, mean = summarise_tasks({"b": [0.2, 0.3], "a": [0.1, 0.5, 0.9]}, 0.95, 100, seed=7)
    assert alone["a"] == both["a"]
    assert mean.score == pytest.approx((0.25 + 0.5) / 2)


@pytest.mark.parametrize("strata", [[], [[]], [[0.5], []]])
def test_nothing_to_average_is_an_error(strata):
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean(strata, 0.95, 10, rng())


def test_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([[0.5, float("nan")]], 0.95, 10, rng())


def test_runs_that_differ_widen_the_interval():
    alike, apart = [[[0.5, 0.5]], [[0.5, 0.5]]], [[[0.2, 0.2]], [[0.8, 0.8]]]
    rng = np.random.default_rng(0)
    assert bootstrap_runs(alike, 0.95, 500, rng) == (0.5, 0.5, 0.5)
    assert bootstrap_runs(apart, 0.95, 500, rng) == pytest.approx((0.5, 0.2, 0.8))


def test_of_one_run_the_interval_is_that_of_its_episodes():
    strata = [[0.0, 1.0, 0.5], [0.3, 0.9]]
    one = bootstrap_runs([strata], 0.9, 20_000, np.random.default_rng(0))
    assert one == pytest.approx(bootstrap_mean(strata, 0.9, 20_000, np.random.default_rng(1)), abs=0.02)
    with pytest.raises(ValueError, match="at least one run"):
        bootstrap_runs([], 0.9, 10, np.random.default_rng(0))
