"""How long a run waits for a save, and how long the thread then writes, with a full replay of the preset `newt`.

    python -m benchmarks.saves                        10M transitions, size L, 500,000 new ones: 8 GB, 2 minutes
    python -m benchmarks.saves --transitions 1000000 --size S

A save copies the weights, the optimisers and what the replay gained since the save before; a thread writes them. Writes
results/saves.json: the wait of the loop, the median of some saves, and the seconds of the thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.problem import make_batch, make_model, make_table
from benchmarks.speed import model_size
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.progress import Progress
from pipeline.run.saves import Saves

_LENGTH = 500  # transitions of an episode
_MOST_SECONDS = 0.2  # promised
_SAVES = 5


def main() -> None:
    """Fill a replay, save it, and save it again and again with as many new transitions as a run has between saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=10_000_000, help="stored at first (default: 10,000,000)")
    parser.add_argument("--new", type=int, default=500_000, help="added between two saves (default: 500,000)")
    parser.add_argument("--size", choices=("default", "S", "B", "L"), default="L", help="of the model (default: L)")
    options = parser.parse_args()
    started = time.monotonic()
    sizes = config.load(config.Model) if options.size == "default" else model_size(options.size)
    table, learning, horizon = make_table(sizes, 8), config.load(config.Learning), config.load(config.Planner).horizon
    learner = Learner(make_model(sizes), table, learning, mode="torch")
    learner.update(make_batch(table, sizes, 8, horizon), "online", torch.Generator())  # fills its optimisers
    rows = options.transitions + options.transitions // _LENGTH
    replay = ReplayBuffer(rows, sizes.obs_dim, sizes.action_dim, horizon, keep_value_targets=True)
    draw = torch.Generator().manual_seed(0)
    obs = torch.randn(_LENGTH + 1, sizes.obs_dim, generator=draw)
    action, reward = torch.rand(_LENGTH, sizes.action_dim, generator=draw), torch.rand(_LENGTH, generator=draw)

    def fill(transitions: int) -> None:
        for number in range(transitions // _LENGTH):
            replay.add(obs, action, reward, terminated=False, task=number % 8)

    waited, written = [], []
    with tempfile.TemporaryDirectory() as folder, Progress("saves", 1 + _SAVES, "saves") as progress:
        saves = Saves(Path(folder))
        fill(options.transitions)
        for number in range(1 + _SAVES):
            began = time.perf_counter()
            saves.save(number + 1, state_tensors(learner), ({}, {}), {}, replay)
            waited.append(time.perf_counter() - began)
            saves.finish()
            written.append(time.perf_counter() - began - waited[-1])
            progress.write(f"save {number}: the loop waited {waited[-1]:.3f} s, the thread wrote {written[-1]:.1f} s")
            progress.update(1)
            fill(options.new)
    wait = statistics.median(waited[1:])
    claims = {"seconds_waited": results.claim(round(wait, 3), _MOST_SECONDS, "below")}
    about = {name: getattr(options, name) for name in ("transitions", "new", "size")}
    about |= {"waited": waited[1:], "written": written[1:], "first": {"waited": waited[0], "written": written[0]}}
    command = " ".join(["python -m benchmarks.saves", *sys.argv[1:]])
    results.write("saves", command, time.monotonic() - started, claims, **about)


if __name__ == "__main__":
    main()
