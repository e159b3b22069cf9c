"""Saves, scratch folders, metrics and interrupts: nothing lost, nothing damaged is trusted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.train import checkpoint
from pipeline.train.interrupt import Interrupt
from pipeline.train.metrics import MetricsLog
from pipeline.train.scratch import fingerprint, scratch_folder

TENSORS = {"learner": {"weight": torch.arange(6.0)}, "loop": {"generator": torch.Generator().get_state()}}


def test_a_save_comes_back_bit_for_bit(tmp_path):
    checkpoint.save(tmp_path, 10, TENSORS, {"updates_owed": 0.25})
    position, tensors, values = checkpoint.load_latest(tmp_path)
    assert (position, values) == (10, {"updates_owed": 0.25})
    assert torch.equal(tensors["learner"]["weight"], TENSORS["learner"]["weight"])
    assert torch.equal(tensors["loop"]["generator"], TENSORS["loop"]["generator"])


def test_the_last_two_saves_are_kept(tmp_path):
    for position in (10, 20, 30):
        checkpoint.save(tmp_path, position, TENSORS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["save-000000000020", "save-000000000030"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "no state"])
def test_a_damaged_save_is_passed_over(tmp_path, damage, capsys):
    checkpoint.save(tmp_path, 10, TENSORS, {})
    checkpoint.save(tmp_path, 20, TENSORS, {})
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
    assert checkpoint.load_latest(tmp_path)[0] == 10
    assert "damaged" in capsys.readouterr().out


def test_an_unfinished_save_is_not_seen(tmp_path):
    (tmp_path / ".save-000000000010.abc.partial").mkdir()
    assert checkpoint.load_latest(tmp_path) is None


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


def test_a_scratch_folder_is_locked_kept_on_failure_and_removed_on_success(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt), scratch_folder("stage", [], [], 1) as folder:
        (folder / "kept").touch()
        with pytest.raises(ValueError, match="another run"), scratch_folder("stage", [], [], 1):
            pass
        raise KeyboardInterrupt
    with scratch_folder("stage", [], [], 1) as folder:
        assert (folder / "kept").exists()
    assert list(Path(".resume").iterdir()) == []


def test_metrics_after_the_save_are_dropped_on_resume(tmp_path):
    log = MetricsLog(tmp_path / "run")
    for position in (10, 20, 30):
        log.log(position, {"train/loss": position / 10})
    resumed = MetricsLog(tmp_path / "run", position=20)
    resumed.log(30, {"train/loss": 7.0})
    resumed.publish(tmp_path / "out")
    lines = (tmp_path / "out/plots/metrics/train/loss.tsv").read_text().split()
    assert lines == ["step", "loss", "10", "1.0", "20", "2.0", "30", "7.0"]
    with pytest.raises(ValueError, match="diverged"):
        resumed.log(40, {"train/loss": float("nan")})


def test_the_first_interrupt_waits_and_the_second_does_not():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


CHILD = """
import sys, time
from pipeline.train.runtime import run_stage
def main():
    print("ready", flush=True)
    {work}
run_stage(main)
"""


def start(work: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(work=work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_leaves_quietly_when_told(number, code):
    child = start("time.sleep(60)")
    child.stdout.readline()
    child.send_signal(number)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == code
    assert "stopped" in stderr
    assert "Traceback" not in stderr


def test_a_users_error_is_one_line():
    child = start("raise ValueError('say what to do')")
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 2
    assert "say what to do" in stderr
    assert "Traceback" not in stderr


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
