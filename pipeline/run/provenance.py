"""Where a result came from: seconds, memory, machine, versions of packages and the Git commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.files import write_json
from pipeline.run.cores import available_cores

_PACKAGES = (
    "eft",
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
_ROOT = Path(__file__).parents[2]  # of the code


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


def commit(root: Path = _ROOT) -> str:
    """Return the Git commit of the code in `root`, with `+changes` if tracked files differ from it.

    `unknown` where the code is no repository of its own: not in Git, or installed or copied within another's.
    """

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"
        git("ls-files", "--error-unmatch", "pipeline/run/provenance.py")
        head = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", "pipeline", "stages", "params.yaml")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def versions() -> dict[str, str]:
    """Return the versions of Python, and of the packages that a result may depend on and that are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a simulator that this machine lacks
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, GPU. No host name."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }
