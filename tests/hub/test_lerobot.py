"""Demonstrations in LeRobot's form: our own importer reads them back as they were, and the videos show their frames."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from pipeline.data.demos import load_demos, read_episodes, write_episodes
from pipeline.data.episode import Episode
from pipeline.demonstrate.play import play
from pipeline.hub.demos import summary, write_demos_release
from pipeline.hub.lerobot import LeRobotForm, write_lerobot
from pipeline.hub.push import hashes
from pipeline.importers import lerobot
from pipeline.importers.episodes import Reading, import_episodes
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec
from tests.hub.conftest import PUSH, make_episode

pytestmark = pytest.mark.slow  # a real simulator

VIDEO = "videos/observation.images.main/chunk-000/file-{:03d}.mp4"


def shown() -> dict[str, tuple[TaskSpec, list[Episode]]]:
    """A task that can be drawn, 39 values wide, and a made-up one of 4 that cannot; a disturbed attempt among them."""
    (reach,) = registry.get(["mw-reach"])
    played = [play(reach, 0, attempt, 0.5) for attempt in (0, 1)]
    assert not np.array_equal(played[1].action, played[1].expert_action)
    others = [make_episode(PUSH, 0), dataclasses.replace(make_episode(PUSH, 1, 7), terminated=True)]
    return {"mw-reach": (reach, played), "push": (PUSH, others)}


def read_back(folder: Path, spec: TaskSpec, out: Path) -> list[Episode]:
    report = import_episodes(lerobot.read_demos(folder, spec, spec.text()), spec, "x", None, Reading(), out)
    assert (report.left_out, report.cut) == ([], [])
    return load_demos(out, spec.name)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, tuple[TaskSpec, list[Episode]]]]:
    folder, given = tmp_path_factory.mktemp("lerobot"), shown()
    assert write_lerobot(folder, given, 48) == ["push"]
    return folder, given


def test_our_own_importer_reads_back_what_was_written(written, tmp_path: Path) -> None:
    folder, given = written
    for spec, episodes in given.values():
        back = read_back(folder, spec, tmp_path)
        assert len(back) == len(episodes)
        for one, other in zip(episodes, back, strict=True):
            for name in ("obs", "action", "expert_action", "reward", "terminated", "success", "score"):
                assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_unknown_rewards_stay_unknown(tmp_path: Path) -> None:
    bare = dataclasses.replace(
        make_episode(PUSH, 0), reward=np.full(5, np.nan, np.float32), score=np.nan, episode_return=np.nan
    )
    for name, episodes in {"all": [bare], "some": [make_episode(PUSH, 1), bare]}.items():
        write_lerobot(tmp_path / name, {"push": (PUSH, episodes)}, 0)
        known = [one.rewarded for one in read_back(tmp_path / name, PUSH, tmp_path / f"{name}-back")]
        assert known == [one.rewarded for one in episodes]
        statistics = json.loads((tmp_path / name / "meta/stats.json").read_text())
        assert ("next.reward" in statistics) == (name == "some")
        assert all(np.isfinite(values).all() for one in statistics.values() for values in one.values())


def test_every_frame_has_its_place_in_data_and_videos(written) -> None:
    folder, given = written
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["features"]["observation.state"]["shape"] == [39]
    rows = pq.read_table(folder / "meta/episodes").to_pylist()
    frames = pq.read_table(folder / "data").to_pylist()
    assert [row["length"] for row in rows] == [101, 101, 6, 8]
    assert info["total_frames"] == len(frames) == 101 + 101 + 6 + 8
    assert [frame["index"] for frame in frames] == list(range(len(frames)))
    for row in rows:
        own = frames[row["dataset_from_index"] : row["dataset_to_index"]]
        assert {frame["episode_index"] for frame in own} == {row["episode_index"]}
        assert [frame["next.done"] for frame in own] == [False] * (len(own) - 1) + [True]
    pictures = {}
    for number, task in enumerate(given):
        with av.open(str(folder / VIDEO.format(number))) as video:
            decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
        lengths = [row["length"] for row in rows if row["data/file_index"] == number]
        np.testing.assert_allclose([time for time, _ in decoded], np.arange(sum(lengths)) / 10, atol=1e-6)
        pictures[task] = np.stack([picture for _, picture in decoded])
    starts = [row["videos/observation.images.main/from_timestamp"] for row in rows]
    assert starts == pytest.approx([0, 10.1, 0, 0.6])
    assert pictures["mw-reach"].shape == (202, 48, 48, 3)
    assert pictures["mw-reach"].std() > 10
    assert pictures["push"].max() < 5, "black: it could not be drawn"


def test_the_release_holds_both_forms_and_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_episodes("demos/push/episodes.parquet", [make_episode(PUSH, seed) for seed in range(3)])
    for folder in ("one", "two"):
        write_demos_release("demos", [PUSH], folder, None, lerobot=LeRobotForm(episodes=2, video_size=0))
    assert hashes("one").items() - hashes("two").items() == {("README.md", hashes("one")["README.md"])}
    card = DatasetCard.load("one/README.md")
    assert "LeRobot" in card.data.to_dict()["tags"]
    assert "The first 2 episodes of each task" in card.text
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = list(datasets.load_dataset("one", "lerobot", split="train", streaming=True))
    assert [row["episode_index"] for row in rows] == [0] * 6 + [1] * 6
    assert len(read_back(Path("one"), PUSH, tmp_path / "back")) == 2


def test_tasks_may_be_named_like_what_the_form_has(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["data", "lerobot", "meta", "videos"]
    specs = [dataclasses.replace(PUSH, name=name, instructions=(f"Push {name}.",)) for name in names]
    for number, spec in enumerate(specs):
        episode = dataclasses.replace(make_episode(PUSH, number), task=spec.name)
        write_episodes(f"demos/{spec.name}/episodes.parquet", [episode])
    write_demos_release("demos", specs, "one", None, lerobot=LeRobotForm(episodes=1, video_size=0))
    assert [name for name, *_ in summary("one")] == names
    configs = [one["config_name"] for one in DatasetCard.load("one/README.md").data.to_dict()["configs"]]
    assert sorted(configs) == sorted([*names, "lerobot-form"])
    for spec in specs:
        (whole,), (back,) = (
            read_episodes(f"one/{spec.name}/episodes.parquet", "x"),
            read_back(Path("one"), spec, tmp_path),
        )
        assert np.array_equal(whole.obs, back.obs)


def test_padding_that_is_not_zero_is_refused(written, tmp_path: Path) -> None:
    folder, given = written
    narrow = dataclasses.replace(given["mw-reach"][0], obs_dim=30)
    with pytest.raises(ValueError, match="39 wide, and beyond the task's 30? not only zeros|beyond the task's"):
        read_back(folder, narrow, tmp_path)
