"""`eft teach`: train teachers, small experts of one task each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.cli.options import add_command, add_folder, count, count_or_zero, own_folder

DETAILS = """\
A teacher is a small policy of one task, trained by PPO on many copies of it. Tasks on MuJoCo and MiniArcade's
games are stepped as arrays, 10,000 to 90,000 agent steps a second on one core, and most are learned in one to ten
minutes. Any other task is stepped as it is, by all cores, and takes longer.

FOLDER/TASK gets teacher.safetensors, curve.svg (score in the real environment against core-seconds) and curve.json.
A training that was stopped goes on when the same command is given again.

How a task is taught stands in pipeline/demonstrate/teachers.yaml; your own tasks are taught by the common values, or
by those of teachers.yaml beside their task files:

    tasks:
      my-task: {steps: 3_000_000, discount: 0.98}

With such a line, `dvc repro` trains the teacher too, and makes demonstrations of it.

Your own MuJoCo environment is stepped as arrays if it has a method `array_form` (examples/README.md). Whether the two
agree is looked at first.

examples:
  eft teach cheetah-run walker-walk
  eft teach my_tasks/my-task.yaml --steps 1_000_000
"""


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    teach = add_command(commands, "teach", teach_tasks, "train teachers: small experts, for demonstrations", "")
    teach.formatter_class, teach.epilog = argparse.RawDescriptionHelpFormatter, DETAILS
    teach.add_argument("tasks", nargs="+", metavar="NAME|FILE", help="tasks' names, or files of your own tasks")
    teach.add_argument("--output", type=Path, default=Path("taught"), metavar="FOLDER", help="default: taught")
    teach.add_argument("--steps", type=_steps, metavar="N", help="agent steps, in place of the recipe's")
    teach.add_argument("--seed", type=count_or_zero, default=1, metavar="N", help="of everything drawn (default: 1)")
    teach.add_argument("--workers", type=count_or_zero, default=0, metavar="N", help="at once (default: one per core)")
    add_folder(teach)


def teach_tasks(options: argparse.Namespace) -> None:
    """Train the teachers that are not there yet, and say what came of it."""
    import dataclasses

    from pipeline.batched.agreement import check_form
    from pipeline.batched.forms import has_array_form
    from pipeline.demonstrate import teach_tasks as teaching
    from pipeline.demonstrate.teach import load_recipes, usual_recipe
    from pipeline.report.teaching import draw_curves
    from pipeline.tasks import availability, registry

    folder, lessons = own_folder(options), []
    for task in options.tasks:
        is_file = task.endswith((".yaml", ".yml"))
        spec = registry.load_file(task) if is_file else registry.get([task], folder)[0]
        recipes = load_recipes(Path(task).parent if is_file else folder)
        recipe = recipes.get(spec.name, usual_recipe())
        if options.steps:
            recipe = dataclasses.replace(recipe, steps=options.steps)
        lessons.append(teaching.Lesson(spec, recipe, options.seed))
    availability.require([lesson.spec for lesson in lessons])
    for lesson in lessons:
        if lesson.spec.suite == "gymnasium" and has_array_form(lesson.spec):
            check_form(lesson.spec)
    notes = teaching.teach_tasks(lessons, options.output, options.workers)
    for name, told in notes.items():
        draw_curves({name: options.output / name / teaching.CURVE}, options.output / name / "curve.svg")
        print(
            f"{name}: {told['score']:.2f} +- {told['standard_error']:.2f} in {told['episodes']} episodes, after "
            f"{told['steps']:,} steps and {told['seconds']:.0f} core-seconds -> {options.output / name}"
        )


def _steps(text: str) -> int:
    return count(text.replace("_", ""))
