"""Collection: the same demonstrations whoever plays them, stopped and resumed, and clear about what went wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline import config
from pipeline.data.demos import FILE, load_demos, write_episodes
from pipeline.data.episode import Episode
from pipeline.demonstrate.collect import TaskState, collect, play_attempt
from pipeline.demonstrate.play import play
from pipeline.run.workers import Workers
from pipeline.tasks.registry import get

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

ROOT = Path(__file__).parents[2]


def settings(**changes) -> config.Demos:
    values = {"episodes": 3, "held_out_episodes": 1, "max_attempts": 5, "action_noise": 0.5}
    values |= {"missing": "stop", "workers": 1}
    return config.Demos(**values | changes)


def gather(folder: Path, names=("mw-drawer-open", "mw-faucet-open"), count=3, seed=1, **changes):
    wanted = [(spec, count) for spec in get(names)]
    return collect(wanted, settings(**changes), seed, folder / "demos", folder / "run", folder / "own")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path):
    reports = [gather(tmp_path / str(workers), workers=workers) for workers in (1, 2)]
    assert contents(tmp_path / "1/demos") == contents(tmp_path / "2/demos")
    for report in reports:
        for task in report["tasks"].values():
            task.pop("seconds")
    assert reports[0] == reports[1]
    assert reports[0]["tasks"]["mw-drawer-open"]["kept"] == 3
    assert [one.task for one in load_demos(tmp_path / "1/demos", "mw-faucet-open")] == ["mw-faucet-open"] * 3


@pytest.mark.slow
def test_what_is_finished_is_not_played_again_and_what_is_half_written_is(tmp_path):
    gather(tmp_path)
    whole = contents(tmp_path / "demos")
    notes = sorted((tmp_path / "run/mw-drawer-open").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in notes}
    notes[1].unlink()  # as if killed before the note
    notes[2].with_suffix(".parquet").unlink()  # as if the file was lost
    (notes[0].parent / ".000001.json.abc.partial").write_text("{")
    gather(tmp_path)
    assert contents(tmp_path / "demos") == whole
    assert [path.stat().st_mtime_ns == before[path] for path in notes] == [True, False, False]
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.slow
def test_more_demonstrations_go_on_from_fewer(tmp_path):
    gather(tmp_path, count=1)
    kept = load_demos(tmp_path / "demos", "mw-drawer-open")
    gather(tmp_path, count=2)
    more = load_demos(tmp_path / "demos", "mw-drawer-open")
    assert more[0].seed == kept[0].seed
    assert np.array_equal(more[0].obs, kept[0].obs)


def test_only_as_many_attempts_start_as_may_be_needed():
    (spec,) = get(["mw-reach"])
    state = TaskState(spec, wanted=2, most_attempts=4, folder=Path())
    state.in_flight = {0, 1}
    assert state.next_attempt() is None
    state.in_flight, state.notes = {1}, {0: {"kept": False, "score": 0.0}}
    assert state.next_attempt() == 2
    state.in_flight, state.notes = {3}, {k: {"kept": k == 1, "score": 0.25 * k} for k in range(3)}
    assert state.next_attempt() is None
    state.in_flight, state.notes[3] = set(), {"kept": False, "score": 0.0}
    assert state.next_attempt() is None
    assert state.shortfall is not None
    assert state.shortfall.startswith("1 of 2 demonstrations after 4 attempts; the best scored 0.500")
    state.in_flight = {3}
    assert state.shortfall is None, "it may still be lucky"


def fail(folder: Path, task: str, kept: int, attempts: int) -> None:
    """Leave attempts as an earlier run does, of which the first few are good."""
    (spec,) = get([task])
    (folder / "run" / task).mkdir(parents=True)
    for attempt in range(attempts):
        path = folder / "run" / task / f"{attempt:06d}"
        note = {"task": task, "attempt": attempt, "seed": 1, "score": 0.2, "kept": attempt < kept, "seconds": 1.0}
        path.with_suffix(".json").write_text(json.dumps(note))
        if attempt < kept:
            zeros = np.zeros((3, spec.action_dim), np.float32)
            obs, reward = np.zeros((4, spec.obs_dim), np.float32), np.zeros(3, np.float32)
            episode = Episode(task, obs, zeros, zeros, reward, False, True, 1.0, 0.0, attempt, "scripted")
            write_episodes(path.with_suffix(".parquet"), [episode])


def test_tasks_without_an_expert_stop_the_collection_and_all_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^rd-open-drawer, hopper-hop have no expert.*demos\.missing: go_on") as error:
        gather(tmp_path, names=["mw-reach", "rd-open-drawer", "hopper-hop"])
    assert "held_out_episodes: 0" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_expert_that_fails_too_often_stops_the_collection(tmp_path):
    fail(tmp_path, "mw-reach", kept=1, attempts=4)
    with pytest.raises(
        RuntimeError, match=r"mw-reach: 1 of 2 demonstrations after 4 attempts.*demos\.missing to go_on"
    ):
        gather(tmp_path, names=["mw-reach"], count=2, max_attempts=2)


def test_it_goes_on_without_what_nobody_demonstrates_well_enough(tmp_path, capsys):
    fail(tmp_path, "mw-reach", kept=1, attempts=4)
    fail(tmp_path, "mw-push", kept=0, attempts=4)
    report = gather(tmp_path, ["mw-reach", "mw-push", "rd-open-drawer"], 2, max_attempts=2, missing="go_on")
    assert list(report["tasks"]) == ["mw-reach"]
    assert report["tasks"]["mw-reach"]["kept"] == 1
    assert list(report["missing"]) == ["rd-open-drawer", "mw-reach", "mw-push"]
    assert report["missing"]["mw-push"].startswith("0 of 2 demonstrations after 4 attempts")
    assert report["missing"]["rd-open-drawer"].startswith("no expert: ")
    assert len(capsys.readouterr().err.splitlines()) == 3
    demos = tmp_path / "demos"
    assert len(load_demos(demos, "mw-reach")) == 1
    assert load_demos(demos, "rd-open-drawer") == load_demos(demos, "mw-push") == []
    with pytest.raises(FileNotFoundError, match="mw-pick-place"):
        load_demos(demos, "mw-pick-place")
    (demos / "missing.json").write_text("[]")
    with pytest.raises(ValueError, match=r"missing\.json should name tasks"):
        load_demos(demos, "rd-open-drawer")


def test_no_demonstration_at_all_is_a_folder_that_says_so(tmp_path):
    report = gather(tmp_path, names=["rd-open-drawer"], missing="go_on")
    assert report["tasks"] == {}
    assert load_demos(tmp_path / "demos", "rd-open-drawer") == []
    assert "configs:" not in (tmp_path / "demos/README.md").read_text()


def test_a_dead_worker_is_an_error_that_names_what_was_played(tmp_path):
    (spec,) = get(["pendulum-swingup"])
    with Workers(1, "do less.") as workers:
        workers.start("pendulum-swingup, attempt 7", play_attempt, spec, 7, 1, 0.0, tmp_path, None)
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(RuntimeError, match=r"died \(exit code -9\).*: pendulum-swingup, attempt 7\..*do less"):
            workers.wait()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_brings_nothing_of_the_module_that_was_run(tmp_path):
    (tmp_path / "heavy.py").write_text(
        "import multiprocessing, sys, time\n"
        "from pathlib import Path\n"
        "Path(sys.argv[1], __name__).touch()\n"
        "from pipeline.demonstrate.collect import play_attempt\n"
        "from pipeline.run.workers import Workers\n"
        "from pipeline.tasks.registry import get\n"
        "if __name__ == '__main__':\n"
        "    with Workers(1, '') as workers:\n"
        "        workers.start('it', play_attempt, get(['mw-reach'])[0], 0, 1, 0.0, Path(sys.argv[1]), None)\n"
        "        print(workers.wait()[0]['attempt'])\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "heavy", str(tmp_path)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "0\n"
    assert (tmp_path / "__main__").exists()
    assert not (tmp_path / "__mp_main__").exists()


@pytest.mark.slow
def test_an_error_in_a_worker_arrives(tmp_path):
    file = tmp_path / "run"
    file.write_text("not a folder")
    (spec,) = get(["mw-drawer-open"])
    with Workers(1, "") as workers:
        workers.start("mw-drawer-open, attempt 0", play_attempt, spec, 0, 1, 0.0, file, None)
        with pytest.raises(RuntimeError, match="mw-drawer-open, attempt 0: (NotADirectory|FileExists)Error"):
            workers.wait()


def test_own_demonstrations_are_taken_instead_of_an_expert(tmp_path):
    (spec,) = get(["mw-drawer-open"])
    own = [play(spec, seed=9, attempt=0, action_noise=0.0)]
    write_episodes(tmp_path / "own/mw-drawer-open" / FILE, own)
    report = gather(tmp_path, names=["mw-drawer-open"])
    assert report["tasks"]["mw-drawer-open"]["kept"] == 1
    assert load_demos(tmp_path / "demos", "mw-drawer-open")[0].seed == own[0].seed
    assert not (tmp_path / "run").exists()


def test_own_demonstrations_of_another_task_are_refused(tmp_path):
    (spec,) = get(["mw-drawer-open"])
    write_episodes(tmp_path / "own/mw-reach" / FILE, [play(spec, seed=9, attempt=0, action_noise=0.0)])
    with pytest.raises(ValueError, match=r"episode 0 has task.*mw-drawer-open.*expected.*mw-reach"):
        gather(tmp_path, names=["mw-reach"])


@pytest.fixture
def project(tmp_path) -> Path:
    shutil.copy(ROOT / "tests/tiny.yaml", tmp_path / "params.yaml")
    (tmp_path / "my_tasks").mkdir()
    return tmp_path


def stage(folder: Path, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.demos"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_stage_leaves_nobody_behind_and_goes_on(project, number):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("episodes: 2", "episodes: 30", 1))
    process = stage(project)
    deadline = time.monotonic() + 60
    while len(list(project.glob(".resume/demos-*/*/*.json"))) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not (project / "datasets/demos").exists()
    finished = {path: path.stat().st_mtime_ns for path in project.glob(".resume/demos-*/mw-reach/*.json")}
    params.write_text(params.read_text().replace("episodes: 30", "episodes: 4", 1))
    again = stage(project)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert finished
    assert len(load_demos(project / "datasets/demos", "mw-reach")) == 4
    report = json.loads((project / "datasets/demos.json").read_text())
    assert report["seconds"] > 0
    assert report["tasks"]["mw-reach"] | {"seconds": 0, "attempts": 0} == {
        "kept": 4, "attempts": 0, "score": 1.0, "seconds": 0, "method": "scripted", "steps": 400,
    }  # fmt: skip
    assert not list(project.glob(".resume/demos-*"))
