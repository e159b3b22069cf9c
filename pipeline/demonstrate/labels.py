"""Labels where the learner goes: experts say what they would do in the states that its own actions lead to.

Source: DAgger (arXiv 1011.0686).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline import config
from pipeline.demonstrate.experts import expert_kind, open_expert
from pipeline.demonstrate.paths import RUNNER, needs_runner
from pipeline.demonstrate.teacher import TEACHERS, load_teacher, teacher_file
from pipeline.run.ranks import Ranks
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec


def who_labels(specs: Sequence[TaskSpec], teacher: config.Teacher) -> dict[str, str] | None:
    """Return who labels each of the tasks, `scripted` say, without those that nobody can; None where it is off."""
    if teacher == "off":
        return None
    return {spec.name: kind for spec in specs if (kind := expert_kind(spec, TEACHERS)) is not None}


def teachers_of(specs: Sequence[TaskSpec], teacher: config.Teacher) -> list[Path]:
    """Return the files of the teachers that label these tasks, or run through their mazes: inputs of the run."""
    kinds = who_labels(specs, teacher) or {}
    files = [teacher_file(TEACHERS, spec) for spec in specs if kinds.get(spec.name) == "teacher"]
    ran = any(kinds.get(spec.name) == "path" and needs_runner(spec) for spec in specs)
    return [*files, RUNNER] if ran else files


def find_labels(
    label: str, specs: Sequence[TaskSpec], teacher: config.Teacher, ranks: Ranks | None = None
) -> Labels | None:
    """Return the experts of a run, and say on stderr which tasks they label; None where nobody labels any.

    Args:
        label: of the run, before what is said.
        specs: its tasks.
        teacher: `finetune.teacher`.
        ranks: its processes, which all call this.

    Raises:
        ValueError: a teacher is damaged, or of another version of its task.
        RuntimeError: the processes see different teachers.
    """
    kinds, ranks = who_labels(specs, teacher), ranks or Ranks()
    if kinds is None:
        return None
    ranks.check_same("the experts that label", kinds)
    for spec in specs:
        if kinds.get(spec.name) == "teacher":
            load_teacher(teacher_file(TEACHERS, spec), spec)  # a wrong one is refused before anything is collected
    if ranks.is_main:
        by: dict[str, list[str]] = {}
        for spec in specs:
            by.setdefault(kinds.get(spec.name, "nobody"), []).append(spec.name)
        told = "; ".join(f"{', '.join(names)} by {kind}" for kind, names in by.items())
        told += f" (no script, and no good teacher in {TEACHERS}: `eft tasks --experts`)" if "nobody" in by else ""
        print(f"{label}: what is done is labelled, in {told}", file=sys.stderr)
    return Labels(kinds, partial(open_expert, teachers=TEACHERS)) if kinds else None
