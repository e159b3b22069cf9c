"""Scores with their uncertainty: percentile bootstrap intervals over episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean and its bootstrap interval."""

    score: float
    low: float
    high: float


def bootstrap_mean(
    strata: Sequence[Sequence[float]], confidence: float, num_samples: int, rng: np.random.Generator
) -> Estimate:
    """Estimate the mean over strata of the mean within each, with a percentile bootstrap interval.

    The episodes of each stratum are drawn anew with replacement, never across strata, so the interval tells how much
    the figure would move if the same tasks were played again. It says nothing about other tasks. Where all episodes
    of every stratum score the same, the interval has no width.

    Args:
        strata: scores per stratum, each at least one; one stratum for one task, one per task for a mean over tasks.
        confidence: of the interval, in (0, 1), e.g. 0.95.
        num_samples: bootstrap samples.
        rng: random numbers; the same generator state gives the same interval.

    Raises:
        ValueError: there is nothing to average, or a score is not a finite number.

    Source: Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2021), section 4.1.
    """
    score, means = _resample(strata, num_samples, rng)
    return _estimate(score, means, confidence)


def bootstrap_runs(
    runs: Sequence[Sequence[Sequence[float]]], confidence: float, num_samples: int, rng: np.random.Generator
) -> Estimate:
    """Estimate the mean over runs of different seeds, with a percentile bootstrap interval over runs and episodes.

    Runs are drawn anew with replacement, then, in each one drawn, the episodes of each stratum. So the interval tells
    how much the figure would move if other seeds had been trained, as far as so few runs can tell.

    Args:
        runs: of each run, the scores per stratum, e.g. per task.
        confidence, num_samples, rng: as for `bootstrap_mean`.

    Raises:
        ValueError: there is nothing to average, or a score is not a finite number.
    """
    if not runs:
        raise ValueError("a mean over runs needs at least one run")
    means = np.zeros(num_samples)
    score = 0.0
    for strata in runs:  # as many draws as there are runs
        drawn = rng.integers(len(runs), size=num_samples)
        everyone = np.stack([_resample(other, num_samples, rng)[1] for other in runs])
        means += everyone[drawn, np.arange(num_samples)] / len(runs)
        score += _resample(strata, 0, rng)[0] / len(runs)
    return _estimate(score, means, confidence)


def _estimate(score: float, means: np.ndarray, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(score, float(low), float(high))


def _resample(
    strata: Sequence[Sequence[float]], num_samples: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Return the mean over strata, and what it is with the episodes of each drawn anew (num_samples,)."""
    if not strata or any(len(scores) == 0 for scores in strata):
        raise ValueError("a mean needs at least one stratum, and each stratum at least one score")
    means = np.zeros(num_samples)
    score = 0.0
    for scores in strata:
        values = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"scores must be finite numbers, got {values.tolist()}")
        means += values[rng.integers(len(values), size=(num_samples, len(values)))].mean(axis=1) / len(strata)
        score += float(values.mean()) / len(strata)
    return score, means


def summarise_tasks(
    scores: Mapping[str, Sequence[float]], confidence: float, num_samples: int, seed: int
) -> tuple[dict[str, Estimate], Estimate]:
    """Estimate each task's score and their mean over tasks, every task counting the same.

    Args:
        scores: scores in [0, 1] of each task's episodes, by task name.
        confidence: of the intervals, in (0, 1).
        num_samples: bootstrap samples.
        seed: of the bootstrap; a task's interval does not depend on which other tasks there are.

    Returns:
        The estimate of each task, and that of the mean over tasks (stratified: episodes drawn within tasks).
    """
    tasks = {
        name: bootstrap_mean([episodes], confidence, num_samples, np.random.default_rng(seed))
        for name, episodes in scores.items()
    }
    return tasks, bootstrap_mean(list(scores.values()), confidence, num_samples, np.random.default_rng(seed))
