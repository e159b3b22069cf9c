"""Do the presets dmc, mt50 and mmbench start and run on this machine? Each for a few thousand environment steps.

    python -m benchmarks.presets                              all three: an hour or two on two busy cores
    python -m benchmarks.presets --presets mt50 --evaluate    one of them, and the scores at the end

Each preset is written into a copy of the project, without the tasks whose simulators or files are missing here, with
the model's sizes as they are; small are the planner, the batches, and how long everything takes: one demonstration per
task, some updates, one episode of every task by the policy alone, then `--env-steps` more with planning. The stages
themselves run. Copies lie in .resume/presets/: a stage that is done is not run again while parameters and code are the
same, so the same command goes on where it stopped. Adds its claims to results/tasks.json.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.house import timed
from benchmarks.results import add, claim
from pipeline import config
from pipeline.files import read_json, write_json
from pipeline.presets import apply_presets
from pipeline.results import read_curves
from pipeline.run.provenance import commit
from pipeline.run.run_dir import fingerprint
from pipeline.tasks import availability, registry

ROOT = Path(__file__).parent.parent
COPIES = Path(".resume/presets")
PRESETS = {"mt50": 49, "dmc": 21, "mmbench": 200}
ENV_STEPS = 3000
MOST_GB = 16


def small(tasks: config.Tasks, env_steps: int, device: str, workers: int) -> dict[str, dict[str, Any]]:
    """Return what is smaller than in the preset."""
    longest = max(spec.episode_length for spec in registry.get(tasks.train))
    whole = len(tasks.train) * longest + env_steps  # all end one episode before anything else happens
    return {
        "demos": {"episodes": 1, "held_out_episodes": 0, "max_attempts": 2, "workers": workers},
        "planner": {"iterations": 1, "num_samples": 32, "num_policy_samples": 8, "num_elites": 8},
        "runtime": {"device": device, "threads": 1, "env_workers": 1, "trackers": []},
        "pretrain": {
            "updates": 40, "batch_size": 64, "warmup_updates": 0, "log_every": 10, "save_every": 20,
            "eval_every": 40, "eval_episodes": 1,
        },
        "finetune": {
            "env_steps": whole, "utd": 0.02, "batch_size": 64, "envs_per_task": 1, "warmup_updates": 0,
            "seeding_episodes": 1, "constraint_steps": whole, "constraint_decay": 0, "log_every": 1000,
            "save_every": max(whole // 4, 1), "eval_every": whole, "eval_episodes": 1,
        },
        "evaluate": {"episodes": 2, "open_loop_steps": [], "video_size": 0},
    }  # fmt: skip


def prepare(preset: str, env_steps: int, device: str, workers: int) -> tuple[Path, dict[str, str]]:
    """Copy today's project, write the preset and what is smaller into it; return the copy and what cannot run here."""
    copy = COPIES / preset
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("pipeline", "stages", "my_tasks", "presets"):
        shutil.rmtree(copy / name, ignore_errors=True)
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    params, extra = copy / "params.yaml", copy / "presets/small.yaml"
    shutil.copy(ROOT / "presets/quickstart.yaml", params)
    reasons: dict[str, str] = {}

    def leave_out(tasks: config.Tasks) -> dict[str, str]:
        reasons.update(availability.unavailable(registry.get([*tasks.train, *tasks.held_out])))
        return reasons

    apply_presets([preset], copy / "presets", params, leave_out)
    with extra.open("w", encoding="utf-8") as file:
        YAML().dump(small(config.load(config.Tasks, params), env_steps, device, workers), file)
    apply_presets(["small"], copy / "presets", params)
    return copy, reasons


