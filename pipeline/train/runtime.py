"""The process a stage runs in: device, threads, seeds, its end with its parent, and what it reports of itself."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import random
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator

from pipeline import config
from pipeline.demonstrate.workers import available_cores
from pipeline.files import write_json
from pipeline.model.compute import Compute, choose
from pipeline.train.ranks import PeerLost, Ranks, launched_processes

_PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "gymnasium",
    "dm-control",
    "mujoco",
    "metaworld",
    "huggingface-hub",
    "peft",
    "dvc",
    "numpy",
)
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_FOLLOW = 10.0  # after the first process of a run has failed, the others notice it by themselves


def start(runtime: config.Runtime, seed: int) -> Ranks:
    """Set threads and seeds and return the processes of the run, of which this is one.

    Raises:
        ValueError: CUDA is asked for and absent, or a launcher was asked for several processes and started one.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is `cuda`, but torch sees no CUDA device. Set it to `auto` or `cpu`.")
    on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(runtime.threads or max(1, available_cores() // on_machine))
    seed_everything(seed)
    precision = "bf16" if runtime.precision == "bf16" else "no"
    # Unless it is told that there are CPUs alone, Accelerate leaves the processes of torchrun by themselves.
    on_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
    if accelerator.num_processes != launched_processes():
        raise ValueError(
            f"{launched_processes()} processes were launched, and Accelerate joined {accelerator.num_processes} of "
            "them: each would do the whole work alone. Start them by `torchrun` or `accelerate launch`."
        )
    asked = _asked_of_accelerate() if accelerator.num_processes == 1 else 1
    if asked > 1:
        raise ValueError(
            f"`accelerate launch` was asked for {asked} processes and has started one: it does so where it sees no "
            f"second GPU. For processes on CPUs use `torchrun --nproc-per-node {asked} -m stages.<name>`."
        )
    return Ranks(accelerator)


def _asked_of_accelerate() -> int:
    """Return how many processes `accelerate launch`, if that started this one, was asked for."""
    words = psutil.Process(os.getppid()).cmdline()
    names = [Path(word).name for word in words]
    if "accelerate" in names and "launch" in words:
        rest = words[words.index("launch") + 1 :]
    elif "accelerate-launch" in names:
        rest = words[names.index("accelerate-launch") + 1 :]
    else:
        return 1
    # Only here, because it takes a second to import.
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    given, _ = launch_command_parser().parse_known_args(rest)
    if given.num_processes is None and (given.config_file or Path(default_config_file).is_file()):
        return getattr(load_config_from_file(given.config_file), "num_processes", None) or 1
    return given.num_processes or 1


def compute(runtime: config.Runtime, device: torch.device) -> tuple[Compute, Compute]:
    """Return how learning and how acting are computed.

    Raises:
        ValueError: this machine lacks what `runtime` asks for.
    """
    learning = choose(runtime.matmul, runtime.compile, device)
    return learning, learning._replace(bfloat16=runtime.plan_products == "bfloat16")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. What is sampled in training draws from generators of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def run_stage(main: Callable[[], None], several: bool = False, processes: Callable[[], int] = lambda: 1) -> None:
    """Run a stage's `main` as a process: errors in one line, Ctrl-C and SIGTERM leave quietly, no orphan.

    Exit codes: 2 for an error the user can act on, 3 where another process of the run failed, 130 for Ctrl-C, 143 for
    SIGTERM. EFT_DEBUG=1 shows the traceback. EFT_LAUNCH, e.g. `torchrun --nproc-per-node 4`, is what a stage that can
    start as several processes starts itself with: the command in dvc.yaml stays the same on every machine.

    Args:
        main: of the stage.
        several: whether it may run as several processes.
        processes: how many of them it starts as where nobody has said so.
    """
    die_with_parent()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    name, count = Path(sys.argv[0]).stem, launched_processes()
    launcher = shlex.split(os.environ.pop("EFT_LAUNCH", ""))
    if count > 1:
        name = f"{name} (rank {os.environ.get('RANK', '?')})"
    try:
        if several and count == 1:
            if launcher:
                os.execvp(launcher[0], [*launcher, "-m", f"stages.{name}", *sys.argv[1:]])
            if (own := processes()) > 1:
                sys.exit(_run_as(own, [sys.executable, "-m", f"stages.{name}", *sys.argv[1:]]))
        if count > 1 and not several:
            raise ValueError(f"launched as {count} processes; it runs as one: `python -m stages.{name.split()[0]}`")
        main()
    except KeyboardInterrupt as interrupt:
        terminated = str(interrupt) == "SIGTERM"
        print(f"{name}: stopped. What was saved is kept: the same command goes on from there.", file=sys.stderr)
        _leave(143 if terminated else 130, count)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("EFT_DEBUG"):
            traceback.print_exc()
        print(f"{name}: {error}", file=sys.stderr)
        _leave(3 if isinstance(error, PeerLost) else 2, count)
    except Exception:
        if count == 1:
            raise
        traceback.print_exc()
        _leave(1, count)
    if dist.is_initialized():
        dist.destroy_process_group()


def _run_as(count: int, command: list[str]) -> int:
    """Run a stage as several processes of this machine and return its exit code, that of the first one to fail.

    torchrun would do the same, and end every error of the user's by a traceback of its own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # `start` sets what runtime.threads says
    started = []
    for rank in range(count):
        own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        started.append(subprocess.Popen(command, env={**os.environ, **own}))
    code, running, patience = 0, True, _SECONDS_TO_FOLLOW
    try:
        while running and patience > 0:
            time.sleep(0.1)
            codes = [process.poll() for process in started]
            running = None in codes
            code = code or next(filter(None, codes), 0)
            patience -= 0.1 if code else 0.0
    except KeyboardInterrupt as interrupt:
        code = 143 if str(interrupt) == "SIGTERM" else 130
    for process in started:
        process.terminate()  # does nothing to those that have ended
    for process in started:
        process.wait()
    return code if code >= 0 else 128 - code  # a signal, as shells count it


def _leave(code: int, num_processes: int) -> None:
    if num_processes == 1:
        sys.exit(code)
    # At once: closing the connections is what tells the other processes, and tearing groups down could wait for them.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed `dvc repro` leaves no trainer behind."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


class Summary:
    """What every stage that trains or evaluates writes of itself to `summary.json`."""

    def __init__(self, stage: str, seconds_before: float = 0.0):
        self.stage, self._before, self._started = stage, seconds_before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds worked on this stage, over all its resumed runs."""
        return self._before + time.monotonic() - self._started

    def write(self, folder: str | Path, **more: Any) -> None:
        """Write summary.json into `folder`, with `more` beside time, memory, machine, versions and commit."""
        write_json(
            Path(folder) / "summary.json",
            {
                "stage": self.stage,
                "seconds": round(self.seconds, 1),
                "peak_memory_mb": round(peak_memory_mb()),
                "commit": commit(),
                "versions": versions(),
                "machine": machine(),
                **more,
            },
        )


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process plus that of its largest finished child, in MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) / 1024


def commit() -> str:
    """Return the Git commit, with `+changes` if tracked files differ from it, or `unknown` outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", "pipeline", "stages", "params.yaml"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes.strip() else "")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, GPU. No host name."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
