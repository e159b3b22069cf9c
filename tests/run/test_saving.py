"""Saves, run folders and interrupts: nothing lost, nothing damaged is trusted."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.run import saves
from pipeline.run.interrupt import Interrupt
from pipeline.run.run_dir import fingerprint, open_run_dir
from pipeline.run.saves import Saves, _Memory

TINY = Path(__file__).parents[1] / "tiny.yaml"
LEARNER = {"weight": torch.arange(6.0)}
OF_RANK = {"generator": torch.Generator().get_state()}, {"num_summed": 3}


def save(folder: Path, position: int, replay: ReplayBuffer | None = None, keep: int = 2) -> None:
    saves = Saves(folder, keep)
    saves.save(position, LEARNER, OF_RANK, {"updates_owed": 0.25}, replay)
    saves.finish()


def test_a_save_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 10)
    saved = Saves(tmp_path).load()
    assert saved is not None
    assert (saved.position, saved.values, saved.num_ranks) == (10, {"updates_owed": 0.25}, 1)
    assert torch.equal(saved.learner()["weight"], LEARNER["weight"])
    tensors, values = saved.of_rank(0)
    assert torch.equal(tensors["generator"], OF_RANK[0]["generator"])
    assert values == OF_RANK[1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_saves_are_kept(tmp_path, keep):
    for position in (10, 20, 30, 40):
        save(tmp_path, position, keep=keep)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [10, 20, 30, 40][-keep:]


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "remove", "no state", "another state", "another number", "a state without end"]
)
def test_a_damaged_save_is_passed_over(tmp_path, damage, capsys):
    save(tmp_path, 10)
    save(tmp_path, 20)
    target = tmp_path / "save-000000000020" / "learner.safetensors"
    content = target.read_bytes()
    match damage:
        case "flip":
            target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            target.write_bytes(content[:-8])
        case "remove":
            target.unlink()
        case "no state":
            (target.parent / "state.json").unlink()
        case "another state":
            (target.parent / "state.json").write_text('["sha256"]')
        case "another number":
            state = target.parent / "state.json"
            written = state.read_text()
            state.write_text(written.replace('"updates_owed": 0.25', '"updates_owed": 0.75'))
            assert state.read_text() != written
        case "a state without end":
            (target.parent / "state.json").write_text("[" * 100_000)
    saves = Saves(tmp_path, keep=1)
    saved = saves.load()
    assert saved is not None
    assert saved.position == 10
    assert "is damaged" in capsys.readouterr().err
    # It no longer counts as the newest, or a save between the two would be thrown away for it.
    saves.save(15, LEARNER, OF_RANK, {})
    saves.finish()
    newest = Saves(tmp_path).load()
    assert newest is not None
    assert newest.position == 15


def test_a_save_of_an_older_version_has_no_seal_and_comes_back(tmp_path):
    save(tmp_path, 10)
    path = tmp_path / "save-000000000010" / "state.json"
    state = json.loads(path.read_text())
    del state["seal"]
    path.write_text(json.dumps(state))
    saved = Saves(tmp_path).load()
    assert saved is not None
    assert saved.values == {"updates_owed": 0.25}


def test_saves_that_are_all_damaged_are_no_new_beginning(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "save-000000000010" / "learner.safetensors").unlink()
    with pytest.raises(ValueError, match=r"learner.safetensors is missing. No save is whole"):
        Saves(tmp_path).load()


def test_an_unfinished_save_is_not_seen(tmp_path):
    (tmp_path / ".save-000000000010.abc.partial").mkdir()
    assert Saves(tmp_path).load() is None
    assert list(tmp_path.iterdir()) == []


def test_only_new_episodes_are_written_and_the_replay_comes_back_as_it_was(tmp_path):
    replay, saves = ReplayBuffer(60, 3, 2, horizon=3), Saves(tmp_path, keep=2)
    draw = torch.Generator().manual_seed(0)
    for position in range(1, 9):  # the ring is full after five, and goes round
        for _ in range(2):
            replay.add(torch.randn(6, 3, generator=draw), torch.rand(5, 2), torch.randn(5), position % 2 == 0, position)
        saves.save(position, LEARNER, OF_RANK, {}, replay)
    saves.finish()
    sizes = [path.stat().st_size for path in sorted((tmp_path / "replay").iterdir())]
    assert max(sizes) < 2 * 6 * 4 * (3 + 2 + 1) + 1000
    assert len(sizes) <= 6, "parts that no save needs stay"
    again = Saves(tmp_path)
    saved = again.load()
    assert saved is not None
    other = ReplayBuffer(60, 3, 2, horizon=3)
    again.load_replay(saved, other)
    expected, found = replay.state_tensors(), other.state_tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for buffer in (replay, other):
        buffer.add(torch.ones(6, 3), torch.ones(5, 2), torch.ones(5), False, 1)
    first, second = (buffer.sample(20, torch.Generator().manual_seed(1)) for buffer in (replay, other))
    assert all(torch.equal(one, two) for one, two in zip(first[:-2], second[:-2], strict=True))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No tensor is written until this is set."""
    event, write = threading.Event(), saves._write

    def write_later(tensors: dict, path: Path) -> None:
        assert event.wait(60)
        write(tensors, path)

    monkeypatch.setattr(saves, "_write", write_later)
    return event


