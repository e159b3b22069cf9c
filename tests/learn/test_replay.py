"""The replay: whole slices of one episode, uniform over episodes, exact after a save."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plain_replay import PlainReplay
from pipeline.data.episode import Episode
from pipeline.learn.replay import ReplayBuffer, from_demos, sample_mixture

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
    with pytest.raises(AssertionError, match="nothing to sample from"):
        buffer.sample(1, draw)
    assert buffer.leave_out([])
    assert len(buffer.sample(400, draw).task.unique()) == 7


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(AssertionError, match="task weights must"):
        ReplayBuffer(20, 4, 2, HORIZON, task_weights=torch.tensor(weights))


def test_a_task_without_weight_or_episodes_is_named():
    buffer = ReplayBuffer(20, 4, 2, HORIZON, task_weights=torch.tensor([1.0, 0.0]))
    obs, action, reward = episode(0, 5)
    with pytest.raises(AssertionError):
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
    assert all(torch.equal(a, b) for a, b in zip(ours[:-2], theirs[:-2], strict=True))
    assert {path.name: path.stat().st_size for path in (tmp_path / "replay").iterdir()} == {"rows.f32": 4 * 60 * 7}
    with pytest.raises(AssertionError, match="files are read by the CPU"):
        ReplayBuffer(60, 4, 2, HORIZON, device="cuda", folder=tmp_path)


def test_a_disk_that_is_too_small_is_said_at_the_start(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.learn.replay.os.posix_fallocate", full)
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
    assert buffer.sample(1, torch.Generator()).task == 0  # which caches what there is of each task
    seen: dict[int, int] = {}
    stack: list[object] = [buffer]
    while stack:  # every tensor and array that hangs on the buffer, once
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            seen[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, np.ndarray):
            seen[item.ctypes.data] = item.nbytes
        elif isinstance(item, (dict, tuple)):
            stack += item.values() if isinstance(item, dict) else item
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
    assert all(torch.equal(a, b) for a, b in zip(ours[:-2], theirs[:-2], strict=True))


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
        assert all(torch.equal(a, b) for a, b in zip(ours[:-2], theirs[:-2], strict=True))  # without targets and past
    whole, again = buffer.state_tensors(), other.state_tensors()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_save_that_does_not_follow_is_refused():
    buffer = filled(60, [10, 10])
    since = buffer.num_added
    obs, action, reward = episode(2, 10)
    buffer.add(obs, action, reward, False, 2)
    with pytest.raises(AssertionError, match="starts at episode 2, this one ends at 1"):
        filled(60, [10]).load_state_tensors(buffer.state_tensors(since))
    with pytest.raises(AssertionError, match="the saved replay is larger than this one"):
        ReplayBuffer(20, 4, 2, HORIZON).load_state_tensors(buffer.state_tensors())


def test_a_mixture_has_the_asked_shares():
    demos, online = filled(60, [10]), filled(60, [10, 10])
    online.obs += 100
    batch = sample_mixture(demos, online, 40, 0.25, torch.Generator().manual_seed(0))
    assert (batch.obs[0, :, 0] < 100).sum() == 10
    assert batch.task.shape == (40,)
    with pytest.raises(AssertionError, match=r"0\.5 x 7 slices is no whole number"):
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
        (torch.zeros(5, 4), torch.zeros(5, 2), "5 actions, but 5 of `obs`"),
        (torch.zeros(6, 5), torch.zeros(5, 2), r"`obs` of shape \(6, 5\); this replay takes at most \(4,\) per step"),
        (torch.zeros(6, 4), torch.zeros(5), r"`action` of shape \(5,\)"),
    ],
)
def test_episodes_of_impossible_shapes_are_refused(obs, action, message):
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    with pytest.raises(AssertionError, match=message):
        buffer.add(obs, action, torch.zeros(len(action)), False, 0)
    assert buffer.num_episodes == 0


def test_values_that_are_not_finite_and_episodes_that_are_too_long_are_refused_and_not_stored():
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    obs, action, reward = torch.zeros(6, 4), torch.zeros(5, 2), torch.zeros(5)
    for name, place in {"obs": obs[4], "action": action[1], "reward": reward[3:4]}.items():
        step = {"obs": 4, "action": 1, "reward": 3}[name]
        place[0] = torch.nan
        with pytest.raises(ValueError, match=f"`{name}` that is not finite at step {step}; it was not stored"):
            buffer.add(obs, action, reward, False, 0)
        place[0] = 0
    with pytest.raises(ValueError, match="99 transitions does not fit into 20 rows: raise replay_capacity"):
        buffer.add(torch.zeros(100, 4), torch.zeros(99, 2), torch.zeros(99), False, 0)
    assert buffer.num_episodes == 0
    with pytest.raises(AssertionError, match="nothing to sample from"):
        buffer.sample(1, torch.Generator())
    with pytest.raises(ValueError, match="a replay of 3 rows cannot hold a slice of 3 transitions"):
        ReplayBuffer(3, 4, 2, HORIZON)


def test_an_episode_shorter_than_a_slice_is_left_out():
    buffer = ReplayBuffer(20, 4, 2, HORIZON)
    obs, action, reward = episode(0, 2)
    assert not buffer.add(obs, action, reward, False, 0)


def test_a_slice_is_drawn_as_it_ever_was():
    """Episode and first step of what is drawn under a seed: a change here changes every run."""
    lengths = [10, 20, 15, 12, 9, 30, 8, 25, 11, 14]
    weights, draw = torch.tensor([1.0, 2, 0, 4, 1, 1, 3]), torch.Generator().manual_seed(7)
    plain, weighted, some = filled(100, lengths), filled(1000, lengths, task_weights=weights), filled(100, lengths)
    some.leave_out([0, 2])
    drawn = [
        *(replay.sample(6, draw) for replay in (plain, weighted, some)),
        sample_mixture(plain, weighted, 6, 0.5, draw),
    ]
    assert plain.num_episodes == 5
    assert [batch.obs[0, :, :2].tolist() for batch in drawn] == [
        [[5, 18], [7, 21], [6, 5], [6, 1], [8, 5], [7, 17]],
        [[6, 5], [0, 5], [7, 7], [1, 16], [7, 16], [8, 8]],
        [[5, 14], [5, 2], [8, 5], [6, 4], [6, 2], [5, 1]],
        [[6, 4], [5, 7], [7, 0], [5, 21], [3, 2], [7, 2]],
    ]
    assert float(torch.rand(1, generator=draw)) == pytest.approx(0.8868, abs=1e-4)  # nothing else was drawn


def test_further_columns_are_kept_and_are_no_part_of_slices():
    replay, plain = (ReplayBuffer(40, 4, 2, HORIZON, columns=columns) for columns in (("log_prob",), ()))
    for number in range(4):
        steps = episode(number, 10)
        replay.add(*steps, terminated=True, task=0, columns={"log_prob": number + steps[2] / 100})
        plain.add(*steps, terminated=True, task=0)
    ours, theirs = (buffer.sample(9, torch.Generator().manual_seed(0)) for buffer in (replay, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours[:-2], theirs[:-2], strict=True))
    state = replay.state_tensors(since=2)
    assert all(tensor.is_contiguous() for tensor in state.values())
    assert state.keys() - plain.state_tensors().keys() == {"log_prob"}
    steps = torch.cat([torch.arange(10.0), torch.tensor([-100.0])])  # the last row has no action, hence 0
    expected = torch.cat([number + steps / 100 for number in (2, 3)])
    expected[[10, 21]] = 0
    assert torch.equal(state["log_prob"], expected)
    for columns in ({}, {"log_prob": torch.zeros(10), "other": torch.zeros(10)}):
        with pytest.raises(AssertionError, match="expected"):
            replay.add(*episode(0, 10), terminated=True, task=0, columns=columns)
    with pytest.raises(ValueError, match="`log_prob` that is not finite at step 0"):
        replay.add(*episode(0, 10), terminated=True, task=0, columns={"log_prob": torch.full((10,), torch.inf)})


def test_a_state_can_be_sent_as_bytes():
    state = filled(40, [10]).state_tensors()  # of one episode: a stride of its own would count as contiguous
    assert all(tensor.reshape(-1).view(torch.uint8).numel() for tensor in state.values())


def test_a_view_of_one_task_and_a_copy_hold_what_was_stored_then():
    buffer = filled(200, [10] * 14)
    view, copied, draw = buffer.only(3), buffer.copy_to("cpu"), torch.Generator().manual_seed(0)
    assert view.num_episodes == 2
    assert view.sample(100, draw).obs[0, :, 0].unique().tolist() == [3, 10]
    before = copied.state_tensors()
    buffer.add(*episode(20, 180), terminated=True, task=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in copied.state_tensors().items())
    assert copied.num_episodes == 14
    with pytest.raises(AssertionError, match="no episode of task row 9"):
        buffer.only(9)


def test_files_are_read_by_a_second_buffer(tmp_path):
    first = filled(60, [10, 20, 15, 12, 9], folder=tmp_path)
    second = ReplayBuffer(60, 4, 2, HORIZON, folder=tmp_path, attach=True)
    second.load_index(first.index_tensors())
    ours, theirs = (replay.sample(50, torch.Generator().manual_seed(3)) for replay in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(ours[:-2], theirs[:-2], strict=True))
    assert second.num_added == 5


def test_the_age_of_episodes_is_in_transitions():
    assert filled(100, [10, 20, 30]).mean_age() == pytest.approx((50 + 30 + 0) / 3)
    assert filled(100, []).mean_age() == 0


def demonstration(length: int, obs_dim: int = 3) -> Episode:
    draw = np.random.default_rng(length)
    obs, action = draw.normal(size=(length + 1, obs_dim)).astype(np.float32), np.zeros((length, 2), np.float32)
    reward = np.zeros(length, np.float32)
    return Episode("a-task", obs, action, action + 1, reward, False, True, 1.0, 0.0, 0, "scripted")


def test_demonstrations_fill_a_buffer_of_their_size():
    buffer = from_demos([(2, demonstration(5)), (0, demonstration(7))], 4, 2, HORIZON, task_weights=torch.ones(3))
    assert (buffer.capacity, buffer.num_episodes, buffer.num_transitions) == (14, 2, 12)
    batch = buffer.sample(50, torch.Generator().manual_seed(0))
    assert batch.task.unique().tolist() == [0, 2]
    assert torch.equal(batch.expert_action, batch.action + 1)
    with pytest.raises(ValueError, match="there are no demonstrations to learn from"):
        from_demos([], 4, 2, HORIZON)
    with pytest.raises(ValueError, match="a-task has 5 observation and 2 action dims; model.obs_dim is 4"):
        from_demos([(0, demonstration(5, obs_dim=5))], 4, 2, HORIZON)


def test_demonstrations_shorter_than_a_slice_are_left_out_and_said(caplog: pytest.LogCaptureFixture):
    buffer = from_demos([(0, demonstration(2)), (0, demonstration(5)), (1, demonstration(4))], 4, 2, HORIZON)
    assert (buffer.capacity, buffer.num_episodes) == (11, 2)
    assert caplog.text.count("1 demonstrations of a-task have fewer steps than planner.horizon = 3") == 1
    with pytest.raises(ValueError, match=r"every demonstration of a-task has fewer steps than planner\.horizon = 3"):
        from_demos([(0, demonstration(2)), (1, demonstration(5))], 4, 2, HORIZON)


@pytest.mark.parametrize("weighted", [False, True])
def test_by_steps_every_place_where_a_slice_can_begin_is_as_likely(weighted: bool) -> None:
    lengths = [3, 12, 40, 5, 60, 25, 4]  # the first ones are dropped for the last
    weights = torch.ones(7) if weighted else None
    buffer = filled(140, lengths, by_steps=True, task_weights=weights)
    slices = buffer._episodes.stored["length"] - HORIZON + 1
    assert 2 < len(slices) < len(lengths)
    batch = buffer.sample(40_000, torch.Generator().manual_seed(0))
    number, step = batch.obs[0, :, 0], batch.obs[0, :, 1]
    groups = [number == one for one in number.unique()] if weighted else [torch.ones_like(number, dtype=torch.bool)]
    for group in groups:
        counts = torch.unique(100 * number[group] + step[group], return_counts=True)[1].float()
        assert (counts / counts.sum() - 1 / len(counts)).abs().max() < 0.25 / len(counts)
    ends = len(slices) / slices.sum() if not weighted else (1 / slices).mean()
    assert float(batch.terminated[-1].mean()) == pytest.approx(ends, abs=0.01)
