"""Slices that come with the steps before them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.episode import Episode
from pipeline.learn.replay import ReplayBuffer, from_demos, sample_mixture
from pipeline.shapes import Batch
from pipeline.systems.history.past import Past
from pipeline.systems.history.replay import ReplayWithPast

HORIZON, CONTEXT = 3, 4


def numbered(lengths: list[int], first: int = 0, replay: ReplayBuffer | None = None) -> ReplayBuffer:
    """A replay of episodes whose observations say which episode (hundreds) and step (units) they are of."""
    replay = replay or ReplayWithPast(200, 2, 1, HORIZON, context=CONTEXT)
    for number, length in enumerate(lengths, first):
        obs = 100.0 * (number + 1) + torch.arange(length + 1.0)
        replay.add(obs[:, None], obs[:-1, None] / 1000, torch.zeros(length), False, 0)
    return replay


def check_past(batch: Batch) -> None:
    assert batch.past is not None
    now = batch.obs[0, :, 0]
    assert torch.equal(batch.past.length, (now % 100).long().clamp(max=CONTEXT))
    back = torch.arange(CONTEXT, 0, -1).unsqueeze(1)
    counts = back <= batch.past.length
    assert torch.equal(batch.past.obs[..., 0][counts], (now - back)[counts])
    assert torch.equal(batch.past.action[..., 0][counts], ((now - back) / 1000)[counts])
    assert (batch.past.obs[..., 0] // 100 == now // 100).all(), "a past reaches into another episode"
    assert set(batch.past.length.tolist()) == set(range(CONTEXT + 1))


def test_slices_bring_the_steps_before_them_of_their_own_episode() -> None:
    replay, draw = numbered([7, 3, 12, 20]), torch.Generator().manual_seed(0)
    check_past(replay.sample(300, draw))
    check_past(replay.copy_to("cpu").sample(300, draw))
    check_past(replay.only(0).sample(300, draw))
    check_past(sample_mixture(replay, numbered([9, 10], first=4), 300, 0.5, draw))


def test_a_past_leaves_the_slices_as_they_are() -> None:
    replay, plain = numbered([7, 3, 12]), numbered([7, 3, 12], replay=ReplayBuffer(200, 2, 1, HORIZON))
    ours, theirs = (buffer.sample(50, torch.Generator().manual_seed(1)) for buffer in (replay, plain))
    assert theirs.past is None
    assert all(torch.equal(one, two) for one, two in zip(ours[:-2], theirs[:-2], strict=True))


def test_a_part_of_a_batch_keeps_its_past() -> None:
    batch = numbered([7, 3, 12]).sample(50, torch.Generator().manual_seed(0))
    part = batch.take(slice(10, 20)).to(torch.device("cpu"))
    assert type(part.past) is Past
    assert torch.equal(part.past.obs, batch.past.obs[:, 10:20])
    assert torch.equal(part.past.length, batch.past.length[10:20])
    assert batch._replace(past=None).take(slice(10, 20)).past is None


def test_demonstrations_bring_their_past_and_mix_with_no_other_kind() -> None:
    obs = 100.0 + np.arange(13, dtype=np.float32)[:, None].repeat(2, 1)
    action = obs[:-1, :1] / 1000
    episode = Episode("a-task", obs, action, action, action[:, 0], False, True, 1.0, 0.0, 0, "scripted")
    demos = from_demos([(0, episode)], 2, 1, HORIZON, make=ReplayWithPast, context=CONTEXT)
    draw = torch.Generator().manual_seed(0)
    check_past(demos.sample(300, draw))
    check_past(sample_mixture(demos, numbered([9, 10], first=4), 300, 0.5, draw))
    with pytest.raises(AssertionError, match="ReplayWithPast and ReplayBuffer do not mix"):
        sample_mixture(demos, numbered([9], replay=ReplayBuffer(200, 2, 1, HORIZON)), 300, 0.5, draw)
