"""Teachers learn their tasks on batched physics -> checkpoints/teach/, checkpoints/teach.json."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline import config
from pipeline.demonstrate.teach import load_recipes
from pipeline.demonstrate.teach_tasks import Lesson, remove_others, teach_tasks
from pipeline.demonstrate.teacher import TEACHERS
from pipeline.files import write_json
from pipeline.run.launch import run_stage
from pipeline.tasks import availability, registry

REPORT = Path("checkpoints/teach.json")


def main() -> None:
    tasks, settings, seed = config.load(config.Tasks), config.load(config.Teach), config.load_seed()
    specs, recipes = registry.get([*tasks.train, *tasks.held_out], tasks.folder), load_recipes(tasks.folder)
    taught = [spec for spec in specs if settings.enabled and spec.name in recipes]
    availability.require(taught)
    TEACHERS.mkdir(parents=True, exist_ok=True)
    remove_others(TEACHERS, taught)
    started = time.monotonic()
    lessons = [Lesson(spec, recipes[spec.name], seed) for spec in taught]
    notes = teach_tasks(lessons, TEACHERS, settings.workers, settings.shipped)
    seconds = round(time.monotonic() - started, 1)
    write_json(REPORT, {"seed": seed, "seconds": seconds, "tasks": notes})
    print(f"teach: {len(notes)} teachers in {seconds:.0f} s -> {TEACHERS}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(main)
