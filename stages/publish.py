"""The release folder in the form of the Hub, pushed when publish.repo_id is set -> checkpoints/publish/."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi

from pipeline import config, hub
from pipeline.files import atomic_folder, write_json
from pipeline.report.results import read_results
from pipeline.train.runtime import Summary, run_stage

OUT = Path("checkpoints/publish")


def main() -> None:
    settings, summary = config.load(config.Publish), Summary("publish")
    if settings.repo_id is not None:
        hub.check_repo_id(settings.repo_id)
    release = OUT / "release"
    hub.write_release(".", read_results("."), release, settings.repo_id)
    files = hub.hashes(release)
    size = sum((release / name).stat().st_size for name in files) / 2**20
    print(f"publish: {len(files)} files, {size:.1f} MiB -> {release}", file=sys.stderr)

    pushed = None
    if settings.repo_id is None:
        print("publish: publish.repo_id is not set, so nothing was pushed", file=sys.stderr)
    else:
        pushed = hub.push(release, settings, HfApi())
        news = "pushed" if pushed.new else "nothing new;"
        print(f"publish: {news} {pushed.repo} at commit {pushed.commit}", file=sys.stderr)

    with atomic_folder(OUT / "metrics") as folder:
        receipt = {
            "repo": pushed.repo if pushed else None,
            "commit": pushed.commit if pushed else None,
            "tag": settings.tag if pushed else None,
            "files": files,
        }
        write_json(folder / "receipt.json", receipt)
        summary.write(folder)


if __name__ == "__main__":
    run_stage(main)
