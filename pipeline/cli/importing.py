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
    "lerobot": "the tabular part of a LeRobot v3 data set",
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
    from pipeline.importers.episodes import import_episodes
    from pipeline.tasks import registry

    if not options.task:
        raise ValueError("say with --task which task the demonstrations are of; `eft tasks` lists them.")
    folder = own_folder(options)
    spec = registry.get([options.task], folder)[0]
    out = options.out or Path(folder or "my_tasks") / DEMOS
    if (out / spec.name / FILE).exists():
        raise ValueError(f"{out / spec.name / FILE} is there already. Remove it, or choose another folder with --out.")
    path, commit = _locate(options)
    name = f"{options.source}/{options.file}" if options.file else options.source
    report = import_episodes(_read(options, path, spec), spec, name, commit, options.successful, out)
    print(f"{report.kept} of {report.found} episodes of {spec.name}, {report.steps} steps -> {out / spec.name / FILE}")
    for entry in report.left_out[:10]:
        print(f"  left out: episode {entry['episode']}: {entry['reason']}")
    if len(report.left_out) > 10:
        print(f"  ... and {len(report.left_out) - 10} more, named in import.json beside it")
    if report.ignored:
        print(f"  not used: {', '.join(report.ignored)}")
    for note in report.notes:
        print(f"  note: {note}")


def _read(options: argparse.Namespace, path: Path, spec: TaskSpec) -> Source:
    from pipeline.importers import lerobot, minari, newt

    if options.form == "newt":
        return newt.read_demos(path, spec)
    return minari.read_demos(path, spec) if options.form == "minari" else lerobot.read_demos(path, spec, options.only)


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
    from pipeline.importers import lerobot, minari

    source = Path(options.source)
    if source.is_file():
        return source, None
    patterns = {"minari": minari.PATTERNS, "lerobot": lerobot.PATTERNS}.get(options.form)
    if patterns is not None:
        found = store.fetch(options.source, options.revision, patterns, options.file, kind="dataset")
        return found.folder, found.commit
    if not options.file:
        raise ValueError(f"say with --file which .pt file of {options.source} to read, e.g. --file walker-walk.pt.")
    kind = "model" if options.form == "newt-checkpoint" else "dataset"
    within = Path(options.file)
    found = store.fetch(options.source, options.revision, [within.name], str(within.parent).strip("."), kind=kind)
    return found.folder / within.name, found.commit
