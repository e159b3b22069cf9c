"""How a batch is shared out: over demonstrations and own episodes, over ranks, and over the tasks that are played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.learn.mixer import BatchMixer
from pipeline.learn.online import _go_without_short
from pipeline.learn.replay import ReplayBuffer
from pipeline.run.ranks import Ranks

HORIZON = 3
FINETUNE = config.load(config.Finetune, "tests/tiny.yaml")  # batches of 16, half of them demonstrations
DEMO, OWN = 1.0, -1.0  # what the observations of each hold


class FakeRanks(Ranks):
    """One of several ranks; what the others would send to it is given."""

    def __init__(self, rank: int, others: Callable[[int], Any], count: int):
        super().__init__()
        self.rank, self.count, self._others = rank, count, others

    def collect(self, value: Any) -> list[Any]:
        return [value if rank == self.rank else self._others(rank) for rank in range(self.count)]


def make_replay(kind: float, tasks: list[int], weights: list[float] | None = None) -> ReplayBuffer:
    options = {} if weights is None else {"task_weights": torch.tensor(weights)}
    replay = ReplayBuffer(200, 2, 1, HORIZON, keep_expert_actions=kind == DEMO, **options)
    for task in tasks:
        replay.add(torch.full((6, 2), kind), torch.zeros(5, 1), torch.zeros(5), False, task)
    return replay


def shares(mixer: BatchMixer) -> tuple[int, int]:
    return mixer.num_demos, mixer.num_own


def drawn(mixer: BatchMixer) -> tuple[int, int]:
    """How many demonstrations and own slices a batch really holds."""
    batch = mixer.sample(torch.Generator().manual_seed(0))
    return int((batch.obs[0, :, 0] == DEMO).sum()), int((batch.obs[0, :, 0] == OWN).sum())


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, (8, 8)), (0.25, (4, 12)), (0.0, (0, 16)), (1.0, (16, 0))])
def test_demonstrations_are_the_fraction_asked_for(fraction: float, expected: tuple[int, int]) -> None:
    settings = replace(FINETUNE, demo_fraction=fraction)
    mixer = BatchMixer(Ranks(), settings, torch.arange(3), make_replay(DEMO, [0, 1, 2]), make_replay(OWN, [0, 1, 2]))
    assert shares(mixer) == drawn(mixer) == expected


def test_without_demonstrations_all_are_own() -> None:
    mixer = BatchMixer(Ranks(), FINETUNE, torch.arange(3), None, make_replay(OWN, [0, 1, 2]))
    assert shares(mixer) == drawn(mixer) == (0, 16)


def test_ranks_share_a_batch_as_they_share_the_environments() -> None:
    found = []
    for rank in range(3):  # 5 environments: 2, 2 and 1
        ranks = FakeRanks(rank, lambda other: [2.0, 2.0, 1.0][other], 3)
        own = make_replay(OWN, ranks.shard([0, 1, 2, 0, 1]))
        mixer = BatchMixer(ranks, FINETUNE, torch.tensor([0, 1, 2, 0, 1]), make_replay(DEMO, [0, 1, 2]), own)
        assert drawn(mixer) == shares(mixer)
        found.append(shares(mixer))
    assert found == [(3, 3), (3, 3), (2, 2)]
    assert tuple(map(sum, zip(*found, strict=True))) == (8, 8)


def test_own_slices_follow_the_weights_of_the_tasks_a_rank_plays() -> None:
    weights = [3.0, 1.0]
    found = []
    for rank in range(2):
        ranks = FakeRanks(rank, lambda other: weights[other], 2)
        own = make_replay(OWN, [rank], weights)
        mixer = BatchMixer(ranks, FINETUNE, torch.tensor([0, 1]), make_replay(DEMO, [0, 1]), own)
        found.append(shares(mixer))
    assert found == [(4, 6), (4, 2)]  # 3 to 1 of what is own; demonstrations by the environments


@pytest.mark.parametrize(("num_envs", "batch_size"), [(1, 16), (2, 1)])
def test_a_rank_without_environment_or_slice_is_refused(num_envs: int, batch_size: int) -> None:
    settings = replace(FINETUNE, batch_size=batch_size, demo_fraction=0.0)
    ranks = FakeRanks(0, lambda other: 1.0 if other < num_envs else 0.0, 2)
    with pytest.raises(ValueError, match=rf"2 processes share {num_envs} environments and batches of {batch_size} sl"):
        BatchMixer(ranks, settings, torch.zeros(num_envs, dtype=torch.long), None, make_replay(OWN, [0]))


def test_own_episodes_of_a_task_that_rests_are_not_drawn_until_it_plays_again() -> None:
    mixer = BatchMixer(Ranks(), FINETUNE, torch.arange(3), make_replay(DEMO, [0, 1, 2]), make_replay(OWN, [0, 1, 2]))

    def tasks_of(kind: float) -> set[int]:
        batch = mixer.sample(torch.Generator().manual_seed(0))
        return set(batch.task[batch.obs[0, :, 0] == kind].tolist())

    assert tasks_of(OWN) == {0, 1, 2}
    mixer.play(np.array([True, False, True]))
    assert tasks_of(OWN) == {0, 2}
    assert 1 in tasks_of(DEMO)
    assert shares(mixer) == (8, 8)
    mixer.play(np.array([True, True, True]))
    assert tasks_of(OWN) == {0, 1, 2}


def test_where_all_that_was_collected_rests_nothing_is_left_out() -> None:
    mixer = BatchMixer(Ranks(), FINETUNE, torch.arange(2), make_replay(DEMO, [0, 1]), make_replay(OWN, [0]))
    mixer.play(np.array([False, True]))  # of task 1, which is played, there is no episode yet
    assert drawn(mixer) == (8, 8)


def test_a_rank_whose_tasks_all_rest_draws_demonstrations_alone_and_the_others_its_share() -> None:
    resting = [0.0, 1.0]
    found = []
    for rank in range(2):
        ranks = FakeRanks(rank, lambda other: 1.0, 2)
        mixer = BatchMixer(ranks, FINETUNE, torch.arange(2), make_replay(DEMO, [0, 1]), make_replay(OWN, [rank]))
        ranks._others = lambda other: resting[other]
        mixer.play(np.array([False, True]))
        assert drawn(mixer) == shares(mixer)
        found.append(shares(mixer))
    assert found == [(4, 0), (4, 8)]


def test_a_resumed_rank_whose_tasks_come_back_without_an_episode_draws_demonstrations_alone() -> None:
    ranks, demos = FakeRanks(1, lambda other: 1.0, 2), make_replay(DEMO, [0, 1])
    mixer = BatchMixer(ranks, FINETUNE, torch.arange(2), demos, make_replay(OWN, []), pauses=True)
    mixer.play(np.array([True, True]))  # task 1 rested until just before the save, and has collected nothing
    assert drawn(mixer) == shares(mixer) == (4, 0)


class Short:
    """A collector that says what `only_short` does."""

    def __init__(self, said: str):
        self.only_short = said


def test_a_rank_whose_episodes_are_all_too_short_draws_demonstrations_alone_until_it_has_one() -> None:
    said, playing = ["too short", ""], np.array([True, True])
    for rank, expected in enumerate([(4, 0), (4, 8)]):
        ranks, replay = FakeRanks(rank, lambda other: 1.0, 2), make_replay(OWN, [1] * rank)
        mixer = BatchMixer(ranks, FINETUNE, torch.arange(2), make_replay(DEMO, [0, 1]), replay)
        assert mixer.can_sample() == bool(rank)
        answers = iter([said[1 - rank], float(1 - rank), 1.0])
        ranks._others = lambda other, answers=answers: next(answers)
        _go_without_short(ranks, cast("Any", Short(said[rank])), mixer, playing)
        assert mixer.can_sample()
        assert drawn(mixer) == shares(mixer) == expected
        if not rank:
            replay.add(torch.zeros(6, 2), torch.zeros(5, 1), torch.zeros(5), False, 0)
        mixer.play(playing)  # as after every episode that ended
        assert shares(mixer) == (4, 4)


def test_where_the_episodes_of_all_ranks_are_too_short_every_rank_stops() -> None:
    for rank in range(2):
        ranks = FakeRanks(rank, lambda other: 1.0, 2)
        mixer = BatchMixer(ranks, FINETUNE, torch.arange(2), None, make_replay(OWN, []))
        ranks._others = lambda other: f"too short on {other}"
        with pytest.raises(ValueError, match="too short on 0"):
            _go_without_short(ranks, cast("Any", Short(f"too short on {rank}")), mixer, np.ones(2, bool))


def test_what_is_logged_counts_the_episodes_of_all_ranks() -> None:
    ranks = FakeRanks(0, lambda other: 1.0, 2)
    mixer = BatchMixer(ranks, FINETUNE, torch.arange(2), None, make_replay(OWN, [0, 0]))
    ranks._others = lambda other: (4, 30, 1.0)  # episodes, transitions, mean age
    own_age = 2.5  # 5 transitions were added after the first of two, none after the second
    assert mixer.metrics() == {
        "replay/episodes_sum": 6.0,
        "replay/transitions_sum": 40.0,
        "replay/age_mean": pytest.approx((2 * own_age + 4 * 1.0) / 6 * 2),
    }
    ranks._others = lambda other: 1.0
    labelled = BatchMixer(ranks, FINETUNE, torch.arange(2), None, make_replay(OWN, [0, 0, 1]), labelled=[1])
    answers = iter([(1, 10, 1.0), 10])  # the other rank has ten transitions, all of a labelled task
    ranks._others = lambda other: next(answers)
    assert labelled.metrics()["replay/labelled_share"] == pytest.approx((5 + 10) / 25)
    empty = BatchMixer(Ranks(), FINETUNE, torch.arange(2), None, make_replay(OWN, []))
    assert empty.metrics() == {}


def test_nothing_can_be_sampled_until_an_own_episode_is_stored_whose_task_is_drawn() -> None:
    replay = make_replay(OWN, [], [0.0, 1.0])
    mixer = BatchMixer(Ranks(), FINETUNE, torch.arange(2), None, replay)
    assert not mixer.can_sample()
    short = torch.zeros(HORIZON - 1, 1)
    assert not replay.add(torch.zeros(HORIZON, 2), short, short[:, 0], True, 1)
    long = torch.zeros(5, 1)
    replay.add(torch.zeros(6, 2), long, long[:, 0], True, 0)  # of a task whose weight is 0
    assert not mixer.can_sample()
    replay.add(torch.zeros(6, 2), long, long[:, 0], True, 1)
    assert mixer.can_sample()
    demos_alone = BatchMixer(
        Ranks(), replace(FINETUNE, demo_fraction=1.0), torch.arange(1), make_replay(DEMO, [0]), make_replay(OWN, [])
    )
    assert demos_alone.can_sample()