def test_what_changes_while_a_save_is_written_is_not_in_it(tmp_path, held):
    replay, target = ReplayBuffer(40, 3, 2, horizon=3), Saves(tmp_path)
    draw = torch.Generator().manual_seed(0)

    def play(episodes: int) -> None:
        for _ in range(episodes):
            reward = torch.randn(5, generator=draw)
            replay.add(torch.randn(6, 3, generator=draw), torch.rand(5, 2, generator=draw), reward, False, 1)

    weight, length, counts = torch.zeros(4), np.zeros(2, dtype=np.int64), {"recent": {"reach": [[0.5, 1.0]]}}
    play(5)
    expected = {name: tensor.clone() for name, tensor in replay.state_tensors().items()}
    target.save(10, {"weight": weight}, ({"length": torch.from_numpy(length)}, counts), {}, replay)
    weight += 1
    length += 1
    counts["recent"]["reach"].append([0.0, 0.0])
    play(9)  # round the ring: no row is what it was
    held.set()
    target.finish()
    again = Saves(tmp_path)
    saved = again.load()
    assert saved is not None
    other = ReplayBuffer(40, 3, 2, horizon=3)
    again.load_replay(saved, other)
    found = other.state_tensors()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    tensors, values = saved.of_rank(0)
    assert not saved.learner()["weight"].any()
    assert not tensors["length"].any()
    assert values == {"recent": {"reach": [[0.5, 1.0]]}}


def test_memory_of_copies_is_used_again_until_it_is_far_too_large():
    memory = _Memory()
    first = memory.empty("rows", (8, 3))
    assert memory.empty("rows", (10, 3)).data_ptr() == first.data_ptr()  # as new as it gets: a quarter more is kept
    assert memory.empty("rows", (8, 1)).data_ptr() == first.data_ptr()
    assert memory.empty("others", (2, 3)).data_ptr() != first.data_ptr()
    assert memory.empty("rows", (2, 3), torch.int64).dtype == torch.int64
    assert len(memory._held["rows"]) < 24
    weights = torch.rand(3, 2).t()
    copied = memory.copies("learner", {"w": weights})["w"]
    torch.testing.assert_close(copied, weights)
    assert copied.is_contiguous()
    weights.zero_()
    assert copied.all()


def test_the_loop_goes_on_while_a_save_is_written_and_the_next_one_waits_for_it(tmp_path, held):
    target = Saves(tmp_path)
    target.save(10, LEARNER, OF_RANK, {})
    assert not list(tmp_path.glob("save-*")), "it is not held"
    release = threading.Timer(0.3, held.set)
    release.start()
    target.save(20, LEARNER, OF_RANK, {})
    assert (tmp_path / "save-000000000010").exists()
    target.finish()
    assert (tmp_path / "save-000000000020").exists()


@pytest.mark.parametrize("asked", ["check", "save", "finish"])
def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch, asked):
    def full(tensors: dict, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    save(tmp_path, 10)
    monkeypatch.setattr(saves, "save_file", full)
    target = Saves(tmp_path)
    target.save(20, LEARNER, OF_RANK, {})
    target.join()
    with pytest.raises(OSError, match="no space left while writing"):
        target.save(30, LEARNER, OF_RANK, {}) if asked == "save" else getattr(target, asked)()
    assert [path.name for path in tmp_path.iterdir()] == ["save-000000000010"]
    saved = Saves(tmp_path).load()
    assert saved is not None
    assert saved.position == 10


def test_the_fingerprint_leaves_out_how_long_to_train(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_text("1")
    pretrain = config.load(config.Pretrain)
    longer = config.parse(config.Pretrain, {**pretrain.__dict__, "updates": pretrain.updates + 1}, "test")
    wider = config.parse(config.Pretrain, {**pretrain.__dict__, "batch_size": pretrain.batch_size + 1}, "test")
    before = fingerprint([pretrain], [data], 1)
    assert fingerprint([longer], [data], 1) == before
    assert fingerprint([wider], [data], 1) != before
    assert fingerprint([pretrain], [data], 2) != before
    (data / "a").write_text("2")
    assert fingerprint([pretrain], [data], 1) != before


def test_a_run_folder_is_locked_kept_on_failure_and_removed_on_success(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_run_dir("stage", [], [], 1) as folder:
        (folder / "kept").touch()
        with pytest.raises(ValueError, match="another run"), open_run_dir("stage", [], [], 1):
            pass
        raise KeyboardInterrupt
    with open_run_dir("stage", [], [], 1) as folder:
        assert (folder / "kept").exists()
    assert list(Path(".resume").iterdir()) == []


def test_a_changed_parameter_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pretrain = config.load(config.Pretrain, TINY)
    other = dataclasses.replace(pretrain, batch_size=99)
    with pytest.raises(KeyboardInterrupt), open_run_dir("stage", [pretrain], [], 1) as folder:
        save(folder, 10)
        raise KeyboardInterrupt
    with open_run_dir("stage", [other], [], 1):
        pass
    assert "pretrain.batch_size (16 -> 99)" in capsys.readouterr().err


def test_the_first_interrupt_waits_and_the_second_does_not():
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_an_interrupt_that_nobody_asked_for_any_more_is_obeyed_in_the_end():
    ended = False
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), Interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        ended = True
    assert ended
    with pytest.raises(OSError, match="the disk"), Interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError("the disk")


CHILD = """
import sys, time
from pipeline.run.launch import run_stage
def main():
    print("ready", flush=True)
    {work}
run_stage(main)
"""


def start(work: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(work=work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_leaves_quietly_when_told(number, code):
    child = start("time.sleep(60)")
    child.stdout.readline()
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == code
    assert "stopped" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_users_error_is_one_line():
    child = start("raise ValueError('say what to do')")
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 2
    assert "say what to do" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_stage_ends_with_its_parent():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {CHILD.format(work='time.sleep(60)')!r}], "
            "stdout=subprocess.PIPE)\n"
            "child.stdout.readline()\nprint(child.pid, flush=True)\ntime.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the stage outlived its parent")
