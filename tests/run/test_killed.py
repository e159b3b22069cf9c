"""Runs that are killed, damaged, stopped and starved: each goes on from its last whole save to the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.results import read_expert_use
from tests.run.runs import GROWING, SCRIPT, Server, curves, environment, kill, positions, result, said

pytestmark = pytest.mark.slow
KILLS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, float, str]:
    """The result of a run that nobody disturbs, the seconds it took, and its curves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert server.run(folder) == [0], said(folder)
    return result(folder), time.monotonic() - started, curves(folder)


@pytest.fixture
def stopped(server: Server, tmp_path: Path) -> Path:
    """A folder in which a run was killed while writing its fourth save, of which there are three files."""
    assert server.run(tmp_path, kill_at_write=11) == [-signal.SIGKILL]
    assert len(positions(tmp_path)) == 2
    return tmp_path


def test_killed_at_random_moments_it_ends_as_if_undisturbed(server, undisturbed, tmp_path):
    expected, seconds, logged = undisturbed
    draw, kills = random.Random(7), 0
    while kills < KILLS:
        if kills % 2:  # in the middle of a save
            server.start(tmp_path, kill_at_write=draw.randrange(1, 7))
        else:
            (pid,) = server.start(tmp_path)
            time.sleep(draw.uniform(0, 0.5 * seconds))
            kill(pid, signal.SIGKILL)
        (code,) = server.wait()
        assert code in (0, -signal.SIGKILL), said(tmp_path)
        kills += code == -signal.SIGKILL
        if code == 0:  # it came to its end before it was killed; the next one begins anew
            assert result(tmp_path) == expected
    assert server.run(tmp_path) == [0], said(tmp_path)
    assert result(tmp_path) == expected
    assert curves(tmp_path) == logged
    assert not list(tmp_path.glob(".resume/*"))


def whole_and_killed(server: Server, folder: Path, **options: bool) -> tuple[Path, Path]:
    """Run twice, once killed in between; check that both end alike, and return their folders."""
    whole, broken = folder / "whole", folder / "broken"
    assert server.run(whole, **options) == [0], said(whole)
    assert server.run(broken, kill_at_write=11, **options) == [-signal.SIGKILL]
    assert server.run(broken, **options) == [0], said(broken)
    assert result(broken) == result(whole)
    return whole, broken


def test_targets_that_are_not_saved_are_the_same_again(server, tmp_path):
    whole, _ = whole_and_killed(server, tmp_path, returns=True)
    assert len(set(result(whole)["value_scale"])) > 1  # one for each task


def test_first_episodes_end_where_they_did(server, undisturbed, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, stagger=True) == [0], said(whole)
    for number in (2, 8):  # in the middle of the first save, with first episodes under way, and of a later one
        assert server.run(broken, stagger=True, kill_at_write=number) == [-signal.SIGKILL]
    assert server.run(broken, stagger=True) == [0], said(broken)
    assert result(broken) == result(whole) != undisturbed[0]


def test_a_past_under_way_is_taken_up_too(server, tmp_path):
    assert server.run(tmp_path / "undisturbed", history=True) == [0], said(tmp_path / "undisturbed")
    for ranks in (1, 2):
        folder = tmp_path / f"on-{ranks}"
        assert server.run(folder, history=True, kill_at_write=11) == [-signal.SIGKILL]
        assert server.run(folder, ranks, history=True) == [0] * ranks, said(folder)
    assert result(tmp_path / "on-1") == result(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", ["flip", "missing", "missing replay part"])
def test_a_damaged_save_is_passed_over(server, undisturbed, stopped, damage):
    first, last = positions(stopped)
    (run_dir,) = stopped.glob(".resume/short-*/")
    match damage:
        case "flip":
            path = run_dir / f"save-{last:012d}/learner.safetensors"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "missing":
            (run_dir / f"save-{last:012d}/rank-0000.safetensors").unlink()
        case "missing replay part":
            (run_dir / f"replay/{last:012d}-0000.safetensors").unlink()
    assert server.run(stopped) == [0], said(stopped)
    assert "is damaged" in said(stopped)
    assert f"save-{first:012d}" in said(stopped)
    assert result(stopped) == undisturbed[0]


def test_no_whole_save_is_not_a_new_beginning(server, stopped):
    for path in stopped.glob(".resume/short-*/replay/*"):
        path.write_bytes(b"")
    assert server.run(stopped) == [2]
    assert "No save is whole" in said(stopped)
    assert "has changed since it was written" in said(stopped)


def test_a_changed_parameter_starts_anew_and_says_what_changed(server, stopped):
    assert server.run(stopped, lr=1e-3, env_steps=60) == [0]
    assert "learning.lr (0.0003 -> 0.001)" in said(stopped)
    assert positions(stopped), "the unfinished run was touched"


def test_a_full_disk_stops_the_run_and_the_last_save_stays(undisturbed, tmp_path):
    """On a file system of 20 MiB, mounted where these processes alone see it, and filled once something is saved."""
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if probe.returncode:
        pytest.skip("no file system of a given size can be mounted here")
    script = (
        f"mount -t tmpfs -o size=20m tmpfs {tmp_path}; cd {tmp_path}\n"
        "(until ls .resume/*/save-* > /dev/null 2>&1; do sleep 0.05; done; cat /dev/zero > fill 2> /dev/null) &\n"
        f"{sys.executable} {SCRIPT} '{{\"slow_save\": 0.5}}'; echo CODE $?; wait; ls -A .resume/*; rm fill\n"
        f"{sys.executable} {SCRIPT} '{{}}'; cat result-0.json"
    )
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], env=environment(), capture_output=True, text=True)
    assert "CODE 2" in done.stdout, done.stderr[-2000:]
    assert "no space left" in done.stderr.lower()
    assert "save-" in done.stdout
    assert ".partial" not in done.stdout
    assert undisturbed[0]["learner"] in done.stdout, done.stderr[-2000:]


