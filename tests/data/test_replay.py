"""The replay: whole slices of one episode, uniform over episodes, exact after a save."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.replay import ReplayBuffer, sample_mixture

HORIZON = 3


def episode(number: int, length: int, obs_dim: int = 4, action_dim: int = 2):
    """An episode whose every value tells its number and step: obs = (number, step), action = reward = step."""
    steps = torch.arange(length + 1.0)
    obs = torch.stack([torch.full_like(steps, number), steps], dim=1)
    return obs, steps[:-1].unsqueeze(1), steps[:-1]


def filled(capacity: int, lengths: list[int]) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, obs_dim=4, action_dim=2, horizon=HORIZON)
    for number, length in enumerate(lengths):
        obs, action, reward = episode(number, length)
        buffer.add(obs, action, reward, terminated=True, task=number % 7)
    return buffer


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(31, 120), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_slices_never_cross_episodes(lengths, capacity, seed):
    buffer = filled(capacity, lengths)
    if not buffer.num_episodes:
        assert max(lengths) < HORIZON
        return
    batch = buffer.sample(64, torch.Generator().manual_seed(seed))
    number, step = batch.obs[..., 0], batch.obs[..., 1]
    assert (number == number[0]).all(), "a slice holds observations of two episodes"
    assert (step == step[0] + torch.arange(HORIZON + 1.0).unsqueeze(1)).all()
    assert (batch.action[..., 0] == step[:-1]).all()
    assert (batch.reward == step[:-1]).all()
    assert (batch.task == number[0] % 7).all()
    ends = torch.tensor([lengths[int(n)] - 1 for n in number[0]])
    assert ((batch.terminated == 1) == (step[:-1] == ends)).all()


@given(st.lists(st.integers(3, 30), min_size=1, max_size=60), st.integers(31, 90))
@settings(max_examples=60, deadline=None)
def test_the_newest_episodes_are_kept(lengths, capacity):
    buffer = filled(capacity, lengths)
    kept = buffer.num_episodes
    assert kept >= 1
    seen = buffer.sample(4000, torch.Generator().manual_seed(0)).obs[0, :, 0].unique().tolist()
    assert seen == list(range(len(lengths) - kept, len(lengths)))
    assert buffer.num_transitions == sum(lengths[-kept:])
    # Whatever was dropped would not have fitted beside the rest, but for the tail of the ring left free.
    if kept < len(lengths):
        assert sum(n + 1 for n in lengths[-kept - 1 :]) + max(lengths) + 1 > capacity


def test_padding_is_zero_after_overwriting():
    buffer = ReplayBuffer(12, obs_dim=4, action_dim=2, horizon=HORIZON)
    buffer.add(torch.ones(12, 4), torch.ones(11, 2), torch.ones(11), False, 0)
    obs, action, reward = episode(1, 11)
    buffer.add(obs, action, reward, False, 0)
    batch = buffer.sample(32, torch.Generator().manual_seed(0))
    assert (batch.obs[..., 2:] == 0).all()
    assert (batch.action[..., 1:] == 0).all()


def test_episodes_are_drawn_uniformly_whatever_their_length():
    buffer = filled(400, [4, 300])
    first = buffer.sample(20_000, torch.Generator().manual_seed(0)).obs[0, :, 0]
    assert abs((first == 0).float().mean() - 0.5) < 0.02


def test_expert_actions_are_kept_apart():
    buffer = ReplayBuffer(20, 4, 2, HORIZON, keep_expert_actions=True)
    obs, action, reward = episode(0, 8)
    buffer.add(obs, action, reward, False, 0, expert_action=action + 1)
    batch = buffer.sample(8, torch.Generator().manual_seed(0))
    assert torch.equal(batch.expert_action[..., 0], batch.action[..., 0] + 1)


def test_a_saved_replay_continues_bit_for_bit():
    buffer = filled(60, [10, 20, 15, 12, 9])
    other = ReplayBuffer(60, 4, 2, HORIZON)
    other.load_state_tensors(buffer.state_tensors())
    for replay in (buffer, other):
        obs, action, reward = episode(9, 14)
        replay.add(obs, action, reward, False, 2)
    ours, theirs = (replay.sample(50, torch.Generator().manual_seed(3)) for replay in (buffer, other))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mixture_has_the_asked_shares():
    demos, online = filled(60, [10]), filled(60, [10, 10])
    online.obs += 100
    batch = sample_mixture(demos, online, 40, 0.25, torch.Generator().manual_seed(0))
    assert (batch.obs[0, :, 0] < 100).sum() == 10
    assert batch.task.shape == (40,)
    with pytest.raises(ValueError, match="cannot be split"):
        sample_mixture(demos, online, 1, 0.5, torch.Generator())


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(5, 2), "needs 6 observations"),
        (torch.full((6, 4), torch.nan), torch.zeros(5, 2), "not finite"),
        (torch.zeros(100, 4), torch.zeros(99, 2), "does not fit"),
    ],
)
def test_bad_episodes_are_refused_and_not_stored(obs, action, message):
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    with pytest.raises(ValueError, match=message):
        buffer.add(obs, action, torch.zeros(len(action)), False, 0)
    assert buffer.num_episodes == 0
    with pytest.raises(ValueError, match="no episode yet"):
        buffer.sample(1, torch.Generator())


def test_an_episode_shorter_than_a_slice_is_left_out():
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    obs, action, reward = episode(0, 2)
    assert not buffer.add(obs, action, reward, False, 0)
