"""Release folders in the form of the Hub, pushed when their repo ids are set -> checkpoints/publish/."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi

from pipeline import config
from pipeline.files import atomic_folder
from pipeline.hub.demos import write_demos_release
from pipeline.hub.lerobot import LeRobotForm
from pipeline.hub.push import Pushed, check_repo_id, hashes, push, write_receipt
from pipeline.hub.release import write_release
from pipeline.results import read_results
from pipeline.run.launch import run_stage
from pipeline.run.provenance import Summary
from pipeline.tasks import registry

OUT = Path("checkpoints/publish")
DEMOS = Path("datasets/demos")


def main() -> None:
    settings, tasks, summary = config.load(config.Publish), config.load(config.Tasks), Summary("publish")
    for parameter in ("repo_id", "demos_repo_id"):
        if getattr(settings, parameter) is not None:
            check_repo_id(getattr(settings, parameter), f"publish.{parameter}")
    write_release(".", read_results("."), OUT / "release", settings.repo_id, settings.demos_repo_id)
    specs = registry.get([*tasks.train, *tasks.held_out], tasks.folder)
    shown = [spec for spec in specs if (DEMOS / spec.name).is_dir()]  # a task may be learned without any
    lerobot = LeRobotForm(settings.lerobot_episodes, settings.lerobot_video_size) if settings.lerobot_episodes else None
    write_demos_release(DEMOS, shown, OUT / "demos", settings.demos_repo_id, lerobot=lerobot)

    pushed = {
        "receipt": send(OUT / "release", settings.repo_id, "publish.repo_id", settings),
        "demos_receipt": send(OUT / "demos", settings.demos_repo_id, "publish.demos_repo_id", settings),
    }
    with atomic_folder(OUT / "metrics") as folder:
        for (name, done), release in zip(pushed.items(), (OUT / "release", OUT / "demos"), strict=True):
            write_receipt(folder / f"{name}.json", done, settings.tag, hashes(release))
        summary.write(folder)


def send(release: Path, repo: str | None, parameter: str, settings: config.Publish) -> Pushed | None:
    """Push one release, if it has a repo, and say what came of it."""
    files = hashes(release)
    size = sum((release / name).stat().st_size for name in files) / 2**20
    print(f"publish: {len(files)} files, {size:.1f} MiB -> {release}", file=sys.stderr)
    if repo is None:
        print(f"publish: {parameter} is not set, so it was not pushed", file=sys.stderr)
        return None
    pushed = push(release, repo, settings.private, settings.tag, HfApi())
    news = "pushed" if pushed.new else "nothing new;"
    print(f"publish: {news} {pushed.repo} at commit {pushed.commit}", file=sys.stderr)
    return pushed


if __name__ == "__main__":
    run_stage(main)
