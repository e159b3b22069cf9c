"""`eft pull`, `eft push`, `eft info`: what lies on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command

if TYPE_CHECKING:
    from pipeline.hub.push import Difference
    from pipeline.store import Found

RELEASE = Path("checkpoints/publish/release")
PULLED = "pulled.json"


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    pull = add_command(
        commands, "pull", pull_repo, "download a checkpoint or demonstrations", "eft pull user/name --to downloads/name"
    )
    pull.add_argument("repo", metavar="REPO", help="user/name on the Hugging Face Hub")
    _add_revision(pull)
    pull.add_argument("--dataset", action="store_true", help="the repo is a data set of demonstrations")
    pull.add_argument("--to", type=Path, metavar="FOLDER", help="copy it there (default: it stays in the Hub's cache)")

    push = add_command(
        commands,
        "push",
        push_folder,
        "make a repo on the Hub hold exactly a release folder",
        "eft push --repo user/name --tag v1 --dry-run",
    )
    push.add_argument(
        "folder", nargs="?", type=Path, default=RELEASE, metavar="FOLDER", help=f"the release (default: {RELEASE})"
    )
    push.add_argument("--repo", metavar="REPO", help="user/name (default: the one in params.yaml)")
    push.add_argument("--tag", help="a version to put on the commit, e.g. v1")
    push.add_argument("--public", action="store_true", help="a new repo is for everyone to see (default: private)")
    push.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")

    info = add_command(commands, "info", show_info, "show sizes, tasks and scores of a release", "eft info user/name")
    info.add_argument("repo", metavar="REPO", help="user/name on the Hub, or a folder")
    _add_revision(info)
    info.add_argument("--dataset", action="store_true", help="the repo is a data set of demonstrations")


def pull_repo(options: argparse.Namespace) -> None:
    """Download one commit of a repo, checked; print where it lies. With --to, pulled.json says what was pulled."""
    found = _fetch(options)
    if found.commit is None:
        raise ValueError(f"{options.repo} is a folder on this machine: there is nothing to pull.")
    _check(found.folder, options.dataset)
    if options.to:
        _copy(found, options)
    print(f"{options.repo} at commit {found.commit} -> {options.to or found.folder}")


def _copy(found: Found, options: argparse.Namespace) -> None:
    """Copy what was pulled into a folder, in the place of what an earlier pull put there, and of nothing else."""
    from pipeline.files import add_files, read_json, write_json
    from pipeline.hub.push import hashes
    from pipeline.store import listed, sha256

    folder, path = options.to, options.to / PULLED
    if folder.exists() and not path.is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists, and no pull made it: it is left alone. Choose another folder.")
    before = read_json(path, "eft pull").get("files", {}) if path.is_file() else {}
    with add_files(folder, last=PULLED if options.dataset else "tasks.json") as partial:
        for name in listed(found.folder, _files(options)):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.folder / name, partial / name)
        files = hashes(partial)
        record = {"repo": options.repo, "revision": options.revision, "commit": found.commit, "files": files}
        write_json(partial / PULLED, record)
    for name in set(before) - set(files):  # of the earlier commit alone; kept if it was changed since
        old = folder / name
        inside = old.resolve().is_relative_to(folder.resolve())
        if inside and old.is_file() and sha256(old) == before[name]:
            old.unlink()


def push_folder(options: argparse.Namespace) -> None:
    """Push a release folder, or show what would be pushed. A receipt is written beside the folder."""
    from huggingface_hub import HfApi

    from pipeline.hub.push import compare, hashes, kind_of, push, write_receipt

    repo = options.repo or _repo_of_params(kind_of(options.folder))
    api = HfApi()
    if options.dry_run:
        _print_difference(compare(options.folder, repo, api))
        return
    pushed = push(options.folder, repo, private=not options.public, tag=options.tag, api=api)
    receipt = options.folder.with_name(f"{options.folder.name}.receipt.json")
    write_receipt(receipt, pushed, options.tag, hashes(options.folder))
    news = "pushed" if pushed.new else "nothing new:"
    print(f"{news} {pushed.repo} at commit {pushed.commit}; receipt: {receipt}")


def show_info(options: argparse.Namespace) -> None:
    """Print what a release holds: sizes, tasks, scores, adapters."""
    found = _fetch(options)
    print(f"{options.repo}{f' at commit {found.commit}' if found.commit else ''}")
    if options.dataset or not (found.folder / "tasks.json").is_file():
        _print_demos(found.folder)
    else:
        _print_model(found.folder)


def _add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch (default: the newest)")


def _fetch(options: argparse.Namespace) -> Found:
    from pipeline import store

    kind = "dataset" if options.dataset else "model"
    return store.fetch(options.repo, options.revision, _files(options), kind=kind)


def _files(options: argparse.Namespace) -> list[str]:
    from pipeline import store

    return store.DEMOS_FILES if options.dataset else store.RELEASE_FILES


def _check(folder: Path, dataset: bool) -> None:
    from pipeline import store

    if dataset:
        from pipeline.data.demos import FILE, read_episodes

        for path in sorted(folder.glob(f"*/{FILE}")):
            read_episodes(path, "whoever published it")
    else:
        store.read_checkpoint(folder)


def _repo_of_params(kind: str) -> str:
    from pipeline import config

    settings = config.load(config.Publish) if config.PARAMS.exists() else None
    parameter = "repo_id" if kind == "model" else "demos_repo_id"
    repo = getattr(settings, parameter, None)
    if repo is None:
        raise ValueError(f"say where to with --repo user/name, or set publish.{parameter} in params.yaml.")
    return repo


def _print_difference(plan: Difference) -> None:
    state = f"at commit {plan.head[:12]}" if plan.head else "not there yet"
    print(f"{plan.kind} {plan.repo}, {state}; nothing was sent. A push would")
    for name, size in plan.send.items():
        print(f"  send    {name}  ({_bytes(size)})")
    for name in plan.delete:
        print(f"  delete  {name}")
    total = _bytes(sum(plan.send.values()))
    same = f"{len(plan.same)} files are there already"
    print(f"  in all: {len(plan.send)} files, {total}; {same}" if plan.send or plan.delete else f"  do nothing: {same}")


def _print_model(folder: Path) -> None:
    from pipeline import store
    from pipeline.files import read_json

    checkpoint = store.read_checkpoint(folder)
    parameters = sum(p.numel() for name, p in checkpoint.model.named_parameters() if not name.startswith("target_"))
    sizes = checkpoint.model.config
    print(f"  parameters    {parameters:,} (+ target Q), {_bytes((folder / 'model.safetensors').stat().st_size)}")
    if (cluster := checkpoint.columns.get("cluster")) is not None:
        copied = ", ".join(sizes.clusters.parts) if sizes.clusters else ""
        print(f"  clusters      {int(cluster.max()) + 1}, each with its own {copied}")
        for number in sorted(set(cluster.tolist())):
            own = [spec.name for spec, one in zip(checkpoint.specs, cluster.tolist(), strict=True) if one == number]
            print(f"    {number:<12}{_plain(', '.join(own))}")
    print(f"  widths        obs {sizes.obs_dim}, action {sizes.action_dim}, latent {sizes.latent_dim}")
    print(f"  text encoder  {_plain(checkpoint.embeddings.encoder)}")
    adapters = sorted(path.parent.name for path in folder.glob("adapters/*/task.json"))
    print(f"  adapters      {_plain(', '.join(adapters)) or 'none'}")
    path = folder / "metrics.json"
    metrics, missing, reason = {}, False, "it names no evaluation of the task"
    if path.is_file():
        metrics = read_json(path, "dvc repro publish")
        if _evaluated(metrics) != checkpoint.base:
            metrics, reason = {}, "metrics.json is of other weights"
    else:
        reason = "there is no metrics.json, which a release has (`dvc repro evaluate publish`)"
    print(f"\n  {'task':<32} {'actions':>7} {'length':>6}  {'policy':>6}  {'planned':>7}")
    for spec in checkpoint.specs:
        shown = [_score(metrics, mode, spec.name) for mode in ("policy", "plan")]
        missing |= "-" in shown
        print(f"  {spec.name:<32} {spec.action_dim:>7} {spec.episode_length:>6}  {shown[0]:>6}  {shown[1]:>7}")
    if missing:
        print(f"  -  no score: {reason}")


def _score(metrics: Any, mode: str, task: str) -> str:
    try:
        return f"{float(metrics['scores']['models']['finetune'][mode][task]['score']):.3f}"
    except (KeyError, TypeError, ValueError):
        return "-"


def _evaluated(metrics: Any) -> str | None:
    """The SHA-256 of the weights whose scores these are."""
    try:
        return metrics["scores"]["weights"]["finetune"]
    except (KeyError, TypeError):
        return None


def _print_demos(folder: Path) -> None:
    from pipeline.hub.demos import summary

    rows = summary(folder)
    if not rows:
        raise ValueError(f"{folder} holds neither a checkpoint nor demonstrations (`--dataset` for a data set's repo).")
    print(f"\n  {'task':<32} {'episodes':>8}  {'size':>10}")
    for task, episodes, size in rows:
        print(f"  {_plain(task):<32} {episodes:>8}  {_bytes(size):>10}")


def _plain(text: str) -> str:
    """Make a text from elsewhere safe for a terminal, which obeys control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
