"""Plain `.npz` and `.parquet` files: one episode or several, with and without rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.data.demos import load_demos
from pipeline.importers import plain
from pipeline.importers.episodes import Reading, Recorded, Report, import_episodes
from pipeline.tasks.spec import TaskSpec

SPEC = TaskSpec(
    name="push", suite="gymnasium", env_id="tests:tests/None-v0", embodiment="A body.", instructions=("Push.",),
    obs_dim=3, action_dim=2, action_repeat=1, episode_length=8, score="return/1000",
)  # fmt: skip
RNG = np.random.default_rng(0)
OBS, ACTION, REWARD = RNG.normal(size=(6, 3)), RNG.uniform(-1, 1, (5, 2)), RNG.uniform(size=5)


def write(path: Path, features=(), reading: Reading | None = None, out: Path | None = None) -> Report:
    source = plain.read_demos(path, SPEC, features)
    return import_episodes(source, SPEC, "x", None, reading or Reading(), out or path.parent / "out")


def flat(ends: list[int]) -> dict[str, np.ndarray]:
    """Steps of episodes of these lengths side by side, as D4RL has them."""
    total = sum(ends)
    over = np.isin(np.arange(total), np.cumsum(ends) - 1)
    return {
        "observations": RNG.normal(size=(total, 3)), "actions": RNG.uniform(-1, 1, (total, 2)),
        "rewards": RNG.uniform(size=total), "terminals": over,
    }  # fmt: skip


def test_one_episode_with_its_last_observation(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, reward=REWARD, terminated=True, camera=np.zeros(2))
    report = write(tmp_path / "a.npz")
    assert (report.kept, report.steps, report.ignored, report.cut) == (1, 5, ["camera"], [])
    (episode,) = load_demos(tmp_path / "out", "push")
    np.testing.assert_allclose(episode.obs, OBS, rtol=1e-6)
    np.testing.assert_allclose(episode.reward, REWARD, rtol=1e-6)
    assert episode.terminated


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(3):
        np.savez(tmp_path / f"set/{number}.npz", obs=OBS + number, action=ACTION, reward=REWARD)
    report = write(tmp_path / "set")
    assert sorted(report.sha256) == ["0.npz", "1.npz", "2.npz"]
    assert [episode.obs[0, 0] for episode in load_demos(tmp_path / "out", "push")] == pytest.approx(
        [OBS[0, 0], OBS[0, 0] + 1, OBS[0, 0] + 2]
    )


def test_several_episodes_by_their_number(tmp_path: Path) -> None:
    steps = flat([4, 6])
    np.savez(tmp_path / "a.npz", **steps, episode=np.repeat([7, 3], [4, 6]))
    report = write(tmp_path / "a.npz")
    assert report.steps == 3 + 5  # no observation follows the last action
    assert any("last action of every episode is left out" in note for note in report.notes)
    following = np.roll(steps["observations"], -1, 0)
    np.savez(tmp_path / "a.npz", **steps, next_observations=following, episode=np.repeat([7, 3], [4, 6]))
    assert write(tmp_path / "a.npz").steps == 4 + 6
    first, second = load_demos(tmp_path / "out", "push")
    assert first.terminated
    assert second.terminated
    np.testing.assert_allclose(second.obs[:-1], steps["observations"][4:], rtol=1e-6)


def test_an_end_in_the_middle_is_several_episodes_or_is_cut(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat([4, 6]))
    with pytest.raises(ValueError, match="6 steps after its end: `terminated`(.|\n)*say which each step is of"):
        write(tmp_path / "a.npz")
    steps = flat([4, 6])
    np.savez(tmp_path / "a.npz", **steps, episode=np.repeat([0, 1], [6, 4]))
    report = write(tmp_path / "a.npz")
    assert report.cut == [{"episode": 0, "reason": "2 steps after its end: `terminated` is true at step 3"}]
    np.savez(tmp_path / "a.npz", **steps, episode=np.tile([0, 1], 5))
    with pytest.raises(ValueError, match="side by side"):
        write(tmp_path / "a.npz")


def test_an_array_of_whole_episodes(tmp_path: Path) -> None:
    parts = {"position": RNG.normal(size=(4, 6, 2)), "speed": RNG.normal(size=(4, 6))}
    np.savez(tmp_path / "a.npz", **parts, actions=RNG.uniform(-1, 1, (4, 5, 2)), rewards=RNG.uniform(size=(4, 5)))
    write(tmp_path / "a.npz", ["position", "speed"])
    episodes = load_demos(tmp_path / "out", "push")
    np.testing.assert_allclose(episodes[2].obs[:, 2], parts["speed"][2], rtol=1e-6)
    with pytest.raises(ValueError, match="no `obs`. It has: position, speed, actions, rewards"):
        write(tmp_path / "a.npz")


def test_parquet_with_a_row_per_step_and_with_a_row_per_episode(tmp_path: Path) -> None:
    steps = {"observation": [*OBS[:5]], "next_observation": [*OBS[1:]], "action": [*ACTION], "reward": REWARD}
    pq.write_table(pa.table(steps), tmp_path / "steps.parquet")
    rows = {"obs": [OBS.tolist()] * 2, "action": [ACTION.tolist()] * 2, "reward": [REWARD.tolist()] * 2}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    assert write(tmp_path / "steps.parquet", out=tmp_path / "a").kept == 1
    assert write(tmp_path / "rows.parquet", out=tmp_path / "b").kept == 2
    for folder in ("a", "b"):
        episode = load_demos(tmp_path / folder, "push")[0]
        np.testing.assert_allclose(episode.obs, OBS, rtol=1e-6)
        np.testing.assert_allclose(episode.reward, REWARD, rtol=1e-6)


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_data_without_rewards_are_taken_and_said_to_be(form: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION)
    pq.write_table(pa.table({"obs": [OBS.tolist()], "action": [ACTION.tolist()]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no reward is in it, not even the one at the end"):
        write(tmp_path / f"a.{form}", reading=Reading(reward_at_end=True))
    assert not (tmp_path / "out").exists()
    report = write(tmp_path / f"a.{form}")
    assert any("reward unknown in all episodes: policy and dynamics learn" in note for note in report.notes)
    (episode,) = load_demos(tmp_path / "out", "push")
    assert not episode.rewarded
    assert np.isnan([episode.episode_return, episode.score, *episode.reward]).all()
    row = pq.read_table(tmp_path / "out/push/episodes.parquet").to_pylist()[0]
    assert [row[name] for name in ("reward", "score", "episode_return")] == [None, None, None]


@pytest.mark.parametrize(
    "given",
    [np.float32(3.5), np.array([np.nan, np.nan, np.nan, np.nan, 3.5])],
    ids=["one number", "nothing before the last"],
)
def test_a_reward_at_the_end_alone_must_be_the_task_s_own_way(given, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, reward=given)
    with pytest.raises(ValueError, match="reward is given at the end alone(.|\n)*say --reward-at-end"):
        write(tmp_path / "a.npz")
    write(tmp_path / "a.npz", reading=Reading(reward_at_end=True))
    assert load_demos(tmp_path / "out", "push")[0].reward.tolist() == [0, 0, 0, 0, 3.5]
    np.savez(tmp_path / "a.npz", obs=OBS[:5], action=ACTION, reward=np.float32(3.5))
    with pytest.raises(ValueError, match="its one reward is of its last action"):
        write(tmp_path / "a.npz", reading=Reading(reward_at_end=True))


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        (np.arange(6.0), "it has 6 rewards for 5 actions"),
        (np.arange(4.0), "it has 4 rewards for 5 actions"),
        (np.zeros(0), "it has 0 rewards for 5 actions"),
        (np.zeros((5, 2)), r"its rewards have the shape \(5, 2\), expected one number for each of 5 actions"),
    ],
)
def test_rewards_must_be_one_for_each_action(rewards: np.ndarray, reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, reward=rewards)
    with pytest.raises(ValueError, match=reason):
        write(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, reward=REWARD[:, None])
    write(tmp_path / "a.npz")
    np.testing.assert_allclose(load_demos(tmp_path / "out", "push")[0].reward, REWARD, rtol=1e-6)


@pytest.mark.parametrize("name", ["terminated", "truncated", "done"])
def test_a_flag_that_is_missing_is_refused(name: str, tmp_path: Path) -> None:
    steps = {"obs": [*OBS[:5]], "next_obs": [*OBS[1:]], "action": [*ACTION], "reward": REWARD}
    pq.write_table(pa.table({**steps, name: [False, False, None, False, True]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"`{name}` is missing at step 2"):
        write(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, reward=REWARD, **{name: np.nan})
    with pytest.raises(ValueError, match=f"`{name}` is missing at step 4"):
        write(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("success", "known"),
    [([True, None, True, True, None], None), ([None, None, None, None, True], True), ([None] * 4 + [False], False)],
)
def test_success_that_is_missing_is_not_known(success: list, known: bool | None, tmp_path: Path) -> None:
    steps = {"obs": [*OBS[:5]], "next_obs": [*OBS[1:]], "action": [*ACTION], "reward": REWARD, "success": success}
    pq.write_table(pa.table(steps), tmp_path / "a.parquet")
    (recorded,) = plain.read_demos(tmp_path / "a.parquet", SPEC).episodes
    assert isinstance(recorded, Recorded)
    assert recorded.success is known


def test_the_number_of_an_episode_that_is_missing_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **flat([4, 6]), episode=np.r_[np.zeros(9), np.nan])
    with pytest.raises(ValueError, match="`episode` is missing at step 9"):
        write(tmp_path / "a.npz")


def test_next_observations_must_be_one_for_each_action(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS[:5], next_obs=OBS, action=ACTION, reward=REWARD)
    with pytest.raises(ValueError, match="it has 6 next observations for 5 actions"):
        write(tmp_path / "a.npz")


def test_features_of_an_episode_whose_actions_are_one_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=OBS[:, :2], y=OBS[:, 2], action=ACTION[:, 0], reward=REWARD)
    (recorded,) = plain.read_demos(tmp_path / "a.npz", SPEC, ["x", "y"]).episodes
    assert isinstance(recorded, Recorded)
    np.testing.assert_array_equal(recorded.obs, OBS)


def test_names_that_mean_the_same_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", obs=OBS, action=ACTION, actions=ACTION, reward=REWARD)
    with pytest.raises(ValueError, match="action and actions"):
        write(tmp_path / "a.npz")


def test_the_command_imports_them(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/push.yaml").write_text(
        "{name: push, suite: gymnasium, env_id: Pendulum-v1, embodiment: A pole., instructions: [Push.], obs_dim: 3, "
        'action_dim: 2, action_repeat: 1, episode_length: 8, score: "return/1000"}'
    )
    (tmp_path / "set").mkdir()
    np.savez("set/a.npz", obs=OBS, action=ACTION, reward=REWARD)
    np.savez("set/b.npz", obs=OBS, action=ACTION)
    assert main(["import", "plain", "set", "--task", "push", "--folder", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 episodes of push, 10 steps" in shown
    assert "note: reward unknown in 1 of 2 episodes" in shown
    assert [episode.rewarded for episode in load_demos("mine/demos", "push")] == [True, False]


def test_several_episodes_by_their_ends(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    steps = flat([4, 6])
    np.savez(tmp_path / "set/a.npz", **steps, episode_ends=np.array([4, 10]))
    (tmp_path / "set/._a.npz").write_bytes(b"left there by another system")
    assert write(tmp_path / "set").steps == 3 + 5
    for ends, message in (([4, 9], "ends with 9, there are 10 steps"), ([4, 4, 10], "rising"), ([], "rising")):
        np.savez(tmp_path / "b.npz", **steps, episode_ends=np.array(ends))
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "b.npz")