def test_a_dead_worker_is_replaced_and_the_run_goes_on(server, tmp_path):
    (pid,) = server.start(tmp_path, env_workers=2, slow_save=0.2)
    while not positions(tmp_path):
        time.sleep(0.05)
    workers = [child for child in psutil.Process(pid).children() if "pipeline.tasks.worker" in child.cmdline()]
    assert len(workers) == 2
    workers[0].kill()
    assert server.wait() == [0]
    assert "a worker ended by signal SIGKILL" in said(tmp_path)
    assert "It is started again" in said(tmp_path)


def test_a_loss_that_is_not_finite_stops_before_the_step(server, tmp_path):
    assert server.run(tmp_path, nan_at=[0, 6]) == [2]
    assert "update 6 is not finite" in said(tmp_path)
    assert "reward values that are not finite, of pendulum-" in said(tmp_path)
    assert positions(tmp_path)


def test_sigterm_saves_and_leaves(server, undisturbed, tmp_path):
    (pid,) = server.start(tmp_path, slow_save=0.2)
    while not positions(tmp_path):
        time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    assert server.wait() == [143]
    assert "stopped. What was saved is kept" in said(tmp_path)
    assert server.run(tmp_path) == [0]
    assert result(tmp_path) == undisturbed[0]


def test_sigterm_during_the_last_save_is_not_forgotten(server, undisturbed, tmp_path):
    assert server.run(tmp_path, signal_at=240, slow_save=0.2) == [143]
    assert positions(tmp_path)[-1] == 240
    assert server.run(tmp_path) == [0]
    assert result(tmp_path) == undisturbed[0]


def test_sigterm_while_a_save_is_written_waits_for_it(server, undisturbed, tmp_path):
    assert server.run(tmp_path, signal_at=60, slow_save=0.5) == [143]
    assert positions(tmp_path)[-1] == 60
    assert server.run(tmp_path) == [0]
    assert result(tmp_path) == undisturbed[0]


def test_sigterm_has_a_deadline(server, undisturbed, tmp_path):
    (pid,) = server.start(tmp_path, slow_save=30, stop_seconds=1)
    while not any(path.stat().st_size for path in tmp_path.glob(".resume/short-*/metrics/metrics.jsonl")):
        time.sleep(0.05)
    started = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    assert server.wait() == [143]
    assert time.monotonic() - started < 10
    assert "no save was possible within 1 s" in said(tmp_path)


