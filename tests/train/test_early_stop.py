"""Stopping early: what the scores say, and whose weights are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.problem import make_model
from pipeline.train.early_stop import EarlyStop


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([], False),
        ([0.2, 0.9], True),  # good enough
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.5], True),  # twice no new best
        ([0.5, 0.4, 0.6], False),
    ],
)
def test_when_it_stops(tmp_path: Path, scores: list[float], stops: bool):
    assert EarlyStop(make_model(), tmp_path / "best", stop_score=0.9, patience=2).reached(scores) == stops


def test_the_best_weights_come_back_of_equal_ones_the_latest(tmp_path: Path):
    model, heard = make_model(), []
    model.encoder.requires_grad_(False)
    stop = EarlyStop(model, tmp_path / "best.safetensors", 1.0, 9, lambda: heard.append(1))
    stop.restore()  # nothing was evaluated, nothing changes
    bias, frozen = model.reward_head[0].linear.bias, model.encoder[0].linear.bias
    target = model.target_q_heads[0][0].linear.bias
    scores: list[float] = []
    for value, score in enumerate([0.3, 0.6, 0.6, 0.5]):
        with torch.no_grad():
            for tensor in (bias, frozen, target):
                tensor.fill_(float(value))
        scores.append(score)
        assert not stop.evaluated(scores)
    stop.restore()
    assert (bias == 2).all()
    assert (target == 2).all()
    assert (frozen == 3).all()
    assert len(heard) == 4
