"""A stage that starts itself as several processes: they join, fail and stop as one. Real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.train.runs import environment

pytestmark = pytest.mark.slow

STAGE = """
import os, sys, time
from pathlib import Path
from pipeline import config
from pipeline.train.runtime import run_stage, start

def main():
    rank = os.environ["RANK"]
    match sys.argv[1]:
        case "join":
            ranks = start(config.load(config.Runtime), 1)
            Path(f"met-{rank}").write_text(str(ranks.collect(ranks.rank)))
        case "refuse":
            raise ValueError("lr: expected a number above 0")
        case "die":
            ranks = start(config.load(config.Runtime), 1)
            if ranks.rank:
                os.kill(os.getpid(), 9)
            ranks.wait()
        case "sleep":
            Path(f"pid-{rank}").write_text(str(os.getpid()))
            time.sleep(100)

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


def test_an_error_is_one_line_of_each_and_its_code_is_that_of_the_stage(folder):
    code, stderr = run(folder, "refuse")
    assert code == 2
    assert sorted(stderr.splitlines()) == [f"toy (rank {rank}): lr: expected a number above 0" for rank in (0, 1)]


def test_where_one_is_killed_the_other_says_so(folder):
    code, stderr = run(folder, "die")
    assert code in (3, 128 + signal.SIGKILL), stderr
    assert "another process of this run has ended" in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_it_leaves_nobody_behind(folder, number, code):
    process = start_stage(folder, "sleep")
    files = [folder / f"pid-{rank}" for rank in (0, 1)]
    end = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files):
        assert time.monotonic() < end, process.stderr.read() if process.poll() is not None else "still starting"
        time.sleep(0.05)
    ranks = [psutil.Process(int(file.read_text())) for file in files]
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive, alive
