"""What holds for the import of every format: what was left out is printed and written, and rewards may be missing."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.cli import main
from pipeline.data.demos import load_demos
from pipeline.data.episode import Episode
from pipeline.importers import newt
from pipeline.importers.hdf5 import open_hdf5

DATA = Path(__file__).parents[1] / "data"
SUCCEEDED = ["--successful"]


class Format(ABC):
    """One source in the working folder, and what can be done to it."""

    name, widths, options = "", (0, 0), SUCCEEDED
    form = ""  # of the command, if it is not the name

    @abstractmethod
    def write(self) -> str:
        """Write it whole, and return where."""

    @abstractmethod
    def spoil(self) -> str:
        """Make one episode useless, and return the reason that must be given."""

    @abstractmethod
    def forget_rewards(self) -> None:
        """Take the rewards out."""


class Newt(Format):
    name, widths = "newt", (4, 2)

    def write(self) -> str:
        self._columns = newt._load(DATA / "newt_demos.pt")
        return self._save()

    def spoil(self) -> str:
        self._columns["action"][6] = 0.5
        self._save()
        return "NaN was expected"

    def forget_rewards(self) -> None:
        self._columns["reward"][:] = torch.nan
        self._save()

    def _save(self) -> str:
        torch.save({"_tensordict": self._columns}, "demos.pt")
        return "demos.pt"


class Minari(Format):
    name, widths = "minari", (3, 1)

    def write(self) -> str:
        shutil.copytree(DATA / "minari/hdf5", "set")
        return "set"

    def spoil(self) -> str:
        with h5py.File("set/data/main_data.hdf5", "a") as file:
            del file["episode_1/rewards"]
            file["episode_1/rewards"] = np.zeros(7)
        return "it has 7 rewards for 6 actions"

    def forget_rewards(self) -> None:
        with h5py.File("set/data/main_data.hdf5", "a") as file:
            for episode in file.values():
                del episode["rewards"]


class MinariParquet(Minari):
    name, form = "minari-parquet", "minari"

    def write(self) -> str:
        shutil.copytree(DATA / "minari/parquet", "set")
        return "set"

    def spoil(self) -> str:
        Path("set/data/1/part-0.parquet").write_bytes(b"PAR1 not parquet")
        return "it cannot be read"

    def forget_rewards(self) -> None:
        for path in Path("set/data").glob("*/*.parquet"):
            pq.write_table(pq.read_table(path).drop_columns(["rewards"]), path)


class LeRobot(Format):
    name, widths, options = "lerobot", (6, 2), [*SUCCEEDED, "--only", "push the block"]
    _file = Path("set/data/chunk-000/file-000.parquet")

    def write(self) -> str:
        shutil.copytree(DATA / "lerobot", "set")
        return "set"

    def spoil(self) -> str:
        rows = pq.read_table(self._file)
        column, numbers = rows.column_names.index("frame_index"), rows["frame_index"].to_pylist()
        pq.write_table(rows.set_column(column, "frame_index", [[numbers[0] + 7, *numbers[1:]]]), self._file)
        return "not counted from 0 without a gap"

    def forget_rewards(self) -> None:
        path = Path("set/meta/info.json")
        info = json.loads(path.read_text())
        del info["features"]["next.reward"]
        path.write_text(json.dumps(info))
        pq.write_table(pq.read_table(self._file).drop_columns(["next.reward"]), self._file)


class Robomimic(Format):
    name, widths = "robomimic", (4, 2)

    def write(self) -> str:
        rng = np.random.default_rng(0)
        with h5py.File("low_dim.hdf5", "w") as file:
            for number, length in enumerate((5, 6, 7)):
                demo = file.create_group(f"data/demo_{number}")
                demo["actions"], demo["states"] = rng.uniform(-1, 1, (length, 2)), rng.normal(size=(length, 9))
                demo["rewards"] = rng.uniform(size=length)
                demo["dones"] = np.arange(length) == length - (3 if number == 2 else 1)
                demo["obs/object"], demo["next_obs/object"] = rng.normal(size=(2, length, 4))
        return "low_dim.hdf5"

    def spoil(self) -> str:
        with h5py.File("low_dim.hdf5", "a") as file:
            del file["data/demo_1/next_obs/object"]
        return "`object` is missing"

    def forget_rewards(self) -> None:
        with h5py.File("low_dim.hdf5", "a") as file:
            for demo in file["data"].values():
                del demo["rewards"]


class Plain(Format):
    name, widths = "plain", (3, 2)

    def write(self) -> str:
        Path("set").mkdir()
        rng = np.random.default_rng(0)
        self._episodes = [
            {
                "obs": rng.normal(size=(6, 3)),
                "action": rng.uniform(-1, 1, (5, 2)),
                "reward": rng.uniform(size=5),
                "camera": np.zeros(5),
            }
            for _ in range(3)
        ]
        return self._save()

    def spoil(self) -> str:
        self._episodes[1]["obs"] = self._episodes[1]["obs"][:3]
        self._save()
        return "it has 3 observations for 5 actions"

    def forget_rewards(self) -> None:
        for episode in self._episodes:
            del episode["reward"]
        self._save()

    def _save(self) -> str:
        for number, episode in enumerate(self._episodes):
            np.savez(f"set/{number}.npz", **episode)
        return "set"


FORMATS = [Newt, Minari, MinariParquet, LeRobot, Robomimic, Plain]


@pytest.fixture(params=FORMATS, ids=[one.name for one in FORMATS])
def given(request, tmp_path: Path, monkeypatch) -> tuple[Format, Callable[[str], int]]:
    """A source of each format, written; and how its command is run into a folder."""
    monkeypatch.chdir(tmp_path)
    form = request.param()
    source, (obs_dim, action_dim) = form.write(), form.widths
    Path("mine").mkdir()
    Path("mine/task.yaml").write_text(
        "{name: own, suite: gymnasium, env_id: Pendulum-v1, embodiment: A body., instructions: [Do it.], "
        f'obs_dim: {obs_dim}, action_dim: {action_dim}, action_repeat: 1, episode_length: 9, score: "return/1000"}}'
    )
    command = ["import", form.form or form.name, source, "--task", "own", "--folder", "mine", *form.options]
    return form, lambda out: main([*command, "--out", out])


def episodes(folder: str) -> list[Episode]:
    return load_demos(folder, "own")


def test_what_was_left_out_is_printed_and_written(given, capsys) -> None:
    form, run = given
    reason = form.spoil()
    assert run("out") == 0
    shown, report = capsys.readouterr().out, json.loads(Path("out/own/import.json").read_text())
    assert (report["found"] - report["kept"], len(report["left_out"])) == (1, 1)
    assert reason in report["left_out"][0]["reason"]
    assert report["ignored"], "something of every source here has no place with us"
    for what in ("left_out", "cut"):
        for one in report[what]:
            assert f"{what.replace('_', ' ')}: episode {one['episode']}: {one['reason']}" in shown
    assert f"not used: {', '.join(report['ignored'])}" in shown
    assert all(f"note: {note}" in shown for note in report["notes"])
    assert f"{report['kept']} of {report['found']} episodes of own, {report['steps']} steps" in shown
    assert sum(len(episode.action) for episode in episodes("out")) == report["steps"]


def test_episodes_without_rewards_are_imported_and_said_to_be(given, capsys) -> None:
    form, run = given
    assert run("with") == 0
    assert "reward unknown" not in capsys.readouterr().out
    form.forget_rewards()
    assert run("without") == 0
    assert "note: reward unknown in all episodes" in capsys.readouterr().out
    for whole, bare in zip(episodes("with"), episodes("without"), strict=True):
        assert np.array_equal(whole.obs, bare.obs)
        assert np.array_equal(whole.action, bare.action)
        assert whole.rewarded
        assert np.isnan([bare.score, bare.episode_return, *bare.reward]).all()


def test_an_import_that_was_killed_in_between_is_made_again(given, monkeypatch) -> None:
    _, run = given

    def kill(path: Path, kept: list[Episode]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.importers.episodes.write_episodes", kill)
        assert run("out") == 130
    assert run("out") == 0
    assert run("other") == 0
    assert Path("out/own/import.json").read_text() == Path("other/own/import.json").read_text()
    assert len(episodes("out")) == len(episodes("other"))


def test_hdf5_that_breaks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    h5py.File(path, "w").close()
    said = r"a\.hdf5 is not readable HDF5, it may be cut short or damaged: bad heap"
    with pytest.raises(ValueError, match=said), open_hdf5(path):
        raise RuntimeError("bad heap")  # as h5py does on some damage
