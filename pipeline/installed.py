"""What the installed code is, as one file that the stages of a project outside a checkout depend on.

    python -m pipeline.installed

writes code.json: a hash of every part of Eft's code that dvc.yaml names among its params. A new version of Eft then
runs again the stages whose results it may change, and no others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.yaml_text import parse_yaml

FILE = "code.json"
_PACKAGES = Path(__file__).parents[1]  # where `pipeline` lies


def main() -> None:
    """Write code.json for the dvc.yaml of the working folder."""
    stages = parse_yaml(Path("dvc.yaml").read_text(encoding="utf-8"), "dvc.yaml")["stages"]
    hashes = {name: code_hash(name) for name in sorted({name for stage in stages.values() for name in _named(stage)})}
    Path(FILE).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


def _named(stage: Any) -> list[str]:
    params = stage.get("do", stage).get("params", [])
    return [name for entry in params if isinstance(entry, dict) for name in entry.get(FILE, [])]


def code_hash(name: str) -> str:
    """Return one hash of a module, or of all that a package holds but compiled Python.

    Args:
        name: its path without a suffix, e.g. `pipeline/model` or `pipeline/data/demos`; a dot would lead DVC into a
            section.

    Raises:
        FileNotFoundError: this version of Eft has nothing of that name.
    """
    folder, module = _PACKAGES / name, _PACKAGES / f"{name}.py"
    files = [module] if module.is_file() else sorted(folder.rglob("*"))
    if not files:
        raise FileNotFoundError(
            f"the installed Eft has no {name}: dvc.yaml is of another version. Write a new one by `eft init` in an "
            "empty folder, and take its dvc.yaml and stages/."
        )
    digest = hashlib.sha256()
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(_PACKAGES).as_posix()}\n".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
