"""Where in the pipeline a stage is, and how long what comes after it took the last time."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.yaml_text import parse_yaml

_SECONDS = "metrics/summary.json"  # of a stage, or of each of its parts; also those of Git, in a new checkout


def where(stage: str, root: Path = Path()) -> str | None:
    """Return a line such as `pretrain: stage 4 of 9. Those after it took 11 minutes the last time.`

    Args:
        stage: its name in dvc.yaml.
        root: folder of dvc.yaml.

    Returns:
        None where no dvc.yaml names the stage: it was started by itself elsewhere.
    """
    path = root / "dvc.yaml"
    if not path.is_file():
        return None
    stages = list((parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}).get("stages") or {})
    if stage not in stages:
        return None
    number = stages.index(stage) + 1
    line = f"{stage}: stage {number} of {len(stages)}."
    seconds = sum(_seconds(root / "checkpoints" / later) for later in stages[number:])
    if seconds >= 60:
        line += f" Those after it took {seconds / 60:.0f} minutes the last time."
    return line


def _seconds(folder: Path) -> float:
    """Return what a stage took the last time; 0 where it has said nothing, as the shortest do."""
    found = 0.0
    for path in [folder / _SECONDS, *folder.glob(f"*/{_SECONDS}")]:
        try:
            found += float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # only a guess hangs on it
    return found
