"""Simulators and experts make demonstrations -> datasets/demos/, datasets/demos.json."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pipeline
from pipeline import config
from pipeline.demonstrate.collect import collect
from pipeline.demonstrate.teacher import TEACHERS
from pipeline.files import read_json, write_json
from pipeline.run.launch import run_stage
from pipeline.run.run_dir import open_run_dir
from pipeline.tasks import availability, registry

OUT = Path("datasets/demos")
REPORT = Path("datasets/demos.json")


def main() -> None:
    tasks, demos, seed = config.load(config.Tasks), config.load(config.Demos), config.load_seed()
    train, held_out = (registry.get(names, tasks.folder) for names in (tasks.train, tasks.held_out))
    availability.require([*train, *held_out])
    wanted = [(spec, demos.episodes) for spec in train] + [(spec, demos.held_out_episodes) for spec in held_out]
    # Neither which tasks and how many episodes nor who plays changes an attempt: those of before still count.
    shaping = {"action_noise": demos.action_noise}
    code = [path for name in ("demonstrate", "tasks") for path in code_files(Path(pipeline.__path__[0]) / name)]
    teachers = sorted(TEACHERS.glob("*/teacher.safetensors"))
    with open_run_dir("demos", [shaping], [*code, *code_files(Path(tasks.folder)), *teachers], seed) as folder:
        clock = folder / "seconds.json"
        before = read_json(clock, "`dvc repro demos`") if clock.exists() else 0.0
        started = time.monotonic()
        try:
            report = collect(wanted, demos, seed, OUT, folder, Path(tasks.folder) / "demos", TEACHERS)
        finally:
            seconds = round(before + time.monotonic() - started, 1)
            write_json(clock, seconds)
        write_json(REPORT, {"seed": seed, "seconds": seconds, **report})
    if report["missing"]:
        print(
            f"demos: WARNING: {len(report['missing'])} tasks have fewer demonstrations than wanted, or none, and then "
            "learn online alone (the reasons stand above and in "
            f"{REPORT}): {', '.join(report['missing'])}",
            file=sys.stderr,
        )
    kept = sum(task["kept"] for task in report["tasks"].values())
    print(f"demos: {kept} demonstrations of {len(report['tasks'])} tasks in {seconds:.0f} s -> {OUT}", file=sys.stderr)


def code_files(folder: Path) -> list[Path]:
    """Return what decides how an attempt is played; compiled Python beside it would change the hash at random."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".yml"))


if __name__ == "__main__":
    run_stage(main)
