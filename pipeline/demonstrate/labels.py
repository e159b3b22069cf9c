"""Labels where the learner goes: experts say what they would do in the states that its own actions lead to.

Source: DAgger (arXiv 1011.0686).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline import config
from pipeline.data.episode import Episode
from pipeline.demonstrate.experts import expert_kind, open_expert
from pipeline.demonstrate.paths import RUNNER, needs_runner
from pipeline.demonstrate.teacher import TEACHERS, load_teacher, teacher_file
from pipeline.run.ranks import Ranks
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import TaskSpec

Methods = Mapping[str, Collection[str]]  # by task, who played its demonstrations; nobody where there are none


def methods_of(demonstrations: Mapping[str, Sequence[Episode]], ranks: Ranks | None = None) -> Methods:
    """Return who played each task's demonstrations, the same on all processes of a run, of which rank 0 has them."""
    found = {task: sorted({episode.method for episode in episodes}) for task, episodes in demonstrations.items()}
    return found if ranks is None else ranks.from_main(found)


def who_labels(specs: Sequence[TaskSpec], teacher: config.Teacher, methods: Methods) -> dict[str, str] | None:
    """Return who labels each of the tasks, `scripted` say, without those that nobody does; None where it is off.

    Demonstrations by somebody else, the user's own say, are not labelled by an expert: two would be imitated in turns.
    """
    if teacher == "off":
        return None
    kinds = {spec.name: expert_kind(spec, TEACHERS) for spec in specs}
    return {task: kind for task, kind in kinds.items() if kind is not None and set(methods.get(task, ())) <= {kind}}


def teachers_of(specs: Sequence[TaskSpec], teacher: config.Teacher, methods: Methods) -> list[Path]:
    """Return the files of the teachers that label these tasks, or run through their mazes: inputs of the run."""
    kinds = who_labels(specs, teacher, methods) or {}
    files = [teacher_file(TEACHERS, spec) for spec in specs if kinds.get(spec.name) == "teacher"]
    ran = any(kinds.get(spec.name) == "path" and needs_runner(spec) for spec in specs)
    return [*files, RUNNER] if ran else files


def find_labels(
    label: str, specs: Sequence[TaskSpec], teacher: config.Teacher, methods: Methods, ranks: Ranks | None = None
) -> Labels | None:
    """Return the experts of a run, and say on stderr which tasks they label; None where nobody labels any.

    Args:
        label: of the run, before what is said.
        specs: its tasks.
        teacher: `finetune.teacher`.
        methods: who played the demonstrations that are imitated as well.
        ranks: its processes, which all call this.

    Raises:
        ValueError: a teacher is damaged, or of another version of its task.
        RuntimeError: the processes see different teachers.
    """
    kinds, ranks = who_labels(specs, teacher, methods), ranks or Ranks()
    if kinds is None:
        return None
    ranks.check_same("the experts that label", kinds)
    for spec in specs:
        if kinds.get(spec.name) == "teacher":
            load_teacher(teacher_file(TEACHERS, spec), spec)  # a wrong one is refused before anything is collected
    if ranks.is_main:
        by: dict[str, list[str]] = {}
        for spec in specs:
            by.setdefault(kinds.get(spec.name) or _nobody(spec, methods), []).append(spec.name)
        told = "; ".join(f"{', '.join(names)} by {kind}" for kind, names in by.items())
        print(f"{label}: what is done is labelled, in {told}", file=sys.stderr)
    return Labels(kinds, partial(open_expert, teachers=TEACHERS)) if kinds else None


def _nobody(spec: TaskSpec, methods: Methods) -> str:
    """Return why nobody labels a task."""
    kind = expert_kind(spec, TEACHERS)
    if kind is None:
        return f"nobody (no script, and no good teacher in {TEACHERS}: `eft tasks --experts`)"
    played = ", ".join(methods[spec.name])
    return f"nobody (its demonstrations are by {played}, its expert is {kind}: two would be imitated in turns)"
