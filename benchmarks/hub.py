"""The promises of the Hub's round trip: push, pull, stream, hostile cases, on a Hub that runs on this machine.

    python -m benchmarks.hub                          on the small untrained release of the tests
    python -m benchmarks.hub checkpoints/publish/release

The real clients talk to the server of tests/hub, which holds everything in memory: what is timed is the clients' work
and ours, not a network. Writes results/hub.json.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import claim, write

ROOT = Path(__file__).parent.parent
REPO = "me/eft"
STARTS = 5  # of `eft --help`, of which the median counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hub", description=__doc__)
    parser.add_argument("release", nargs="?", type=Path)
    given = parser.parse_args().release
    started = time.monotonic()
    serve: Any = runpy.run_path(str(ROOT / "tests/hub/server.py"))["serve"]
    with serve() as hub, tempfile.TemporaryDirectory() as cache:
        # Before the clients are imported: they read these once.
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": cache}
        release = given or small_release(Path(cache))
        size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
        claims, timings = round_trip(release, hub)
    claims |= hostile()
    timings["eft_help"] = statistics.median(seconds_of([sys.executable, "-m", "pipeline.cli", "--help"], STARTS))
    claims["eft_help_seconds"] = claim(round(timings["eft_help"], 2), 0.5, "below")
    rounded = {name: round(value, 3) for name, value in timings.items()}
    command = "python -m benchmarks.hub" + (f" {given}" if given else "")
    write("hub", command, time.monotonic() - started, claims, release_bytes=size, timings=rounded)


def small_release(folder: Path) -> Path:
    """Make the release of the tests: a small untrained model of two tasks, with an adapter."""
    from pipeline.hub.release import write_release
    from pipeline.results import read_results

    runpy.run_path(str(ROOT / "tests/hub/conftest.py"))["write_run"](folder)
    write_release(folder, read_results(folder), folder / "release", REPO)
    return folder / "release"


def round_trip(release: Path, hub: Any) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Push, push again, pull into a new agent and compare it with the folder's own."""
    import numpy as np
    from huggingface_hub import HfApi

    from pipeline.agent import Agent
    from pipeline.hub.push import hashes, push

    timings: dict[str, float] = {}

    def timed(name: str, run: Any) -> Any:
        begun = time.monotonic()
        result = run()
        timings[name] = time.monotonic() - begun
        return result

    api = HfApi()
    timed("push", lambda: push(release, REPO, private=True, tag="v1", api=api))
    timed("push_nothing_new", lambda: push(release, REPO, private=True, tag="v1", api=api))
    commits = len(hub.repos[REPO].commits) - 1  # the Hub's own first one does not count
    here = timed("load_from_folder", lambda: Agent.from_pretrained(release))
    there = timed("pull_and_load", lambda: Agent.from_pretrained(REPO, revision="v1"))
    timed("load_from_cache", lambda: Agent.from_pretrained(REPO, revision="v1"))
    actions = []
    for agent in (here, there):
        agent.reset(seed=0)
        actions.append([agent.act(np.ones(spec.obs_dim), task=name) for name, spec in agent.tasks.items()])
    equal = sum(bool(np.array_equal(a, b)) for a, b in zip(*actions, strict=True))
    card = (release / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    source = re.findall(r'Agent\.from_pretrained\("([^"]+)"\)', code)[0]
    exec(code.replace(source, REPO), {})
    files = {name: file.content for name, file in hub.repos[REPO].commits[-1].files.items()}
    differing = sum(files[name] != (release / name).read_bytes() for name in hashes(release))
    claims = {
        "commits_after_two_pushes": claim(commits, 1, "below"),
        "files_that_differ_on_the_hub": claim(differing, 0, "below"),
        "share_of_tasks_acted_bit_for_bit_alike": claim(equal / len(here.tasks), 1.0, "above"),
        "card_code_runs": claim(1, 1, "above"),
    }
    return claims, timings


def hostile() -> dict[str, dict[str, Any]]:
    """Run the hostile cases and count those that did nothing but fail clearly."""
    command = [sys.executable, "-m", "pytest", "tests/hub/test_hostile.py", "-q", "-p", "no:cacheprovider"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    return {
        "hostile_cases_refused": claim(counts.get("passed", 0), 30, "above"),
        "hostile_cases_not_refused": claim(counts.get("failed", 0) + counts.get("error", 0), 0, "below"),
    }


def seconds_of(command: list[str], repeats: int) -> list[float]:
    """Return how long each of several runs of a command took."""
    seconds = []
    for _ in range(repeats):
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - begun)
    return seconds


if __name__ == "__main__":
    main()
