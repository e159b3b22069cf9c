"""Evaluating on real simulators: the same starts for every checkpoint."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.problem import TINY, make_model, make_table
from pipeline.learn import pieces
from pipeline.learn.evaluator import Evaluator, envs_per_task
from pipeline.model import layers
from pipeline.model.actor import Actor
from pipeline.tasks.vector import VectorEnv
from tests.learn.test_collector import MODEL, PENDULUM, SPECS, make_actor
from tests.tiny import TINY_PLANNER


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


def test_tasks_of_all_lengths_lie_in_one_vector_and_play_as_if_alone():
    specs = [dataclasses.replace(PENDULUM, name=f"{length}", episode_length=length) for length in (12, 5, 8, 5)]
    made: list[VectorEnv] = []

    def make_envs(*arguments: Any) -> VectorEnv:
        made.append(VectorEnv(*arguments))
        return made[-1]

    def play(which: list[int], number: int) -> list[Any]:
        own, widths = [specs[i] for i in which], (MODEL.obs_dim, MODEL.action_dim)
        with Evaluator(own, number, *widths, seed=1, num_workers=0, make_envs=make_envs) as evaluator:
            return evaluator.run(make_actor(specs), [spec.name for spec in own], plan=False, label="test", seed=3)

    together = play([0, 1, 2, 3], 7)
    assert len(made) == 1
    assert [len(result.scores) for result in together] == [7] * 4
    assert [together[0]] == play([0], 7)
    assert [together[2]] == play([2], 7)
    assert [together[1], together[3]] == play([1, 3], 7)


def test_so_many_environments_play_that_simulators_fit_into_memory():
    assert [envs_per_task(number, 10) for number in (1, 8, 60, 61, 100, 150, 200, 1000)] == [5, 5, 5, 4, 3, 2, 1, 1]
    assert envs_per_task(8, 3) == 3


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made within it that are there at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self._seen = 0, 0, weakref.WeakSet()

    def _less(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._less, storage.nbytes())
        return found


@pytest.mark.parametrize("wide", [{"mlp_dim": 256}, {"latent_dim": 256}])
def test_a_plan_takes_no_more_memory_than_is_counted(wide: dict[str, int]):
    sizes, planner = dataclasses.replace(TINY, **wide), dataclasses.replace(TINY_PLANNER, num_samples=64)
    actor = Actor(make_model(sizes, fill=False), make_table(sizes), planner)
    num_envs = 4
    obs, rows = torch.zeros(num_envs, sizes.obs_dim), torch.zeros(num_envs, dtype=torch.int64)
    actor.reset(num_envs, 0)
    # As on a GPU: all rows at once.
    with patch.object(layers, "_CACHED_BYTES", 2**40), Peak() as peak:
        actor.act(obs, rows, plan=True)
    counted = num_envs * pieces.plan_bytes(sizes, planner)
    assert counted / 4 < peak.most < counted


def test_plans_that_do_not_fit_into_memory_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch):
    planned: list[int] = []

    class Noting(Actor):
        def _plan(self, ctx: Any, obs: torch.Tensor, *others: Any) -> Any:
            planned.append(len(obs))
            return super()._plan(ctx, obs, *others)

    def act(plan: bool) -> np.ndarray:
        planned.clear()
        actor = Noting(make_model(), make_table(), TINY_PLANNER)
        actor.reset(7, 0)
        obs, rows = torch.ones(7, TINY.obs_dim), torch.arange(7) % 3
        first = pieces.act_in_pieces(actor, obs, rows, plan)
        assert not actor.state_tensors()["is_first"].any() or not plan
        return first.numpy()

    whole, alone = act(True), act(False)
    monkeypatch.setattr(pieces, "PLAN_BYTES", 3 * pieces.plan_bytes(TINY, TINY_PLANNER))
    parts = act(True)
    assert planned == [3, 2, 2]
    assert parts.shape == whole.shape
    assert np.array_equal(act(False), alone)
    assert planned == []
