"""Every stage and command that writes results, on a small project; what each is expected to write.

The project is made once: every job runs there undisturbed, one after the other. A case is a copy of it from which the
job's own results were removed. Jobs are forked from a process that has everything imported, so that they are short and
many of them can be disturbed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
_HELD_OUT = "mw-drawer-close"
_VARIES = {"seconds", "peak_memory_mb", "commit", "machine", "versions", "memory"}  # from run to run
_TIMES = ("time/", "clock/", "speed/", "memory/")
_NOT_COMPARED = ("tfevents", "report.html", "curve.svg")  # hold times
_SMALLER = {
    "tasks": {"train": ["mw-drawer-open"], "pairs": []},
    "demos": {"episodes": 1, "workers": 1},
    "pretrain": {"updates": 12, "save_every": 4, "eval_every": 12, "eval_episodes": 1},
    "finetune": {"env_steps": 240, "save_every": 60, "log_every": 60, "eval_every": 240, "eval_episodes": 1},
    "evaluate": {"video_size": 0, "open_loop_steps": []},
    "publish": {"lerobot_video_size": 0},
}
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
    """One command, `python -m <module> <arguments>`, and what it writes."""

    module: str
    arguments: list[str]
    outs: list[str]  # files and folders, in the project
    fresh: bool = False  # started as a new process; else forked from this one, where everything is imported


class Ran(NamedTuple):
    """How a job ended."""

    code: int
    said: str  # on stderr


def _stage(name: str, outs: list[str], *arguments: str) -> Job:
    return Job(f"stages.{name}", list(arguments), outs)


def _eft(arguments: str, outs: list[str], fresh: bool = False) -> Job:
    return Job("pipeline.cli", arguments.split(), outs, fresh)


JOBS = {
    "demos": _stage("demos", ["datasets/demos", "datasets/demos.json"]),
    "embed": _stage("embed", ["datasets/task_embeddings"]),
    "pretrain": _stage("pretrain", ["checkpoints/pretrain"]),
    "finetune": _stage("finetune", ["checkpoints/finetune"]),
    "evaluate": _stage("evaluate", ["checkpoints/evaluate"]),
    "adapt": _stage("adapt", [f"checkpoints/adapt/{_HELD_OUT}"], _HELD_OUT),
    "publish": _stage("publish", [f"checkpoints/publish/{name}" for name in ("release", "demos", "metrics")]),
    "report": _stage("report", ["checkpoints/report"]),
    "eft adapt": _eft(
        f"adapt checkpoints/finetune/model --task {_HELD_OUT} --demos datasets/demos --no-video --out adapted",
        ["adapted"],
    ),
    "eft import": _eft("import plain recorded --task hang --out imported", ["imported"]),
    "eft push": _eft(  # beside the threads of the Hub nothing is forked
        "push checkpoints/publish/release --repo me/eft", ["checkpoints/publish/release.receipt.json"], fresh=True
    ),
}


def prepare(work: Path) -> dict[str, float]:
    """Make the project and run every job in it; return the seconds each takes undisturbed."""
    project, timing = work / "project", work / "seconds.json"
    if timing.exists():
        return json.loads(timing.read_text(encoding="utf-8"))
    shutil.rmtree(project, ignore_errors=True)
    (project / "my_tasks").mkdir(parents=True)
    _write_params(project / "params.yaml")
    (project / "my_tasks/hang.yaml").write_text(_TASK, encoding="utf-8")
    (project / "recorded").mkdir()
    draw = np.random.default_rng(0)
    for number in range(20):
        obs, action = draw.normal(size=(21, 3)), draw.uniform(-1, 1, (20, 1))
        np.savez(project / f"recorded/{number}.npz", obs=obs, action=action, reward=draw.uniform(size=20))
    seconds = {}
    with contextlib.ExitStack() as stack:
        environment = settled()
        for name, job in JOBS.items():
            if job.fresh:
                _, environment = stack.enter_context(hub())
            _import_all()
            started = time.monotonic()
            done = run(job, project, environment)
            if done.code:
                raise RuntimeError(f"{name} fails even undisturbed:\n{done.said[-3000:]}")
            seconds[name] = round(time.monotonic() - started, 2)
            print(f"undisturbed: {name}, {seconds[name]:.1f} s", flush=True)
    timing.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds


def _write_params(path: Path) -> None:
    """Write the parameters of the tests, smaller still: what counts here is how often something is written."""
    yaml = YAML(typ="safe")
    params = yaml.load((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
    for section, values in _SMALLER.items():
        params[section] |= values
    params["adapt"]["pretrain"] |= {"updates": 6, "save_every": 3}
    params["adapt"]["finetune"] |= {"env_steps": 220, "save_every": 50, "eval_every": 200, "eval_episodes": 1}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def copy_for(job: Job, project: Path, folder: Path) -> None:
    """Copy the project to `folder`, without what the job writes."""
    shutil.copytree(project, folder)
    for out in job.outs:
        path = folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def start(job: Job, folder: Path, environment: Mapping[str, str]) -> int:
    """Start a job in `folder` as the leader of a process group of its own, which its workers belong to; return its pid.

    What it says goes to a file elsewhere, since the folder's disk may be full.
    """
    said = _said()
    if job.fresh:
        with said.open("wb") as file:
            command = [sys.executable, "-m", job.module, *job.arguments]
            process = subprocess.Popen(
                command, cwd=folder, env=dict(environment), start_new_session=True, stdout=file, stderr=file
            )
        return process.pid
    _import_all()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.chdir(folder)
            os.environ.update(environment)
            sys.argv = [job.module, *job.arguments]
            runpy.run_module(job.module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # as the interpreter would show it
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


@cache
def _import_all() -> None:
    """Import what jobs import, once."""
    for name in ("demos", "embed", "pretrain", "finetune", "evaluate", "adapt", "publish", "report"):
        importlib.import_module(f"stages.{name}")
    for name in ("cli", "adapt", "importers.plain", "tasks.metaworld", "tasks.any_gymnasium", "systems.build"):
        importlib.import_module(f"pipeline.{name}")


def ended(pid: int) -> bool:
    """Whether a job that was started has ended by itself; it is then waited for."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def run(job: Job, folder: Path, environment: Mapping[str, str]) -> Ran:
    """Run a job to its end."""
    _, status = os.waitpid(start(job, folder, environment), 0)
    said = _said().read_text(encoding="utf-8", errors="replace")
    _said().unlink()
    return Ran(os.waitstatus_to_exitcode(status), said)


def _said() -> Path:
    return Path(tempfile.gettempdir()) / f"eft-job-{os.getpid()}.txt"


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


def settled() -> dict[str, str]:
    """Return the environment in which jobs run."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def hub() -> Iterator[tuple[Any, dict[str, str]]]:
    """Run a Hub on this machine; yield it and the environment in which commands talk to it."""
    serve: Any = runpy.run_path(str(ROOT / "tests/hub/server.py"))["serve"]
    with serve() as running:
        more = {"HF_ENDPOINT": running.url, "HF_TOKEN": running.token, "HF_HUB_DISABLE_XET": "1"}
        yield running, settled() | more


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
