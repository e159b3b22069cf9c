"""Virtual environments that hold a wheel of Eft and, without any download, packages of the running Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

Wanted = set[tuple[str, str]]  # names of distributions with one of their extras each, "" for none


def closure(requirements: list[str], *extras: str) -> set[str]:
    """Return the distributions that requirements lead to on this machine, as pip would follow them.

    Args:
        requirements: of a distribution, with their markers.
        extras: those of its extras that are wanted too.
    """
    found: Wanted = set()
    waiting = [(text, extra) for text in requirements for extra in ("", *extras)]
    while waiting:
        text, asked = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": asked}):
            continue
        for one in ("", *requirement.extras):
            key = (re.sub(r"[-_.]+", "-", requirement.name).lower(), one)
            if key not in found:
                found.add(key)
                waiting += [(text, one) for text in metadata.requires(requirement.name) or ()]
    return {name for name, _ in found}


class Environment:
    """A fresh virtual environment in which a wheel is installed.

    Args:
        folder: where to make it.
        wheel: installed by pip without an index and without what it requires.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.python = folder, folder / "bin/python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        install = ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(self.python), *install], check=True)
        self.site = next(folder.glob("lib/python*/site-packages"))

    def link(self, distributions: set[str]) -> None:
        """Let it have these packages of the running Python, and no others."""
        for name in distributions:
            distribution = metadata.distribution(name)
            tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
            for top in tops:
                target = self.site / top
                if not target.exists():
                    target.symlink_to(Path(str(distribution.locate_file(top))).resolve())

    def run(self, *command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command with this environment's programs first on the path, and nothing of a checkout."""
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        env |= {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=7200, check=False)
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done
