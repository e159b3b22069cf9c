"""`eft tasks` and `eft check-task`: look at the catalogue, examine a task."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_folder, find_task, own_folder

if TYPE_CHECKING:
    from pipeline.tasks.spec import TaskSpec


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    tasks = add_command(commands, "tasks", list_tasks, "list tasks, or show one", "eft tasks --suite metaworld --json")
    tasks.add_argument("name", nargs="?", help="show this task with all its texts")
    tasks.add_argument("--suite", help="only tasks of this simulator, e.g. dmcontrol")
    tasks.add_argument("--split", help="only train, held_out, extra or custom ones")
    tasks.add_argument("--tag", help="only tasks with this tag, e.g. locomotion")
    tasks.add_argument("--json", action="store_true", help="print a JSON list of objects")
    tasks.add_argument(
        "--experts", action="store_true", help="list who demonstrates and labels each task, and how well"
    )
    tasks.add_argument("--check", action="store_true", help="start one task of each domain: which work here?")
    add_folder(tasks)

    check = add_command(
        commands, "check-task", check_task, "examine a task before you train on it", "eft check-task walker-run"
    )
    check.add_argument("task", metavar="NAME|FILE", help="a task's name, or the file of your own task")
    check.add_argument(
        "--frame",
        type=Path,
        metavar="PNG",
        help="where its first image goes (default: the folder of temporary files)",
    )
    add_folder(check)


def list_tasks(options: argparse.Namespace) -> int:
    """Print the tasks of the catalogue as a table or JSON, or one of them in full, or which domains work."""
    from pipeline.tasks import registry

    folder = own_folder(options)
    specs = registry.get([options.name], folder) if options.name else [*registry.load_catalogue(folder).values()]
    for key, wanted, values in (
        ("suite", options.suite, lambda spec: (spec.suite,)),
        ("split", options.split, lambda spec: (spec.split,)),
        ("tag", options.tag, lambda spec: spec.tags),
    ):
        if wanted is not None:
            specs = _choose(specs, key, wanted, values)
    if options.check:
        return _check_domains(specs)
    if options.json:
        print(json.dumps([{**spec.to_dict(), "domain": spec.suite} for spec in specs], indent=2))
    elif options.experts:
        _print_experts(specs)
    elif options.name:
        _print_task(specs[0], folder)
    else:
        _print_table(specs)
    return 0


def _check_domains(specs: list[TaskSpec]) -> int:
    """Start one task of each domain and print a line for each; 2 if a domain is installed and broken."""
    from pipeline.tasks import availability

    print(f"{'domain':<14} {'tasks':>5}  {'state':<8} detail", flush=True)
    states = []
    for status in availability.check(specs):
        states.append(status.state)
        print(f"{status.suite:<14} {status.num_tasks:>5}  {status.state:<8} {status.detail}", flush=True)
    print(f"{states.count('works')} of {len(states)} domains work on this machine.")
    return 2 if "broken" in states else 0


def check_task(options: argparse.Namespace) -> int:
    """Examine one task and print what was found; 2 if something is wrong with it."""
    from pipeline import config
    from pipeline.tasks import check

    folder = own_folder(options)
    spec = find_task(options.task, folder)
    limits = (None, None, None)
    if config.PARAMS.exists():
        model = config.load(config.Model)
        limits = (model.obs_dim, model.action_dim, config.load(config.Planner).horizon)
    frame = options.frame or Path(tempfile.gettempdir()) / f"eft-{spec.name}.png"
    findings = check.check_task(spec, frame, folder, *limits)
    if options.frame is None:  # nobody asked for an image, and training needs none
        findings = [one._replace(passed=True) if one.check == "image" else one for one in findings]
    for finding in findings:
        state = "FAIL" if not finding.passed else "warn" if finding.doubtful else "ok  "
        print(f"{state}  {finding.check}: {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 2


def _choose(
    specs: list[TaskSpec], key: str, wanted: str, values: Callable[[TaskSpec], tuple[str, ...]]
) -> list[TaskSpec]:
    from pipeline import config

    known = sorted({value for spec in specs for value in values(spec)})
    if wanted not in known:
        raise ValueError(
            f"no such task has the {key} `{wanted}`.{config.near(wanted, known)} There are: {', '.join(known)}."
        )
    return [spec for spec in specs if wanted in values(spec)]


def _print_table(specs: list[TaskSpec]) -> None:
    print(f"{'name':<32} {'suite':<14} {'split':<9} {'actions':>7} {'length':>6}  instruction")
    for spec in specs:
        instruction = textwrap.shorten(spec.instructions[0], 60, placeholder=" …")
        print(
            f"{spec.name:<32} {spec.suite:<14} {spec.split:<9} {spec.action_dim:>7} {spec.episode_length:>6}  "
            f"{instruction}"
        )
    print(f"{len(specs)} tasks. `eft tasks NAME` shows one with all its texts.")


def _print_experts(specs: list[TaskSpec]) -> None:
    from pipeline.demonstrate.experts import known_expert

    print(f"{'name':<32} {'expert':<9} {'score':>5}  labels")
    for spec in specs:
        who = known_expert(spec)
        score = "" if who is None or who.score is None else f"{who.score:.2f}"
        print(f"{spec.name:<32} {who.kind if who else 'nobody':<9} {score:>5}  {'yes' if who and who.labels else 'no'}")
    print(
        f"{len(specs)} tasks. Teachers are those of checkpoints/teach, else those that come with Eft (teach.shipped); "
        "where there is no score, the expert is a script or follows the way, or was not measured "
        "(docs/reference/experts.md)."
    )


def _print_task(spec: TaskSpec, folder: str | None) -> None:
    from pipeline.data.demos import FILE
    from pipeline.demonstrate.experts import known_expert

    print(spec.name)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name == "discount" and value is None:
            value = "from episode_length"
        if field.name not in ("name", "instructions") and value not in ((), {}, None):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            print(f"  {field.name:<15} {shown}")
    print(f"  instructions    {spec.instructions[0]}")
    for phrasing in spec.instructions[1:-1]:
        print(f"  {'':<15} {phrasing}")
    if len(spec.instructions) > 1:
        print(f"  {'for evaluation':<15} {spec.instructions[-1]}")
    who = known_expert(spec)
    if who is None:
        told = (
            f"nobody yet; `eft teach {spec.name}` trains a teacher to look at, in taught/, and `dvc repro` one that "
            "demonstrates and labels if teachers.yaml among your own task files names the task"
        )
    else:
        score = "" if who.score is None else f", scores {who.score:.2f}"
        told = f"{who.kind}{score}; it demonstrates{' and labels' if who.labels else ', and cannot label'}"
    print(f"  expert          {told}")
    own = Path(folder or "", "demos", spec.name, FILE)
    if folder and own.exists():
        print(f"  demonstrations  {own}: your own, so the expert plays none, and labels only if it played these")