def run(stage: str, copy: Path) -> dict[str, Any]:
    """Run a stage in the copy, unless it is done; return its seconds and peak memory in GiB."""
    noted, params = copy / f"{stage}.json", copy / "params.yaml"
    early = stage in ("teach", "demos")
    code = ("batched", "demonstrate", "tasks", "data/demos.py") if early else ("",)
    inputs = [*(copy / "pipeline" / name for name in code), copy / f"stages/{stage}.py"]
    shaping = config.read_params(params)
    del shaping["demos"]["workers"]  # which change nothing but the time
    chosen = {name: shaping[name] for name in ("tasks", "teach", "demos")} if early else shaping
    key = fingerprint([[str(chosen)]], inputs, config.load_seed(params))
    if noted.exists() and (done := read_json(noted, "python -m benchmarks.presets"))["key"] == key:
        return done
    begun = commit()
    seconds, peak = timed([sys.executable, "-m", f"stages.{stage}"], copy)
    assert seconds is not None  # it passed
    done = {"key": key, "seconds": seconds, "peak_gb": round(peak, 2), "commit": begun}
    write_json(noted, done)
    return done


def claims(copy: Path, wanted: int) -> dict[str, dict[str, Any]]:
    """Return the claims about what the stages left behind."""
    names = config.load(config.Tasks, copy / "params.yaml").train
    curves = {stage: read_curves(copy / "checkpoints" / stage / "metrics") for stage in ("pretrain", "finetune")}
    losses = {
        f"{stage}: {name}": curve.values
        for stage, found in curves.items()
        for name, curve in found.items()
        if name.startswith("train/")
    }
    finite = [name for name, values in losses.items() if all(map(math.isfinite, values))]
    played = [name for name in names if f"online/{name}" in curves["finetune"]]
    if absent := sorted(set(names) - set(played)):
        print(f"no episode online: {', '.join(absent)}", flush=True)
    if wrong := sorted(set(losses) - set(finite)):
        print(f"not finite: {', '.join(wrong)}", flush=True)
    return {
        "tasks_played_online": claim(len(played), wanted, "above"),
        "losses_finite": claim(len(finite) / len(losses), 1, "above"),
    }


def main() -> None:
    """Run the presets and add their claims to results/tasks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), help="fewer presets")
    parser.add_argument("--env-steps", type=int, default=ENV_STEPS, help=f"with planning (default: {ENV_STEPS})")
    parser.add_argument("--evaluate", action="store_true", help="the stage evaluate too, 2 episodes per task and mode")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that make demonstrations (default: 1)")
    options = parser.parse_args()
    stages = ["teach", "demos", "embed", "pretrain", "finetune", *(["evaluate"] if options.evaluate else [])]
    for preset in options.presets:
        copy, reasons = prepare(preset, options.env_steps, options.device, options.workers)
        if reasons:
            print(f"{preset}: without {len(reasons)} tasks:\n{availability.describe(reasons)}", flush=True)
        done = {stage: run(stage, copy) for stage in stages}
        seconds, peak = sum(one["seconds"] for one in done.values()), max(one["peak_gb"] for one in done.values())
        words = ["--evaluate"] * options.evaluate
        words += ["--env-steps", str(options.env_steps)] if options.env_steps != ENV_STEPS else []
        words += ["--device", options.device] if options.device != "cpu" else []
        add(
            "tasks",
            f"presets.{preset}",
            " ".join(["python -m benchmarks.presets --presets", preset, *words]),
            seconds,
            claims(copy, PRESETS[preset]) | {"peak_gb": claim(peak, MOST_GB, "below")},
            commit=done["finetune"]["commit"],  # the code of the stages, whatever was written since
            env_steps=config.load(config.Finetune, copy / "params.yaml").env_steps,
            minutes={stage: round(one["seconds"] / 60, 1) for stage, one in done.items()},
            peak_gb={stage: one["peak_gb"] for stage, one in done.items()},
            without_demonstrations=read_json(copy / "datasets/demos.json", "python -m stages.demos")["missing"],
            cannot_run_here=reasons,
        )


if __name__ == "__main__":
    main()
