"""The promises of the main job: a fresh clone, a new environment, `make repro`, `make test`, and what came out.

    python -m benchmarks.house            clones HEAD into a temporary folder; takes install, run and tests
    python -m benchmarks.house --here     reads the figures of the run in this folder; only `dvc repro` is timed anew
    python -m benchmarks.house --run      takes install and run alone; the claims about the tests stay as they are
    python -m benchmarks.house --tests    times the tests alone, in a fresh clone; the other claims stay as they are

Writes results/house.json, where `commits` says what each part was measured at.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import RESULTS, claim, write
from pipeline.files import read_json
from pipeline.run.provenance import commit

ROOT = Path(__file__).parent.parent
TEST_MINUTES = {"unit_minutes": 1, "test_minutes": 10}
_SAMPLE_SECONDS = 2.0


class PeakMemory:
    """Samples the memory of a process and all its descendants; shared pages are counted once (PSS)."""

    def __init__(self, pid: int):
        self.peak_gb = 0.0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in GiB."""
        self._ended.set()
        self._thread.join()
        return self.peak_gb

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.AccessDenied):
                        continue
            except psutil.NoSuchProcess:
                return
            self.peak_gb = max(self.peak_gb, total / 2**30)


def timed(command: list[str], folder: Path, must_pass: bool = True) -> tuple[float | None, float]:
    """Run a command, show what it prints, and return seconds (None if it failed) and peak memory in GiB.

    Raises:
        SystemExit: it failed although it must pass.
    """
    print(f"> {' '.join(command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder)
    memory = PeakMemory(process.pid)
    code = process.wait()
    peak = memory.stop()
    if code and must_pass:
        sys.exit(f"`{' '.join(command)}` failed with exit code {code}")
    return None if code else round(time.monotonic() - started, 2), peak


def minutes(seconds: float | None) -> float | None:
    """Return seconds as minutes, None staying None."""
    return None if seconds is None else round(seconds / 60, 2)


def scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the claims about scores, from what the run in `folder` wrote."""
    found = read_json(folder / "checkpoints/evaluate/metrics/scores.json", "dvc repro evaluate")
    mean = found["mean"]
    best = max(mean["finetune"][mode]["score"] for mode in ("policy", "plan"))
    claims = {
        "pretrained_policy_score": claim(mean["pretrain"]["policy"]["score"], 0.5, "above"),
        "finetuned_score": claim(best, 0.7, "above"),
        "finetuned_minus_pretrained": claim(
            round(best - max(mean["pretrain"][mode]["score"] for mode in ("policy", "plan")), 4), 0.0, "above"
        ),
    }
    for path in sorted(folder.glob("checkpoints/adapt/*/metrics/summary.json")):
        summary = read_json(path, "dvc repro adapt")
        # Clearly above: the whole interval lies above the zero-shot mean.
        gain = summary["adapted"]["low"] - summary["zero_shot"]["score"]
        claims[f"adapted_low_minus_zero_shot.{summary['task']}"] = claim(round(gain, 4), 0.01, "above")
    for pair in found["pairs"]:
        (aa, ab), (ba, bb) = pair["scores"]
        first, second = pair["tasks"]
        # Told b, the agent scores as on b: well as b, and badly as a.
        claims[f"instruction.{pair['mode']}.{first}.told_other"] = claim(round(aa - ba, 4), 0.2, "above")
        claims[f"instruction.{pair['mode']}.{second}.told_other"] = claim(round(bb - ab, 4), 0.2, "above")
    return claims


def main() -> None:
    """Measure and write results/house.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clone", type=Path, help="an empty or missing folder to clone into and keep; default: a temporary one"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--here", action="store_true", help="read the run in this folder instead of making a new one")
    part.add_argument("--run", action="store_true", help="take install and run alone and keep the claims about tests")
    part.add_argument("--tests", action="store_true", help="time the tests alone and keep the other claims")
    options = parser.parse_args()
    here, run_alone, tests_alone = options.here, options.run, options.tests
    started = time.monotonic()
    kept = read_json(RESULTS / "house.json", "python -m benchmarks.house") if run_alone or tests_alone else {}
    claims: dict[str, dict[str, Any]] = {
        name: found for name, found in kept.get("claims", {}).items() if tests_alone or name in TEST_MINUTES
    }
    commits: dict[str, str | None] = kept.get("commits", {})
    with tempfile.TemporaryDirectory(prefix="eft-house-") as temporary:
        folder = ROOT if here else options.clone or Path(temporary) / "eft"
        seconds: dict[str, float | None] = kept.get("timings", {})
        if not here:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
            seconds["install"], _ = timed(["make", ".venv/bin/.installed"], folder)
        if not here and not tests_alone:
            seconds["repro"], peak = timed(["make", "repro"], folder)
            claims["repro_minutes"] = claim(minutes(seconds["repro"]), 25, "below")
            claims["repro_peak_memory_gb"] = claim(round(peak, 2), 6, "below")
        if not tests_alone:
            seconds["repro_nothing_to_do"], _ = timed([str(folder / ".venv/bin/dvc"), "repro", "--quiet"], folder)
            claims["repro_nothing_to_do_seconds"] = claim(seconds["repro_nothing_to_do"], 5, "below")
            claims |= scores(folder)
            commits["run"] = commit()
        if not here and not run_alone:
            for name, target in TEST_MINUTES.items():
                command = name.removesuffix("_minutes")
                seconds[command], _ = timed(["make", command], folder, must_pass=False)
                claims[name] = claim(minutes(seconds[command]), target, "below")
            commits["tests"] = commit()
    write(
        "house",
        "python -m benchmarks.house"
        + (" --here" if here else " --run" if run_alone else " --tests" if tests_alone else ""),
        time.monotonic() - started,
        claims,
        timings=seconds,
        commits=commits,
    )


if __name__ == "__main__":
    main()
