"""Runs of the stages that differ in a few parameters, each in a folder of its own, kept when it is done."""

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
from pipeline.results import read_curves
from pipeline.run.provenance import commit

PROJECT = Path(__file__).parent.parent
BASE = Path("checkpoints/pretrain/model")
_SHAPING = ("tasks", "teach", "demos", "language", "vision", "model", "planner", "learning", "pretrain", "finetune")
_SHARED = ("datasets", "checkpoints/pretrain", "checkpoints/teach")  # of the base, with the runs that go on from it


def pretrained(folder: Path, changed: Mapping[str, Mapping[str, Any]], seed: int | None = None) -> Path:
    """Make a base for finetuning by the stages from `teach` to `pretrain`, unless it is done.

    Args:
        folder: of the base.
        changed: parameters of each section that are not those of params.yaml.
        seed: of the base; None for that of params.yaml.

    Returns:
        The folder, `root` of runs.
    """
    if not (folder / BASE).exists():
        _prepare(folder, config.load_seed() if seed is None else seed, changed, ())
        for stage in ("teach", "demos", "embed", "pretrain"):
            _run_stage(stage, folder)
    return folder


def run(
    folder: Path,
    seed: int,
    changed: Mapping[str, Any],
    groups: Sequence[str],
    command: str,
    root: Path = Path(),
    base: Mapping[str, Mapping[str, Any]] | None = None,
    keep_model: bool = False,
) -> dict[str, Any]:
    """Finetune once, unless it is done; one that was stopped goes on.

    Args:
        folder: of the run.
        seed: of the run.
        changed: parameters of `finetune` that are not those of params.yaml.
        groups: groups of metrics whose curves are kept, e.g. `eval`.
        command: that measures, to be named where the result is unreadable.
        root: project folder whose demonstrations and pretrained checkpoint are finetuned.
        base: what `pretrained` made it with.
        keep_model: leave the finetuned checkpoint where it is.

    Returns:
        `seconds`, `env_steps`, `stage` and `commit` of the run, and its curves by name.
    """
    done, metrics = folder / "done.json", folder / "checkpoints/finetune/metrics"
    if not done.exists():
        _prepare(folder, seed, {**(base or {}), "finetune": changed}, _SHARED, root)
        _run_stage("finetune", folder)
        summary = read_json(metrics / "summary.json", "stages.finetune")
        made = {name: summary.get(name) for name in ("seconds", "env_steps", "stage")}
        write_json(done, made | {"commit": commit()})
        if not keep_model:
            shutil.rmtree(folder / "checkpoints/finetune/model")
    curves = {name: curve for name, curve in read_curves(metrics).items() if name.split("/")[0] in groups}
    if not curves:
        raise ValueError(f"{metrics} has no curve of {', '.join(groups)}: delete {folder} and run `{command}` again")
    return {**read_json(done, command), **curves}


def check_same(folder: Path, seed: int, changed: Mapping[str, Mapping[str, Any]], command: str) -> None:
    """Refuse what is done and was made with other parameters, which params.yaml may have now.

    Args:
        folder: of a run or base.
        seed: that it has now.
        changed: parameters of each section that are not those of params.yaml.
        command: that measures.

    Raises:
        ValueError: a parameter of data, model or learning differs; one that came later is no difference.
    """
    made, now = config.read_params(folder / "params.yaml"), _params(seed, changed)
    other = [
        f"{section}.{key} {old!r}, now {now[section][key]!r}"
        for section in _SHAPING
        for key, old in made[section].items()
        if now[section].get(key, old) != old
    ]
    if other:
        raise ValueError(
            f"{folder} was made with other parameters: {'; '.join(other)}. Restore them, measure under another name "
            f"(`{command} --name NAME`), or remove the folder."
        )


def _params(seed: int, changed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters of params.yaml but for what is changed."""
    params = config.read_params()
    params["seed"] = seed
    for section, values in changed.items():
        params[section] = params[section] | dict(values)
    params["runtime"]["trackers"] = []
    return params


def _run_stage(stage: str, folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment, check=True)


def _prepare(
    folder: Path, seed: int, changed: Mapping[str, Mapping[str, Any]], shared: Sequence[str], root: Path = Path()
) -> None:
    """Make a project folder whose parameters are ours but for what is changed, and whose data are those of `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    params = _params(seed, changed)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    (folder / "checkpoints").mkdir(exist_ok=True)
    own = params["tasks"]["folder"]
    for name, source in [*((name, root / name) for name in shared), (own, Path(own))]:
        if not (folder / name).exists():
            (folder / name).symlink_to(source.resolve())
