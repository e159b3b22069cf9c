"""The promises about long runs: several processes, saves, overlap, memory.

    python -m benchmarks.distributed                  measures everything
    python -m benchmarks.distributed saves overlap    measures some of it; what else is in the file stays, each figure
                                                      with the commit it was measured at

Writes results/distributed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from benchmarks.results import RESULTS, claim, write
from pipeline import config
from pipeline.files import read_json
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.learner_state import state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.run.provenance import commit
from pipeline.run.ranks import Ranks
from pipeline.run.saves import Saves
from pipeline.tasks import registry
from pipeline.tasks.vector import VectorEnv

Claims = dict[str, dict[str, Any]]
ROOT = Path(__file__).parent.parent


def ranks(_: argparse.Namespace) -> Claims:
    """Learn 10 updates from the same batches as one process and as two, online, with uneven shares."""
    # The two are forked: the threads of this process, which they lack, must not have been started.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _learn_share(folder, None)
        debug_launcher(_learn_as_one_of_two, (folder,), num_processes=2)
        alone, first, second = (load_file(f"{folder}/{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    different = sum(not torch.equal(value, second[name]) for name, value in first.items())
    distance = max(float((value.double() - first[name].double()).abs().mean()) for name, value in alone.items())
    return {
        "tensors_that_differ_between_ranks": claim(different, 0, "below"),
        "mean_distance_from_one_process": claim(distance, 1e-6, "below"),
    }


def _learn_as_one_of_two(folder: str) -> None:
    _learn_share(folder, Accelerator(cpu=True))


def _learn_share(folder: str, accelerator: Accelerator | None) -> None:
    group = Ranks(accelerator)
    learner = Learner(make_model(), make_table(), LEARNING, ranks=group)
    sizes = group.shares(9, [1] * group.count)
    mine = slice(sum(sizes[: group.rank]), sum(sizes[: group.rank + 1]))
    for step in range(10):
        batch = make_batch(learner.table, batch_size=9, seed=step)
        draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(step))
        learner.update(batch.take(mine), "online", draws.take(mine))
    save_file(state_tensors(learner), f"{folder}/{group.count}-{group.rank}.safetensors")


def saves(options: argparse.Namespace) -> Claims:
    """Fill a replay in memory-mapped files and save every `--new` transitions; the last three saves count.

    The loop waits until all is copied; a save has taken its time when it is whole. `replay_capacity` does not count:
    a save copies what is new.
    """
    sizes, planner = config.load(config.Model), config.load(config.Planner)
    length = 500
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        capacity = (options.transitions // length + 2 * options.new // length) * (length + 1)
        replay = ReplayBuffer(capacity, sizes.obs_dim, sizes.action_dim, planner.horizon, folder=folder / "transitions")
        learner = Learner(make_model(sizes, fill=False), make_table(sizes), LEARNING)
        target, times, waits, busy = Saves(folder / "saves", keep=2), [], [], []
        draw = torch.Generator().manual_seed(0)
        obs = torch.randn(length + 1, sizes.obs_dim, generator=draw)
        action, reward = torch.rand(length, sizes.action_dim, generator=draw), torch.randn(length, generator=draw)
        while replay.num_transitions < options.transitions:
            for _ in range(options.new // length):
                replay.add(obs, action, reward, False, 0)
            started, started_busy = time.perf_counter(), time.thread_time()
            target.save(replay.num_added, state_tensors(learner), ({}, {}), {}, replay)
            waits.append(time.perf_counter() - started)
            busy.append(time.thread_time() - started_busy)
            target.finish()
            times.append(time.perf_counter() - started)
        written = sum(file.stat().st_size for file in (folder / "saves").rglob("*.safetensors"))
        learned = sum(tensor.nbytes for tensor in state_tensors(learner).values())
    at = f"at_{options.transitions // 10**6}m_transitions"
    return {
        f"seconds_waited_per_save_{at}": {
            **claim(round(statistics.median(waits[-3:]), 3), 0.2, "below"),
            "processor_seconds": round(statistics.median(busy[-3:]), 3),
            "new_transitions_per_save": options.new,
            "mb_copied": round((4 * (sizes.obs_dim + sizes.action_dim + 1) * options.new + learned) / 1e6),
            "first_save_seconds": round(waits[0], 3),
        },
        f"seconds_per_save_{at}": {
            **claim(round(statistics.median(times[-3:]), 2), 10, "below"),
            "new_transitions_per_save": options.new,
            "first_save_seconds": round(times[0], 2),
            "gib_kept_on_disk": round(written / 2**30, 2),
        },
    }


def overlap(options: argparse.Namespace) -> Claims:
    """Step environments in two workers and learn: one after the other, and at once; interleaved, same work."""
    sizes, planner = config.load(config.Model), config.load(config.Planner)
    torch.set_num_threads(1)
    specs = registry.get(["walker-walk", "cheetah-run"]) * 4
    learner = Learner(make_model(sizes, fill=False), make_table(sizes), LEARNING)
    actor = Actor(learner.model, learner.table, planner)
    actor.reset(len(specs), seed=0)
    batch, draw = make_batch(learner.table, sizes, 64, planner.horizon), torch.Generator().manual_seed(0)
    rows = torch.zeros(len(specs), dtype=torch.int64)
    found: dict[bool, list[float]] = {False: [], True: []}
    with VectorEnv(specs, sizes.obs_dim, sizes.action_dim, 0, 2) as envs:
        obs = envs.reset()
        for number in range(2 * options.loops):
            at_once = number % 2 == 1
            action = actor.act(torch.from_numpy(obs), rows, plan=False).numpy()
            started = time.perf_counter()
            envs.begin_step(action)
            if not at_once:
                step = envs.end_step()
            learner.update(batch, "online", draw)
            if at_once:
                step = envs.end_step()
            found[at_once].append(time.perf_counter() - started)
            obs = step.obs
    before, after = (statistics.median(found[at_once][3:]) for at_once in (False, True))
    return {
        "overlap_speedup": {
            **claim(round(before / after, 3), 1.1, "above"),
            "milliseconds_one_after_the_other": round(1e3 * before, 2),
            "milliseconds_at_once": round(1e3 * after, 2),
            "load_average": psutil.getloadavg()[0],
        }
    }


def memory(options: argparse.Namespace) -> Claims:
    """Let a short online run go on for `--minutes` and compare the memory of its second and last third."""
    script = ROOT / "tests" / "run" / "short_run.py"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps({"env_steps": 10**9, "env_workers": 2})],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        samples, end = [], time.monotonic() + 60 * options.minutes
        while time.monotonic() < end and process.poll() is None:
            time.sleep(max(60 * options.minutes / 200, 0.5))
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            samples.append(sum(_own_mib(one.pid) for one in tree))
        if process.poll() is not None:
            raise SystemExit(f"the run whose memory was to be watched ended with exit code {process.returncode}")
        steps = sorted(int(path.name[5:]) for path in Path(folder).glob(".resume/short-*/save-*"))[-1]
        process.terminate()
        process.wait()
    third = len(samples) // 3
    middle, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    return {
        "memory_growth_percent": {
            **claim(round(100 * (last / middle - 1), 2), 1.0, "below"),
            "minutes": options.minutes,
            "env_steps": steps,
            "mib_in_the_middle": round(middle, 1),
            "mib_at_the_end": round(last, 1),
        }
    }


def _own_mib(pid: int) -> float:
    """Return the memory a process has filled itself, its share where it is shared with its children.

    Not that of libraries, whose pages are counted among all programs of the machine that have them loaded: it changes
    when another one ends.
    """
    fields = dict(
        line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    )
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) / 1024


def faults(_: argparse.Namespace) -> Claims:
    """Run the tests that kill, damage and stop real runs, twenty kills at random moments among them."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/run/test_killed.py", "tests/run/test_ranks.py"]
    code = subprocess.run(command, cwd=ROOT).returncode
    return {"failing_fault_tests_exit_code": claim(code, 0, "below")}


PARTS: dict[str, Callable[[argparse.Namespace], Claims]] = {
    part.__name__: part for part in (ranks, saves, overlap, memory, faults)
}


def main() -> None:
    """Measure what is asked for and write results/distributed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--transitions", type=int, default=10_000_000, help="stored when a save is timed")
    parser.add_argument("--new", type=int, default=500_000, help="transitions between saves")
    parser.add_argument("--folder", help="where the saves are written; default: the system's temporary folder")
    parser.add_argument("--loops", type=int, default=60, help="steps of each kind that overlap is measured over")
    parser.add_argument("--minutes", type=float, default=30, help="length of the run whose memory is watched")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    started = time.monotonic()
    path = RESULTS / "distributed.json"
    claims = read_json(path, "python -m benchmarks.distributed")["claims"] if path.exists() and options.parts else {}
    command = " ".join(["python -m benchmarks.distributed", *sys.argv[1:]])
    for part in options.parts or PARTS:
        before = time.monotonic()
        for name, figure in PARTS[part](options).items():
            seconds = round(time.monotonic() - before, 1)
            claims[name] = {**figure, "command": command, "commit": commit(), "seconds": seconds}
    write("distributed", command, time.monotonic() - started, claims)


if __name__ == "__main__":
    main()
