"""`eft teach`: train teachers, small experts of one task each."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_folder, count, count_or_zero, find_task, own_folder

if TYPE_CHECKING:
    from pipeline.demonstrate.teach_tasks import Lesson

DETAILS = """\
A teacher is a small policy of one task, trained by PPO on many copies of it, on one core. Tasks on MuJoCo
and MiniArcade's games are stepped as arrays, thousands of agent steps a second, and most are learned in minutes. Any
other task is stepped as it is, and takes longer.

FOLDER/TASK gets teacher.safetensors, curve.svg (score in the real environment against core-seconds) and curve.json.
A training that was stopped goes on from its last evaluation when the same command is given again. A teacher that is
there by the same recipe and seed is left alone: remove its folder to train it anew.

How a task is taught stands in pipeline/demonstrate/teachers.yaml; your own tasks are taught by the common values, or
by those of teachers.yaml beside their task files:

    tasks:
      my-task: {steps: 3_000_000, discount: 0.98}

With such a line `dvc repro` trains the teacher too, and it demonstrates the task and labels it (finetune.teacher).
Without, `--output checkpoints/teach` puts it where `eft adapt` asks for labels (adapt.finetune.teacher).

Your own MuJoCo environment is stepped as arrays if it has a method `array_form` (examples/README.md). Whether the two
agree is looked at before anything is trained.

examples:
  eft teach cheetah-run walker-walk
  eft teach my_tasks/my-task.yaml --steps 1_000_000
  eft teach examples/eft_push/push/tasks/push-ball.yaml    an environment of your own, in seconds
"""


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    command = add_command(commands, "teach", teach, "train teachers: small experts, for demonstrations", "")
    command.formatter_class, command.epilog = argparse.RawDescriptionHelpFormatter, DETAILS
    command.add_argument("tasks", nargs="+", metavar="NAME|FILE", help="tasks' names, or files of your own tasks")
    command.add_argument("--output", type=Path, default=Path("taught"), metavar="FOLDER", help="default: taught")
    command.add_argument("--steps", type=_steps, metavar="N", help="agent steps, in place of the recipe's")
    command.add_argument("--seed", type=count_or_zero, default=1, metavar="N", help="of everything drawn (default: 1)")
    command.add_argument(
        "--workers", type=count_or_zero, default=0, metavar="N", help="at once (default: one per core)"
    )
    add_folder(command)


def teach(options: argparse.Namespace) -> None:
    """Train the teachers that are not there yet, and say what came of it."""
    from pipeline.extras import needs
    from pipeline.tasks import availability

    with needs("pipeline"):
        from pipeline.demonstrate.teach_tasks import CURVE, teach_tasks
        from pipeline.demonstrate.teacher import TEACHERS
        from pipeline.report.teaching import draw_curve

    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output} is a file: --output takes a folder, in which each task gets one.")
    lessons = read_lessons(options)
    availability.require([lesson.spec for lesson in lessons])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        notes = teach_tasks(lessons, options.output, options.workers)
    except KeyboardInterrupt:
        print(
            "teach: stopped. What was learned up to each last evaluation is kept: the same command goes on from there.",
            file=sys.stderr,
        )
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    for name, told in notes.items():
        draw_curve(name, options.output / name / CURVE, options.output / name / "curve.svg")
        print(
            f"{name}: {told['score']:.2f} +- {told['standard_error']:.2f} in {told['episodes']} episodes, after "
            f"{told['steps']:,} steps and {told['seconds']:.0f} core-seconds -> {options.output / name}"
        )
    if options.output.resolve() != TEACHERS.resolve():
        print(f"teach: to look at: runs ask the teachers in {TEACHERS} alone (--output {TEACHERS})", file=sys.stderr)


def read_lessons(options: argparse.Namespace) -> list[Lesson]:
    """Return what is to be taught, each task once, and say which tasks no teachers.yaml names."""
    import dataclasses

    from pipeline.demonstrate.teach import load_recipes, usual_recipe
    from pipeline.demonstrate.teach_tasks import Lesson

    folder, lessons = own_folder(options), {}
    for task in options.tasks:
        spec = find_task(task, folder)
        recipe = load_recipes(task if Path(task).is_file() else folder).get(spec.name)
        if recipe is None:
            recipe = usual_recipe()
            print(f"teach: {spec.name}: no teachers.yaml names it: the common values are taken", file=sys.stderr)
        if options.steps:
            recipe = dataclasses.replace(recipe, steps=options.steps)
        lessons[spec.name] = Lesson(spec, recipe, options.seed)
    return list(lessons.values())


def _steps(text: str) -> int:
    return count(text.replace("_", ""))
