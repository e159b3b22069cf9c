"""A stage that starts itself as several processes: they join, fail and stop as one. Real processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.run.runs import environment

pytestmark = pytest.mark.slow

STAGE = """
import os, sys, time
from pathlib import Path
from pipeline import config
from pipeline.run.interrupt import Interrupt
from pipeline.run.launch import run_stage, start

def main():
    rank = os.environ["RANK"]
    match sys.argv[1]:
        case "join":
            ranks = start(config.load(config.Runtime), 1)
            Path(f"met-{rank}").write_text(str(ranks.collect(ranks.rank)))
        case "refuse":
            raise ValueError("lr: expected a number above 0")
        case "fail":
            ranks = start(config.load(config.Runtime), 1)
            if ranks.rank:
                raise OSError("the disk is gone")
            ranks.wait()
        case "crash":
            raise KeyError("lr")
        case "die":
            ranks = start(config.load(config.Runtime), 1)
            if ranks.rank:
                os.kill(os.getpid(), 9)
            ranks.wait()
        case "sleep":
            Path(f"pid-{rank}").write_text(str(os.getpid()))
            time.sleep(100)
        case "save":
            with Interrupt() as interrupt:
                Path(f"pid-{rank}").write_text(str(os.getpid()))
                while not interrupt.requested:
                    time.sleep(0.05)
                time.sleep(1)
                Path(f"saved-{rank}").touch()
                interrupt.leave()

if __name__ == "__main__":
    run_stage(main, several=True, processes=lambda: 2)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "stages" / "toy.py").write_text(STAGE)
    (tmp_path / "params.yaml").write_bytes((Path(__file__).parents[1] / "tiny.yaml").read_bytes())
    return tmp_path


def start_stage(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.toy", what], cwd=folder, env=environment(), text=True, stderr=subprocess.PIPE
    )


def run(folder: Path, what: str) -> tuple[int, str]:
    process = start_stage(folder, what)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def test_they_meet(folder):
    code, stderr = run(folder, "join")
    assert code == 0, stderr
    assert [(folder / f"met-{rank}").read_text() for rank in (0, 1)] == ["[0, 1]", "[0, 1]"]


def test_an_error_of_all_is_one_line_and_its_code_is_that_of_the_stage(folder):
    code, stderr = run(folder, "refuse")
    assert code == 2
    assert re.fullmatch(r"toy \(rank [01]\): lr: expected a number above 0\n", stderr), stderr


def test_an_error_of_one_is_shown_and_not_that_the_others_lost_it(folder):
    code, stderr = run(folder, "fail")
    assert code == 2
    assert stderr == "toy (rank 1): the disk is gone\n"


def test_an_error_of_ours_shows_its_traceback_once(folder):
    code, stderr = run(folder, "crash")
    assert code == 1
    assert stderr.count("Traceback") == 1
    assert stderr.endswith("KeyError: 'lr'\n")


def test_where_one_is_killed_the_run_says_so(folder):
    code, stderr = run(folder, "die")
    assert code == 128 + signal.SIGKILL, stderr
    assert re.fullmatch(r"toy \(rank 1\): Signal 9 \(SIGKILL\) received by PID \d+\n", stderr), stderr


def await_ranks(folder: Path, process: subprocess.Popen[str]) -> list[psutil.Process]:
    files = [folder / f"pid-{rank}" for rank in (0, 1)]
    end = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < end, process.stderr.read() if process.poll() is not None else "still starting"
        time.sleep(0.05)
    return [psutil.Process(int(file.read_text())) for file in files]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_all_save_and_leave(folder, number, code):
    process = start_stage(folder, "save")
    await_ranks(folder, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert [(folder / f"saved-{rank}").is_file() for rank in (0, 1)] == [True, True]
    assert stderr.count("stopped. What was saved is kept") == 1, stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_it_leaves_nobody_behind(folder, number, code):
    process = start_stage(folder, "sleep")
    ranks = await_ranks(folder, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive, alive
