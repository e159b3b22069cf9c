"""The replay: whole slices of one episode, uniform over episodes, exact after a save."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain_replay import PlainReplay
from pipeline.data.replay import ReplayBuffer, sample_mixture

HORIZON = 3


def episode(number: int, length: int, obs_dim: int = 4, action_dim: int = 2):
    """An episode whose every value tells its number and step: obs = (number, step), action = reward = step."""
    steps = torch.arange(length + 1.0)
    obs = torch.stack([torch.full_like(steps, number), steps], dim=1)
    return obs, steps[:-1].unsqueeze(1), steps[:-1]


def filled(capacity: int, lengths: list[int], **options: object) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, obs_dim=4, action_dim=2, horizon=HORIZON, **options)
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


def test_tasks_are_drawn_by_their_weights_and_their_episodes_uniformly():
    # Tasks 0, 1 and 2 have 1, 1 and 2 episodes left of very different lengths; task 3 has a weight and no episode.
    weights = torch.tensor([1.0, 0.0, 3.0, 9.0])
    buffer = ReplayBuffer(1000, 4, 2, HORIZON, task_weights=weights)
    for number, (task, length) in enumerate([(0, 300), (1, 200), (2, 4), (2, 300)]):
        obs, action, reward = episode(number, length)
        buffer.add(obs, action, reward, False, task)
    batch = buffer.sample(20_000, torch.Generator().manual_seed(0))
    share = [(batch.obs[0, :, 0] == number).float().mean().item() for number in range(4)]
    assert share == pytest.approx([0.25, 0, 0.375, 0.375], abs=0.02)
    steps = batch.obs[0, batch.obs[0, :, 0] == 0, 1]
    assert steps.mean() == pytest.approx(148.5, abs=5)
    assert (steps.min(), steps.max()) == (0, 297)


@given(st.lists(st.tuples(st.integers(3, 20), st.integers(0, 3)), min_size=1, max_size=90), st.integers(21, 400))
@settings(max_examples=40, deadline=None)
def test_with_weights_too_exactly_the_stored_episodes_are_drawn(episodes, capacity):
    weighted = ReplayBuffer(capacity, 4, 2, HORIZON, task_weights=torch.ones(4))
    for number, (length, task) in enumerate(episodes):
        obs, action, reward = episode(number, length)
        weighted.add(obs, action, reward, False, task)
    batch = weighted.sample(3000, torch.Generator().manual_seed(0))
    stored = range(len(episodes) - weighted.num_episodes, len(episodes))
    assert batch.obs[0, :, 0].unique().tolist() == list(stored)
    assert batch.task.tolist() == [episodes[int(n)][1] for n in batch.obs[0, :, 0]]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])])
def test_tasks_that_are_left_out_are_stored_and_not_drawn(weights):
    buffer = filled(200, [10] * 14, task_weights=weights)
    assert buffer.leave_out([0, 2, 3, 4, 5, 6])
    draw = torch.Generator().manual_seed(0)
    seen = buffer.sample(400, draw).obs[0, :, 0]
    assert seen.unique().tolist() == [1, 8]
    assert (seen == 1).float().mean() == pytest.approx(0.5, abs=0.1)
    buffer.add(*episode(15, 10), terminated=True, task=1)
    assert 15 in buffer.sample(400, draw).obs[0, :, 0].unique().tolist()
    assert buffer.num_episodes == 15
    assert not buffer.leave_out(range(7))
    with pytest.raises(ValueError, match="nothing to sample from"):
        buffer.sample(1, draw)
    assert buffer.leave_out([])
    assert len(buffer.sample(400, draw).task.unique()) == 7


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="task weights must be finite and not negative, and one above 0"):
        ReplayBuffer(20, 4, 2, HORIZON, task_weights=torch.tensor(weights))


def test_a_task_without_weight_or_episodes_is_named():
    buffer = ReplayBuffer(20, 4, 2, HORIZON, task_weights=torch.tensor([1.0, 0.0]))
    obs, action, reward = episode(0, 5)
    with pytest.raises(ValueError, match="task row 2: expected at least 0 and below 2"):
        buffer.add(obs, action, reward, False, 2)
    buffer.add(obs, action, reward, False, 1)
    with pytest.raises(ValueError, match=r"no episode of a task whose weight is above 0: see tasks\.weights"):
        buffer.sample(1, torch.Generator())


def test_the_distribution_is_that_of_the_plain_replay():
    lengths = [40, 3, 25, 12, 31, 7]
    ours, plain = filled(100, lengths), PlainReplay(100, 4, 2, HORIZON)
    for number, length in enumerate(lengths):
        obs, action, reward = episode(number, length)
        plain.add(obs, action, reward, True, number % 7)
    # What the plain one keeps is cut in the middle of an episode, so only whole episodes in both are compared.
    drawn = [replay.sample(40_000, torch.Generator().manual_seed(1)) for replay in (ours, plain)]
    shares = []
    for batch in drawn:
        number, step = batch.obs[0, :, 0], batch.obs[0, :, 1]
        assert (batch.obs[:, :, 1] == step + torch.arange(HORIZON + 1.0).unsqueeze(1)).all()
        whole = number >= 3
        keys = (number * 100 + step)[whole].long()
        shares.append(torch.bincount(keys, minlength=700) / whole.sum())
        ends = torch.tensor([lengths[int(n)] - 1 for n in number])
        assert ((batch.terminated == 1) == (batch.obs[:-1, :, 1] == ends)).all()
    assert (shares[0] - shares[1]).abs().max() < 0.01


def test_files_hold_the_same_as_memory(tmp_path):
    lengths = [10, 20, 15, 12, 9]
    memory, files = filled(60, lengths), filled(60, lengths, folder=tmp_path / "replay")
    ours, theirs = (replay.sample(50, torch.Generator().manual_seed(3)) for replay in (memory, files))
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))
    assert {path.name: path.stat().st_size for path in (tmp_path / "replay").iterdir()} == {"rows.f32": 4 * 60 * 7}
    with pytest.raises(ValueError, match="in files is read by the CPU, not by cuda"):
        ReplayBuffer(60, 4, 2, HORIZON, device="cuda", folder=tmp_path)


def test_a_disk_that_is_too_small_is_said_at_the_start(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.data.rows.os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"rows\.f32 needs .* GiB, which could not be reserved.*lower replay_capacity"):
        ReplayBuffer(60, 4, 2, HORIZON, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [100, 25])
def test_memory_per_transition_is_its_payload_and_little_more(length):
    num = 200
    buffer = ReplayBuffer(num * (length + 1), 128, 16, HORIZON, task_weights=torch.ones(2))
    for _ in range(num):
        buffer.add(torch.zeros(length + 1, 128), torch.zeros(length, 16), torch.zeros(length), True, 0)
    assert buffer.num_transitions == num * length
    seen: dict[int, int] = {}
    stack: list[object] = [buffer]
    while stack:  # every tensor that hangs on the buffer, once
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            seen[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif hasattr(item, "__dict__"):
            stack += vars(item).values()
    payload = 4 * (128 + 16 + 1) + 1  # and whether it was the last
    assert sum(seen.values()) / buffer.num_transitions < 1.05 * payload


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
    assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))


@given(st.lists(st.lists(st.integers(3, 20), max_size=8), min_size=1, max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_saves_of_what_is_new_give_the_whole(rounds, weighted):
    """A save after each round of episodes, each holding only what came since the one before."""
    options = {"task_weights": torch.ones(7)} if weighted else {}
    buffer, other = filled(60, [], **options), filled(60, [], **options)
    number = saved = 0
    for lengths in rounds:
        for length in lengths:
            obs, action, reward = episode(number, length)
            buffer.add(obs, action, reward, number % 2 == 0, number % 7, imitation=1 / (1 + number))
            number += 1
        state = {name: tensor.clone() for name, tensor in buffer.state_tensors(since=saved).items()}
        assert state["obs"].shape[0] <= sum(lengths) + len(lengths)
        other.load_state_tensors(state)
        saved = buffer.num_added
        assert other.num_transitions == buffer.num_transitions
    if buffer.num_episodes:
        ours, theirs = (replay.sample(50, torch.Generator().manual_seed(3)) for replay in (buffer, other))
        assert all(torch.equal(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True))  # without a past
    whole, again = buffer.state_tensors(), other.state_tensors()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_save_that_does_not_follow_is_refused():
    buffer = filled(60, [10, 10])
    since = buffer.num_added
    obs, action, reward = episode(2, 10)
    buffer.add(obs, action, reward, False, 2)
    with pytest.raises(ValueError, match="goes on after episode 2, this one ends with 1: a save between"):
        filled(60, [10]).load_state_tensors(buffer.state_tensors(since))
    with pytest.raises(ValueError, match="the saved replay has 33 rows of width 4, this one 20 of width 4"):
        ReplayBuffer(20, 4, 2, HORIZON).load_state_tensors(buffer.state_tensors())


def test_a_mixture_has_the_asked_shares():
    demos, online = filled(60, [10]), filled(60, [10, 10])
    online.obs += 100
    batch = sample_mixture(demos, online, 40, 0.25, torch.Generator().manual_seed(0))
    assert (batch.obs[0, :, 0] < 100).sum() == 10
    assert batch.task.shape == (40,)
    with pytest.raises(ValueError, match=r"0\.5 x 7 = 3\.5 slices is no whole number; change the batch size"):
        sample_mixture(demos, online, 7, 0.5, torch.Generator())


def test_a_mixture_imitates_experts_and_what_was_done():
    demos = ReplayBuffer(20, 4, 2, HORIZON, keep_expert_actions=True)
    obs, action, reward = episode(0, 8)
    demos.add(obs, action, reward, False, 0, expert_action=action + 1)
    batch = sample_mixture(demos, filled(60, [10, 10]), 6, 0.5, torch.Generator().manual_seed(0))
    difference = (batch.expert_action - batch.action)[..., 0]
    assert (difference[:, :3] == 1).all()
    assert (difference[:, 3:] == 0).all()
    assert batch.obs[:, :3, 0].eq(0).all()  # the demonstrations come first
    assert batch.reward.equal(batch.action[..., 0])


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(5, 2), "needs 6 observations"),
        (torch.full((6, 4), torch.nan), torch.zeros(5, 2), "`obs` that is not finite at step 0"),
        (torch.zeros(6, 5), torch.zeros(5, 2), r"`obs` of shape \(6, 5\); this replay takes at most \(4,\) values"),
        (torch.zeros(6, 4), torch.zeros(5), r"`action` of shape \(5,\)"),
        (torch.zeros(100, 4), torch.zeros(99, 2), "does not fit"),
    ],
)
def test_bad_episodes_are_refused_and_not_stored(obs, action, message):
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    with pytest.raises(ValueError, match=message):
        buffer.add(obs, action, torch.zeros(len(action)), False, 0)
    assert buffer.num_episodes == 0
    reward = torch.tensor([0.0, 0, 0, torch.nan, 0])
    with pytest.raises(ValueError, match="`reward` that is not finite at step 3; it was not stored"):
        buffer.add(torch.zeros(6, 4), torch.zeros(5, 2), reward, False, 0)
    with pytest.raises(ValueError, match="no episode yet"):
        buffer.sample(1, torch.Generator())


def test_an_episode_shorter_than_a_slice_is_left_out():
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    obs, action, reward = episode(0, 2)
    assert not buffer.add(obs, action, reward, False, 0)
