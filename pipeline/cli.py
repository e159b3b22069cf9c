"""The command `eft`: look at tasks, examine one, watch a checkpoint act, choose a larger set-up."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from pipeline.tasks.spec import TaskSpec

# Torch and the simulators are imported inside the commands that need them, so that `eft --help` answers at once.

DESCRIPTION = """\
Eft pretrains a language-conditioned world model on demonstrations, finetunes it on many tasks at once,
and adapts it to tasks it has never seen. `dvc repro` runs the whole; these commands look at its parts.
"""
EXAMPLES = """\
examples:
  eft tasks                                    every task of the catalogue
  eft tasks --suite dmcontrol --tag locomotion
  eft tasks walker-run                         one task, with all its texts
  eft tasks --check                            which domains work on this machine
  eft check-task my_tasks/juggle.yaml --frame juggle.png
  eft act checkpoints/finetune/model --task walker-run --video run.mp4
  eft act checkpoints/finetune/model --task walker-run --instruction "Stand still."
  eft preset mt50 && dvc repro                 a larger set-up, written into params.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 an error to act on, 130 Ctrl-C."""
    options = build_parser().parse_args(arguments)
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`eft tasks | head`) has seen enough; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if options.debug:
            raise
        print(f"eft {options.command}: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="eft",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
    )
    version = importlib.metadata.version("eft")
    parser.add_argument("-V", "--version", action="version", version=f"eft {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    tasks = _command(commands, "tasks", list_tasks, "list tasks, or show one", "eft tasks --suite metaworld --json")
    tasks.add_argument("name", nargs="?", help="show this task with all its texts")
    tasks.add_argument("--suite", help="only tasks of this simulator, e.g. dmcontrol")
    tasks.add_argument("--split", help="only train, held_out, extra or custom ones")
    tasks.add_argument("--tag", help="only tasks with this tag, e.g. locomotion")
    tasks.add_argument("--json", action="store_true", help="print a JSON list of objects")
    tasks.add_argument("--check", action="store_true", help="start one task of each domain: which work here?")
    _add_folder(tasks)

    check = _command(
        commands, "check-task", check_task, "examine a task before you train on it", "eft check-task walker-run"
    )
    check.add_argument("task", metavar="NAME|FILE", help="a task's name, or the file of your own task")
    check.add_argument("--frame", type=Path, metavar="PNG", help="also draw its first picture")
    _add_folder(check)

    act = _command(
        commands,
        "act",
        act_in_task,
        "let a checkpoint act in a task",
        "eft act checkpoints/finetune/model --task mw-reach --episodes 5 --video reach.mp4",
    )
    act.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or user/name on the Hugging Face Hub")
    act.add_argument("--task", required=True, help="the task whose environment it acts in and is scored by")
    act.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what it is told to do, in your words (default: the task's own instruction)",
    )
    act.add_argument("--adapter", metavar="FOLDER", help="an adapter to put on, e.g. checkpoints/adapt/NAME/adapter")
    act.add_argument("--episodes", type=_count, default=1, metavar="N", help="episodes to play (default: 1)")
    act.add_argument("--video", type=Path, metavar="MP4", help="film the episodes")
    act.add_argument("--policy-only", action="store_true", help="act by the policy alone, without planning")
    act.add_argument("--seed", type=int, default=0, help="seed of the first episode, then counted up (default: 0)")
    _add_folder(act)

    preset = _command(commands, "preset", write_preset, "write a preset into params.yaml", "eft preset quickstart")
    preset.add_argument("name", nargs="?", metavar="NAME", help="the preset; without it, all are listed")
    return parser


def list_tasks(options: argparse.Namespace) -> int:
    """Print the tasks of the catalogue as a table or JSON, or one of them in full, or which domains work."""
    from pipeline.tasks import registry

    folder = _own_folder(options)
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
        print(json.dumps([{**dataclasses.asdict(spec), "domain": spec.suite} for spec in specs], indent=2))
    elif options.name:
        _print_task(specs[0])
    else:
        _print_table(specs)
    return 0


def _check_domains(specs: list[TaskSpec]) -> int:
    """Start one task of each domain and print a line for each; 2 if a domain is installed and broken."""
    from pipeline.tasks import domains

    print(f"{'domain':<14} {'tasks':>5}  {'state':<8} detail", flush=True)
    states = []
    for status in domains.check(specs):
        states.append(status.state)
        print(f"{status.suite:<14} {status.num_tasks:>5}  {status.state:<8} {status.detail}", flush=True)
    print(f"{states.count('works')} of {len(states)} domains work on this machine.")
    return 2 if "broken" in states else 0


def check_task(options: argparse.Namespace) -> int:
    """Examine one task and print what was found; 2 if something is wrong with it."""
    from pipeline import config
    from pipeline.tasks import check, registry

    is_file = options.task.endswith((".yaml", ".yml"))
    folder = _own_folder(options)
    spec = registry.load_file(options.task) if is_file else registry.get([options.task], folder)[0]
    model = config.load(config.Model) if config.PARAMS.exists() else None
    widths = (model.obs_dim, model.action_dim) if model else (None, None)
    findings = check.check_task(spec, options.frame, folder, *widths)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'}  {finding.check}: {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 2


def act_in_task(options: argparse.Namespace) -> None:
    """Play episodes of a task with a checkpoint; print each score, film them if asked."""
    from pipeline.agent import Agent
    from pipeline.play import play
    from pipeline.tasks import registry
    from pipeline.video import write_video

    spec = registry.get([options.task], _own_folder(options))[0]
    agent = Agent.from_pretrained(options.checkpoint)
    if options.adapter:
        agent.add_adapter(options.adapter)
    if options.instruction is None and spec.name not in agent.tasks:
        print(f"{options.checkpoint} was not trained on {spec.name}: it is told what the task says, {spec.text()!r}")
    scores: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        episodes = play(
            agent,
            spec,
            options.instruction,
            plan=not options.policy_only,
            seeds=range(options.seed, options.seed + options.episodes),
            render_size=224 if options.video else 0,
        )
        for episode in episodes:
            scores.append(episode.score)
            print(
                f"episode with seed {episode.seed}: score {episode.score:.3f}, "
                f"return {episode.episode_return:.1f}, {episode.length} steps",
                flush=True,
            )
            yield from episode.frames

    if options.video:
        write_video(options.video, frames(), fps=25)
        print(f"filmed in {options.video}")
    else:
        deque(frames(), maxlen=0)
    print(f"mean score {sum(scores) / len(scores):.3f} over {len(scores)} episodes of {spec.name}")


def write_preset(options: argparse.Namespace) -> None:
    """Write a preset into params.yaml and print what changed, or list the presets."""
    from pipeline import presets

    if options.name is None:
        for name, description in presets.list_presets().items():
            print(f"{name:<12} {description}")
        return
    changes = presets.apply_preset(options.name)
    for change in changes:
        print(f"{change.key}: {_brief(change.old)} -> {_brief(change.new)}")
    print(
        f"params.yaml now holds preset `{options.name}`: {len(changes)} parameters changed. Run `dvc repro`."
        if changes
        else f"params.yaml already holds preset `{options.name}`: nothing changed."
    )


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"example: {example}"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", metavar="FOLDER", help="your own task files (default: tasks.folder of params.yaml, if there is one)"
    )


def _own_folder(options: argparse.Namespace) -> str | None:
    from pipeline import config

    if options.folder is None and config.PARAMS.exists():
        return config.load(config.Tasks).folder
    return options.folder


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


def _print_task(spec: TaskSpec) -> None:
    print(spec.name)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name not in ("name", "instructions") and value not in ((), {}):
            shown = ", ".join(value) if isinstance(value, tuple) else "from episode_length" if value is None else value
            print(f"  {field.name:<15} {shown}")
    print(f"  instructions    {spec.instructions[0]}")
    for phrasing in spec.instructions[1:]:
        print(f"  {'':<15} {phrasing}")


def _brief(value: Any) -> str:
    return textwrap.shorten(json.dumps(value), 60, placeholder=" …")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
