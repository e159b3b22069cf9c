"""Experts that can be asked in every state: scripts, the way through a maze, and teachers.

A planner is none of them: what it does depends on what it planned before. Whoever demonstrates a task labels it, or
nobody does: two experts of one task would be imitated in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.demonstrate.box2d import PILOTED, pilot
from pipeline.demonstrate.desk import desk_script, has_desk_script
from pipeline.demonstrate.paths import has_path, path
from pipeline.demonstrate.planner import load_recipes
from pipeline.demonstrate.teacher import SHIPPED, TEACHERS, load_teacher, teacher_file, training_of
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

_WORSE = 0.1  # of the score, that a teacher may be below the planner: clones learn more from it
_BETTER = 0.1  # of the score, that a teacher has to be above a clone of the planner to demonstrate in its place
Label = Callable[[np.ndarray, bool], np.ndarray]  # observation (O,), whether it is successful -> action (a,)


class Known(NamedTuple):
    """Who demonstrates a task, as far as this machine knows."""

    kind: str  # scripted, path, teacher or planner
    score: float | None  # mean of undisturbed episodes, where it was measured
    labels: bool  # whether it can be asked in every state


def known_expert(spec: TaskSpec) -> Known | None:
    """Return who demonstrates a task, by the teachers of the last run, else those that come with Eft; None for nobody.

    Raises:
        ValueError: the teacher is damaged, or of another version of the task.
    """
    folder = TEACHERS if teacher_file(TEACHERS, spec).exists() else SHIPPED
    kind = expert_kind(spec, folder)
    if kind == "teacher":
        return Known(kind, load_teacher(teacher_file(folder, spec), spec).notes["score"], True)
    if kind is not None:
        return Known(kind, None, True)
    planner = load_recipes().get(spec.name)
    return None if planner is None else Known("planner", planner.score, False)


def expert_kind(spec: TaskSpec, teachers: str | Path | None) -> str | None:
    """Return who can be asked in every state of a task: `scripted`, `path`, `teacher`, or None for nobody.

    Args:
        spec: the task.
        teachers: folder of trained teachers; None for no teachers. One that scores clearly less than the planner is
            passed over: the planner demonstrates then, and nobody labels.

    Raises:
        ValueError: the teacher is damaged, or of another version of the task.
    """
    scripted = (
        spec.suite == "metaworld"  # has one for each of its environments
        or (spec.suite == "robodesk" and has_desk_script(spec.env_id))
        or (spec.suite == "box2d" and spec.env_id in PILOTED)
    )
    if scripted:
        return "scripted"
    if has_path(spec):
        return "path"
    if teachers is not None and _leads(spec, teacher_file(teachers, spec)):
        return "teacher"
    return None


def _leads(spec: TaskSpec, path: Path) -> bool:
    """Return whether there is a teacher, and hardly a worse one than the planner or a better one than its clones."""
    if not path.exists():
        return False
    planner = load_recipes().get(spec.name)
    score = load_teacher(path, spec).notes.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(
            f"{path}: it does not say how well it plays, by a score in [0, 1]: {score!r}: {training_of(spec, path)}."
        )
    if planner is None or planner.score is None or score >= planner.score - _WORSE:
        return True
    # The planner may see what the observation does not tell; then nobody can do as it does.
    return planner.clone is not None and score >= planner.clone + _BETTER


def open_expert(spec: TaskSpec, env: TaskEnv, teachers: str | Path | None) -> Label:
    """Return the expert of a task's environment, for this and all later episodes of it.

    Args:
        spec: the task.
        env: its environment; the way through a maze reads where it stands.
        teachers: folder of trained teachers; None for no teachers.

    Raises:
        ValueError: the task has no such expert, or its teacher is of another version of the task.
    """
    kind = expert_kind(spec, teachers)
    if kind == "path":
        return path(env)
    if kind == "teacher":
        assert teachers is not None  # else there is no such kind
        teacher = load_teacher(teacher_file(teachers, spec), spec)
        return lambda obs, success: teacher.label(obs)
    if kind is None:
        raise ValueError(f"{spec.name} has no expert that can be asked in every state: {_why_nobody(spec, teachers)}.")
    if spec.suite == "metaworld":
        from pipeline.demonstrate.scripted import Script  # only here: other tasks need no Meta-World

        return Script(spec.env_id).act
    if spec.suite == "robodesk":
        return desk_script(spec.env_id)
    return lambda obs, success: pilot(spec.env_id, obs)


def _why_nobody(spec: TaskSpec, teachers: str | Path | None) -> str:
    """Return why a task has no expert that can be asked, and what to do."""
    if teachers is None:
        return "no script or way through a maze, and no folder of teachers was given"
    file = teacher_file(teachers, spec)
    if file.exists():  # and was passed over
        return (
            f"{file} scores {load_teacher(file, spec).notes['score']:.2f}, more than {_WORSE} below the planner's "
            f"{load_recipes()[spec.name].score:.2f}. More `steps` in a teachers.yaml may make a better one: then "
            f"{training_of(spec, file)}"
        )
    return (
        f"no script or way through a maze, and no teacher in {teachers}. For a task on MuJoCo, a game or an "
        f"environment of your own {training_of(spec, file)}"
    )