def test_a_run_that_stops_early_does_so_again_where_it_was_killed(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    stopping = {"eval_every": 30, "patience": 2, "env_steps": 600}
    assert server.run(whole, **stopping) == [0], said(whole)
    assert 60 <= result(whole)["stopped_at"] < 600
    for number in (2, 5):  # in the middle of the first save, and of a later one
        assert server.run(broken, kill_at_write=number, **stopping) == [-signal.SIGKILL]
    assert server.run(broken, **stopping) == [0], said(broken)
    assert result(broken) == result(whole)


def test_the_published_schedule_is_resumed_alike(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, constraint="schedule") == [0], said(whole)
    assert server.run(broken, constraint="schedule", kill_at_write=11) == [-signal.SIGKILL]
    assert server.run(broken, constraint="schedule") == [0], said(broken)
    assert result(broken) == result(whole)


def test_stages_and_resting_tasks_are_resumed_alike(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, **GROWING) == [0], said(whole)
    for line in (
        "pendulum-1 is solved (0.45, target 0.45) and no longer played; 0 env_steps",
        "stage 1 of 2 begins: 1 of 2 tasks newly solved; 7,869 parameters train; 60 env_steps",
        "pendulum-2 comes back (0.39, target 0.41); 90 env_steps",
    ):
        assert line in said(whole)
    assert result(whole)["tasks"] == [0, 2]  # solved before it was played, the other one collected nothing
    for number in (5, 5, 5):  # in the middle of a save; goes on from stages 0, 1 and 2
        assert server.run(broken, kill_at_write=number, **GROWING) == [-signal.SIGKILL]
    assert server.run(broken, **GROWING) == [0], said(broken)
    assert result(broken) == result(whole)


def test_dynamics_with_history_grow_and_are_resumed_alike_while_a_task_rests(server, tmp_path):
    whole, broken, options = tmp_path / "whole", tmp_path / "broken", GROWING | {"history": True}
    assert server.run(whole, **options) == [0], said(whole)
    assert "pendulum-1 is solved" in said(whole)
    assert result(whole)["curriculum"]["stage"] == 1
    for _ in range(2):
        assert server.run(broken, kill_at_write=5, **options) == [-signal.SIGKILL]
    assert server.run(broken, **options) == [0], said(broken)
    assert result(broken) == result(whole)


@pytest.mark.parametrize("kept", [{"replay": "memory", "env_workers": 2}, {"replay": "disk"}])
def test_labels_are_resumed_alike(server, undisturbed, tmp_path, kept):
    whole, broken, options = tmp_path / "whole", tmp_path / "broken", {"labels": True, **kept}
    assert server.run(whole, **options) == [0], said(whole)
    assert result(whole)["imitation"] == {"0": 1.0, "1": 0.0, "2": 1.0}  # whose own episodes count for nothing
    assert result(whole)["learner"] != undisturbed[0]["learner"]
    assert '"replay/labelled_share": 0.' in curves(whole)
    assert "labelled" not in undisturbed[2]
    for number in (11, 5):  # in the middle of a save, with episodes under way
        assert server.run(broken, kill_at_write=number, **options) == [-signal.SIGKILL]
    assert server.run(broken, **options) == [0], said(broken)
    assert result(broken) == result(whole)
    assert curves(broken) == curves(whole)


def test_a_run_ends_where_every_task_is_solved(server, tmp_path):
    solved = {"pendulum-0": 0.65, "pendulum-1": 0.3, "pendulum-2": 0.3}
    assert server.run(tmp_path, **(GROWING | {"scaling": solved})) == [0], said(tmp_path)
    assert 30 < result(tmp_path)["stopped_at"] < 120
    assert result(tmp_path)["tasks"] == [0]
    assert result(tmp_path)["curriculum"]["solved"] == sorted(solved)


def test_a_model_with_experts_is_resumed_alike_and_so_is_the_table_of_their_use(server, tmp_path):
    whole, broken = whole_and_killed(server, tmp_path, experts=True)
    assert curves(broken) == curves(whole)
    layers = {"dynamics", "reward", "policy", "q.0", "q.1", "q.2"}
    assert read_expert_use(whole / "metrics").keys() == layers


def test_several_processes_write_one_table_of_the_use_of_experts(server, tmp_path):
    assert server.run(tmp_path, ranks=3, experts=True) == [0, 0, 0], said(tmp_path)
    for use in read_expert_use(tmp_path / "metrics").values():
        assert len(use.steps) > 2
        assert use.rows.sum(1) == pytest.approx(np.ones(len(use.steps)), abs=1e-3)  # written with 4 digits


def test_the_clipped_policy_step_is_resumed_alike_while_plans_collect(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, clipped=True) == [0], said(whole)
    for number in (8, 7):  # in the middle of a save, each time with episodes under way and some not learned from
        assert server.run(broken, clipped=True, kill_at_write=number) == [-signal.SIGKILL]
    assert server.run(broken, clipped=True) == [0], said(broken)
    assert result(broken) == result(whole)
    assert curves(broken) == curves(whole)
    assert "train/ratio" in curves(whole)
