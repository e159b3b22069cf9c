"""Runs of `stages.finetune` that differ in a few parameters, each in a folder of its own, kept when it is done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import config
from pipeline.files import read_json, write_json
from pipeline.report.results import read_curves

PROJECT = Path(__file__).parent.parent
BASE = Path("checkpoints/pretrain/model")


def run(folder: Path, seed: int, changed: Mapping[str, Any], groups: Sequence[str], command: str) -> dict[str, Any]:
    """Finetune once, unless it is done; one that was stopped goes on.

    Args:
        folder: of the run.
        seed: of the run.
        changed: parameters of `finetune` that are not those of params.yaml.
        groups: groups of metrics whose curves are kept, e.g. `eval`.
        command: that measures, to be named where the result is unreadable.

    Returns:
        `seconds`, `env_steps` and `stage` of the run, and its curves by name.
    """
    path = folder / "result.json"
    if not path.exists():
        _prepare(folder, seed, changed)
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        subprocess.run([sys.executable, "-m", "stages.finetune"], cwd=folder, env=environment, check=True)
        metrics = folder / "checkpoints/finetune/metrics"
        summary, curves = read_json(metrics / "summary.json", "stages.finetune"), read_curves(metrics / "plots/metrics")
        kept = {name: curve for name, curve in curves.items() if name.split("/")[0] in groups}
        of_run = {"seconds": summary["seconds"], "env_steps": summary["env_steps"], "stage": summary.get("stage")}
        write_json(path, {**of_run, **kept})
        shutil.rmtree(folder / "checkpoints/finetune/model")
    return read_json(path, command)


def _prepare(folder: Path, seed: int, changed: Mapping[str, Any]) -> None:
    """Make a project folder whose parameters are ours but for what is compared; data are those of this one."""
    folder.mkdir(parents=True, exist_ok=True)
    params = config.read_params()
    params["seed"], params["finetune"] = seed, params["finetune"] | dict(changed)
    params["runtime"]["trackers"] = []
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("datasets", "checkpoints/pretrain", params["tasks"]["folder"]):
        if not (folder / name).exists():
            (folder / name).symlink_to(Path(name).resolve())
