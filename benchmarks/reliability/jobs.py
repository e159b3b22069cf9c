"""Every stage and command that writes results, on a small project; what each is expected to write.

The project is made once: every job runs there undisturbed, one after the other. A case is a copy of it from which the
job's own results were removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
_HELD_OUT = "mw-drawer-close"
_VARIES = {"seconds", "peak_memory_mb", "commit", "machine", "versions", "memory"}  # from run to run
_TIMES = ("time/", "clock/", "speed/", "memory/")
_NOT_COMPARED = ("tfevents", "report.html")  # hold times
_TASK = """\
name: hang
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pole hangs from a motor.
instructions: [Hang.]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 20
score: clip((return+200)/200,0,1)
"""


class Job(NamedTuple):
    """One command, and what it writes."""

    command: list[str]
    outs: list[str]  # files and folders, in the project


def _stage(name: str, outs: list[str], *arguments: str) -> Job:
    return Job([sys.executable, "-m", f"stages.{name}", *arguments], outs)


def _eft(arguments: str, outs: list[str]) -> Job:
    return Job([sys.executable, "-m", "pipeline.cli", *arguments.split()], outs)


JOBS = {
    "demos": _stage("demos", ["datasets/demos", "datasets/demos.json"]),
    "embed": _stage("embed", ["datasets/task_embeddings"]),
    "pretrain": _stage("pretrain", ["checkpoints/pretrain"]),
    "finetune": _stage("finetune", ["checkpoints/finetune"]),
    "evaluate": _stage("evaluate", ["checkpoints/evaluate"]),
    "adapt": _stage("adapt", [f"checkpoints/adapt/{_HELD_OUT}"], _HELD_OUT),
    "publish": _stage("publish", ["checkpoints/publish"]),
    "report": _stage("report", ["checkpoints/report"]),
    "eft adapt": _eft(
        f"adapt checkpoints/finetune/model --task {_HELD_OUT} --demos datasets/demos --no-video --out adapted",
        ["adapted"],
    ),
    "eft import": _eft("import plain recorded --task hang --out imported", ["imported"]),
    "eft push": _eft("push checkpoints/publish/release --repo me/eft", []),
}


def prepare(work: Path) -> dict[str, float]:
    """Make the project and run every job in it; return the seconds each takes undisturbed."""
    project, timing = work / "project", work / "seconds.json"
    if timing.exists():
        return json.loads(timing.read_text(encoding="utf-8"))
    shutil.rmtree(project, ignore_errors=True)
    (project / "my_tasks").mkdir(parents=True)
    shutil.copy(ROOT / "tests/tiny.yaml", project / "params.yaml")
    (project / "my_tasks/hang.yaml").write_text(_TASK, encoding="utf-8")
    (project / "recorded").mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        obs, action = draw.normal(size=(21, 3)), draw.uniform(-1, 1, (20, 1))
        np.savez(project / f"recorded/{number}.npz", obs=obs, action=action, reward=draw.uniform(size=20))
    seconds = {}
    with hub() as (_, environment):
        for name, job in JOBS.items():
            started = time.monotonic()
            done = run(job, project, environment)
            if done.returncode:
                raise RuntimeError(f"{name} fails even undisturbed:\n{done.stderr[-3000:]}")
            seconds[name] = round(time.monotonic() - started, 2)
            print(f"undisturbed: {name}, {seconds[name]:.1f} s", flush=True)
    timing.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds


def copy_for(job: Job, project: Path, folder: Path) -> None:
    """Copy the project to `folder`, without what the job writes."""
    shutil.copytree(project, folder)
    for out in job.outs:
        path = folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def start(job: Job, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a job as the leader of a process group of its own, which its workers belong to."""
    return subprocess.Popen(
        job.command, cwd=folder, env=dict(environment), start_new_session=True, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(job: Job, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    return subprocess.run(job.command, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False)


def written(job: Job, folder: Path) -> dict[str, str]:
    """Return a hash of every file that a job wrote, without what varies from run to run."""
    files = [path for out in job.outs for path in [folder / out, *(folder / out).rglob("*")] if path.is_file()]
    kept = [path for path in files if not any(word in path.name for word in _NOT_COMPARED)]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(_content(path)).hexdigest() for path in sorted(kept)}


def untouched(job: Job, folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file that the job has no business with."""
    own = [folder / out for out in (*job.outs, ".resume")]
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not any(path == out or out in path.parents for out in own):
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = status.st_size, status.st_mtime_ns
    return found


def left_over(folder: Path) -> list[str]:
    """Return half-written files, which nobody should find."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*.partial"))


@contextlib.contextmanager
def hub() -> Iterator[tuple[Any, dict[str, str]]]:
    """Run a Hub on this machine; yield it and the environment in which commands talk to it."""
    serve: Any = runpy.run_path(str(ROOT / "tests/hub/server.py"))["serve"]
    with serve() as running:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        yield running, os.environ | {
            "HF_ENDPOINT": running.url, "HF_TOKEN": running.token, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_steady(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith(_TIMES)} for row in rows]
        return json.dumps(kept, sort_keys=True).encode()
    return content


def _steady(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _steady(value) for key, value in values.items() if key not in _VARIES}
    return [_steady(value) for value in values] if isinstance(values, list) else values
