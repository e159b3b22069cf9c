"""`eft import`: bring demonstrations and checkpoints of others into our forms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_folder, own_folder

if TYPE_CHECKING:
    from pipeline.importers.episodes import Source
    from pipeline.tasks.spec import TaskSpec

DEMOS = "demos"  # within the folder of the user's own tasks, where the demos stage looks for them
FORMS = {
    "newt": "demonstrations of the official Newt code, one {task}.pt",
    "minari": "a Minari data set, HDF5 or parquet",
    "lerobot": "the tabular part of a LeRobot data set, v2 or v3",
    "robomimic": "a robomimic data set, one HDF5 file",
    "plain": "a .npz or .parquet file of obs, action and reward, or a folder of them",
    "newt-checkpoint": "a multitask checkpoint of the official Newt code, .pt",
}


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    parser = add_command(
        commands,
        "import",
        import_from,
        "bring demonstrations or checkpoints of others into our forms",
        "eft import newt demos/walker-walk.pt --task walker-walk",
    )
    parser.add_argument("form", choices=FORMS, metavar="FORM", help="; ".join(f"{k}: {v}" for k, v in FORMS.items()))
    parser.add_argument("source", metavar="SOURCE", help="a file or folder, or user/name on the Hugging Face Hub")
    parser.add_argument("--file", default="", metavar="PATH", help="the file or folder within SOURCE")
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch on the Hub (default: the newest)")
    parser.add_argument("--task", metavar="NAME", help="the task that the demonstrations are of")
    parser.add_argument("--only", metavar="TEXT", help="of a LeRobot data set of several tasks, the one with this text")
    parser.add_argument(
        "--successful", action="store_true", help="every episode is known to have succeeded, though no file says so"
    )
    parser.add_argument(
        "--reward-at-end",
        action="store_true",
        help="the task itself rewards nothing but the last step, and the data hold this one reward per episode",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=(),
        metavar="NAME",
        help="what of the data the task observes, joined in this order, e.g. observation.state (default: all vectors)",
    )
    for side, means in (("low", "-1"), ("high", "1")):
        parser.add_argument(
            f"--action-{side}",
            nargs="+",
            type=float,
            metavar="X",
            help=f"what the data say where the task's action is {means}: one number, or one per dim (default: "
            f"the data set's own bounds where it tells them, else {means})",
        )
    parser.add_argument(
        "--fit-actions", action="store_true", help="take the smallest and largest action in the data for -1 and 1"
    )
    parser.add_argument(
        "--clip-actions",
        action="store_true",
        help="cut actions to these bounds, as the environment did when they were recorded",
    )
    parser.add_argument("--tasks", type=Path, metavar="JSON", help="names of a checkpoint's tasks, in its order")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: <your own tasks>/demos, or imported/NAME)"
    )
    add_folder(parser)


def import_from(options: argparse.Namespace) -> None:
    """Read, check, convert and write; print what was left out."""
    if options.form == "newt-checkpoint":
        _import_checkpoint(options)
    else:
        _import_demos(options)


def _import_demos(options: argparse.Namespace) -> None:
    from pipeline.data.demos import FILE
    from pipeline.importers.episodes import Reading, import_episodes
    from pipeline.run.run_dir import hold_output
    from pipeline.tasks import registry

    if not options.task:
        raise ValueError("say with --task which task the demonstrations are of; `eft tasks` lists them.")
    folder = own_folder(options)
    spec = registry.get([options.task], folder)[0]
    out = options.out or Path(folder or "my_tasks") / DEMOS
    with hold_output(out / spec.name, "eft import", "--out"):
        if (out / spec.name / FILE).exists():
            raise ValueError(
                f"{out / spec.name / FILE} is there already. Remove it, or choose another folder with --out."
            )
        path, commit = _locate(options)
        name = f"{options.source}/{options.file}" if options.file else options.source
        reading = Reading(
            options.successful, options.reward_at_end, options.action_low, options.action_high, options.fit_actions,
            options.clip_actions,
        )  # fmt: skip
        report = import_episodes(_read(options, path, spec), spec, name, commit, reading, out)
    print(f"{report.kept} of {report.found} episodes of {spec.name}, {report.steps} steps -> {out / spec.name / FILE}")
    for what, entries in (("left out", report.left_out), ("cut", report.cut)):
        for entry in entries[:10]:
            print(f"  {what}: episode {entry['episode']}: {entry['reason']}")
        if len(entries) > 10:
            print(f"  ... and {len(entries) - 10} more, named in import.json beside it")
    if report.ignored:
        print(f"  not used: {', '.join(report.ignored)}")
    for note in report.notes:
        print(f"  note: {note}")


def _read(options: argparse.Namespace, path: Path, spec: TaskSpec) -> Source:
    from pipeline.importers import lerobot, minari, newt, plain, robomimic

    if options.form == "newt":
        if options.features:
            raise ValueError("--features: Newt's demonstrations observe one vector, of which no part can be chosen.")
        return newt.read_demos(path, spec)
    if options.form == "lerobot":
        return lerobot.read_demos(path, spec, options.only, options.features)
    reader = {"minari": minari, "robomimic": robomimic, "plain": plain}[options.form]
    return reader.read_demos(path, spec, options.features)


def _import_checkpoint(options: argparse.Namespace) -> None:
    from pipeline.files import sha256, write_json
    from pipeline.importers.newt import import_checkpoint
    from pipeline.tasks import registry

    path, commit = _locate(options)
    out = options.out or Path("imported") / path.stem
    if out.exists():
        raise ValueError(f"{out} is there already. Remove it, or choose another folder with --out.")
    agent, left_out = import_checkpoint(path, registry.load_catalogue(own_folder(options)), options.tasks)
    agent.save_pretrained(out)
    source = {"form": options.form, "source": options.source, "file": path.name, "commit": commit}
    write_json(out / "import.json", {**source, "sha256": sha256(path), "left_out": left_out})
    print(f"{len(agent.tasks)} of {len(agent.tasks) + len(left_out)} tasks -> {out}")
    if left_out:
        print(f"  left out, since the catalogue does not have them: {', '.join(left_out)}")


def _locate(options: argparse.Namespace) -> tuple[Path, str | None]:
    """Return what to read on this machine, and the Hub's commit if it had to be downloaded."""
    from pipeline import store
    from pipeline.importers import lerobot, minari, plain

    source = Path(options.source)
    readers = {"minari": minari, "lerobot": lerobot, "plain": plain}
    patterns = readers[options.form].PATTERNS if options.form in readers else None
    if source.is_file() and options.form in ("minari", "lerobot"):
        first = readers[options.form].PATTERNS[0]
        raise ValueError(f"{source} is a file; a data set of {options.form} is a folder that holds {first}.")
    if source.is_file():
        return source, None
    if patterns is not None:
        found = store.fetch(options.source, options.revision, patterns, options.file, kind="dataset")
        return found.folder, found.commit
    if not options.file:
        raise ValueError(f"say with --file which file of {options.source} to read, e.g. --file walker-walk.pt.")
    kind = "model" if options.form == "newt-checkpoint" else "dataset"
    within = Path(options.file)
    found = store.fetch(options.source, options.revision, [within.name], str(within.parent).strip("."), kind=kind)
    return found.folder / within.name, found.commit
