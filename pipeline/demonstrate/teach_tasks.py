"""Teachers of many tasks, one core each, so that an interrupted training goes on and one changed recipe trains one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from pipeline.batched.agreement import check_form
from pipeline.batched.forms import has_array_form
from pipeline.demonstrate.ppo import PPORecipe
from pipeline.demonstrate.teach import Training, check_recipe
from pipeline.demonstrate.teacher import SHIPPED, load_teacher, teacher_file
from pipeline.files import add_files, atomic_folder, read_json, write_json
from pipeline.progress import Progress
from pipeline.run.cores import available_cores
from pipeline.run.run_dir import ROOT, fingerprint, hold_output, open_run_dir
from pipeline.run.workers import Workers
from pipeline.tasks.spec import TaskSpec

CURVE = "curve.json"
_ADVICE = "use fewer workers. What was learned up to each last evaluation is kept: the same command goes on from there."
_LOOK_EVERY = 2.0  # seconds between two looks at how far the trainings are


@dataclass(frozen=True)
class Lesson:
    """One teacher that is wanted."""

    spec: TaskSpec
    recipe: PPORecipe
    seed: int

    @property
    def run_dir(self) -> Path:
        """Where its training keeps what it needs to go on."""
        return ROOT / f"teach-{self.spec.name}-{fingerprint([self.recipe, self.spec], [], self.seed)}"

    def is_taught(self, folder: Path, any_seed: bool = False) -> bool:
        """Return whether its teacher lies in a folder, by this recipe, version of the task and, mostly, seed."""
        path = teacher_file(folder, self.spec)
        if not path.exists():
            return False
        try:
            notes = load_teacher(path, self.spec).notes
            recipe = TypeAdapter(PPORecipe).validate_python(notes.get("recipe"))
        except ValueError:
            return False  # damaged, or of another version of the task or of recipes: it is trained anew
        return recipe == self.recipe and (any_seed or notes.get("seed") == self.seed)


def take_shipped(lessons: Sequence[Lesson], folder: Path) -> None:
    """Copy those teachers that come with Eft and were trained by the same recipe, whatever the seed."""
    for lesson in lessons:
        source, target = SHIPPED / lesson.spec.name, folder / lesson.spec.name
        if lesson.is_taught(SHIPPED, any_seed=True) and not lesson.is_taught(folder, any_seed=True):
            with atomic_folder(target) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)
            print(f"teach: {lesson.spec.name}: the teacher that comes with Eft", file=sys.stderr)


def teach_tasks(
    lessons: Sequence[Lesson], folder: str | Path, workers: int = 0, shipped: bool = False
) -> dict[str, dict[str, Any]]:
    """Train the teachers that are not there yet, the longest first.

    Args:
        lessons: what is wanted.
        folder: gets `<task>/teacher.safetensors` and `<task>/curve.json`.
        workers: processes at once; 0 = one per core.
        shipped: take the teachers that come with Eft where they are of the same recipe, whatever the seed.

    Returns:
        The notes of each teacher, `score` and `seconds` among them.

    Raises:
        RuntimeError: a training failed, or its process died, or another run trains the same teacher; what others
            learned is kept.
        ValueError: a recipe asks for what there is not, or the array form of a user's own environment is not its
            environment's; nothing is trained then.
    """
    folder = Path(folder)
    if shipped:
        take_shipped(lessons, folder)
    waiting = [lesson for lesson in lessons if not lesson.is_taught(folder, any_seed=shipped)]
    for lesson in lessons:
        if lesson not in waiting:
            print(f"teach: {lesson.spec.name}: there already, by the same recipe and seed", file=sys.stderr)
    for lesson in waiting:
        check_recipe(lesson.spec, lesson.recipe)
        if lesson.spec.suite == "gymnasium" and has_array_form(lesson.spec):
            check_form(lesson.spec)  # a test holds the catalogue's equal to their environments
    waiting.sort(key=lambda lesson: lesson.recipe.steps)  # taken from the end
    if waiting:
        _train_all(waiting, folder, min(workers or available_cores(), len(waiting)))
    return {lesson.spec.name: load_teacher(teacher_file(folder, lesson.spec), lesson.spec).notes for lesson in lessons}


def _train_all(waiting: list[Lesson], folder: Path, count: int) -> None:
    lessons = {lesson.spec.name: lesson for lesson in waiting}
    steps, at_work = {name: _done(lesson) for name, lesson in lessons.items()}, set[str]()
    total, before = sum(lesson.recipe.steps for lesson in waiting), sum(steps.values())
    with Workers(count, _ADVICE) as pool, Progress("teach", total, "steps", before) as progress:
        while waiting or pool.working:
            while waiting and not pool.full:
                lesson = waiting.pop()
                at_work.add(lesson.spec.name)
                judged = min(lesson.recipe.evaluate, lesson.recipe.steps)
                how = "goes on" if (lesson.run_dir / "state.safetensors").exists() else "begins"
                progress.write(f"teach: {lesson.spec.name}: {how}; judged every {judged:,} steps")
                pool.start(f"the teacher of {lesson.spec.name}", train, lesson, folder)
            for notes in pool.wait(_LOOK_EVERY):
                name = notes["task"]
                at_work.discard(name)
                # What an early end left out counts as done, so that the estimate of the end is right.
                progress.update(lessons[name].recipe.steps - steps[name], task=name, score=notes["score"])
                progress.write(
                    f"teach: {name}: {notes['score']:.2f} after {notes['trained_steps']:,} steps, "
                    f"{notes['seconds']:.0f} core-seconds"
                )
            for name in at_work:
                row, done = _last_row(lessons[name]), _done(lessons[name])
                if row and done > steps[name]:
                    progress.update(done - steps[name], task=name, score=row["score"])
                    steps[name] = done


def train(lesson: Lesson, folder: Path) -> dict[str, Any]:
    """Train one teacher in this process, write it and its curve, and return its notes with the task's name."""
    import torch

    torch.set_num_threads(1)
    spec, out = lesson.spec, folder / lesson.spec.name
    held = hold_output(out, "eft teach")
    with open_run_dir(f"teach-{spec.name}", [lesson.recipe, spec], [], lesson.seed) as run_dir, held:
        training = Training(spec, lesson.recipe, lesson.seed, run_dir)
        try:
            training.run(lambda row: write_json(run_dir / CURVE, training.curve))
            teacher = training.finish()
        finally:
            training.close()
        with add_files(out, last="teacher.safetensors") as partial:
            teacher.save(partial / "teacher.safetensors")
            write_json(partial / CURVE, training.curve)
    return {"task": spec.name, **teacher.notes}


def remove_others(folder: Path, specs: Sequence[TaskSpec]) -> None:
    """Remove teachers of tasks that are not wanted, which is said, and what killed trainings have left."""
    wanted = {spec.name for spec in specs}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file():
            with suppress(Timeout), FileLock(path).acquire(timeout=0):  # one that is held is at work
                path.unlink()
        elif path.name not in wanted:
            shutil.rmtree(path)
            print(f"teach: {path.name}: removed, since no teacher of it is wanted (any more)", file=sys.stderr)


def _last_row(lesson: Lesson) -> dict[str, float] | None:
    """Return the last row of a curve; None before the first evaluation, and when the training is over."""
    try:
        return read_json(lesson.run_dir / CURVE, "the training")[-1]
    except FileNotFoundError:
        return None


def _done(lesson: Lesson) -> int:
    """Return how many steps a training that is not over has made, up to its last evaluation."""
    row = _last_row(lesson)
    return min(int(row["steps"]), lesson.recipe.steps) if row else 0
