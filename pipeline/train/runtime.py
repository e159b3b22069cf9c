"""The process a stage runs in: device, threads, seeds, its end with its parent, and what it reports of itself."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from pipeline import config
from pipeline.demonstrate.workers import available_cores
from pipeline.files import write_json
from pipeline.model.compute import Compute, choose

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


def start(runtime: config.Runtime, seed: int) -> Accelerator:
    """Set threads and seeds and return the Accelerator that names the device.

    Raises:
        ValueError: CUDA is asked for and absent, or the stage was launched as several processes.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device is `cuda`, but torch sees no CUDA device. Set it to `auto` or `cpu`.")
    torch.set_num_threads(runtime.threads or available_cores())
    seed_everything(seed)
    accelerator = Accelerator(cpu=runtime.device == "cpu")
    if accelerator.num_processes > 1:
        raise ValueError(
            f"launched as {accelerator.num_processes} processes; the stages train on one device for now. "
            "Start with `python -m stages.<name>`."
        )
    return accelerator


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


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` as a process: errors in one line, Ctrl-C and SIGTERM leave quietly, no orphan.

    Exit codes: 2 for an error the user can act on, 130 for Ctrl-C, 143 for SIGTERM. EFT_DEBUG=1 shows the traceback.
    """
    die_with_parent()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    name = Path(sys.argv[0]).stem
    try:
        main()
    except KeyboardInterrupt as interrupt:
        terminated = str(interrupt) == "SIGTERM"
        print(f"{name}: stopped. What was saved is kept: the same command goes on from there.", file=sys.stderr)
        sys.exit(143 if terminated else 130)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("EFT_DEBUG"):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


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
