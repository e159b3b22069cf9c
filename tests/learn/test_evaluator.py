"""Evaluating on real simulators: the same starts for every checkpoint."""

from __future__ import annotations

import pytest

from pipeline.learn.evaluator import Evaluator
from tests.learn.test_collector import MODEL, SPECS, make_actor


@pytest.mark.slow
def test_evaluation_plays_the_asked_episodes_from_the_same_starts():
    names = [spec.name for spec in SPECS]
    with Evaluator(SPECS, 2, MODEL.obs_dim, MODEL.action_dim, seed=1, num_workers=0) as evaluator:
        first, second = (evaluator.run(make_actor(), names, plan=False, label="test", seed=3) for _ in range(2))
        other = evaluator.run(make_actor(), names[::-1], plan=False, label="test", seed=3)
    for task, (ours, theirs) in enumerate(zip(first, second, strict=True)):
        assert len(ours.scores) == 2
        assert ours == theirs
        assert ours.episode_returns != other[task].episode_returns, "the instruction made no difference"
