"""A real online run of a second or two: what the tests of several processes, kills and faults start as processes.

    python short_run.py OPTIONS              one run, in the folder it is started in; also under torchrun
    python short_run.py serve                reads OPTIONS line by line and forks a run for each: imports are paid once;
                                             `folder` and `ranks` are options too

OPTIONS is JSON; see `DEFAULTS`. At the end every rank writes `result-<rank>.json` with a hash of all it has learned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.problem import LEARNING, TINY, make_model, make_table
from pipeline import config
from pipeline.data.episode import Episode
from pipeline.learn.early_stop import EarlyStop
from pipeline.learn.extension import Extension
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import state_tensors
from pipeline.learn.setup import Setup
from pipeline.run import saves
from pipeline.run.launch import run_stage, start
from pipeline.run.ranks import Ranks
from pipeline.run.run_dir import open_run_dir
from pipeline.systems import build
from pipeline.systems.scalezero.curriculum import Curriculum
from pipeline.tasks.labels import Labels
from pipeline.tasks.spec import parse_spec
from tests.experts import open_damper
from tests.tiny import TINY_PLANNER

DEFAULTS = {
    "env_steps": 240,
    "lr": 3e-4,
    "constraint": "evidence",
    "experts": False,  # in every network
    "returns": False,  # as targets of Q, with all else that learning by them brings
    "eval_every": 120,
    "scaling": None,  # score from which each task counts as solved: it rests, and the model grows in stages
    "patience": None,  # evaluations without a new best after which to stop early
    "env_workers": 0,
    "replay": "memory",
    "stop_seconds": 0,
    "kill_at_write": None,  # SIGKILL itself right after writing this many tensor files
    "nan_at": None,  # [rank, update]: a batch of that rank holds a reward that is not finite
    "slow_save": 0.0,  # seconds that writing each save takes longer
    "signal_at": None,  # SIGTERM itself when the state at this position has just been copied
    "fail_at": None,  # [rank, update]: that rank raises an error of its own
    "history": False,  # dynamics that see past steps
    "stagger": False,  # first episodes end at random steps
    "labels": False,  # an expert labels the first and the last task
    "clipped": None,  # the policy learns by a clipped ratio; true where plans collect for it
}
HISTORY = config.History(context=4, layers=2, heads=2, dim=16, mlp_dim=24, backbone="shared")
LABELS = Labels({"pendulum-0": "teacher", "pendulum-2": "teacher"}, open_damper)
TASKS = [
    parse_spec(
        {
            "name": f"pendulum-{i}", "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole.",
            "instructions": ["Swing it up."], "obs_dim": 3, "action_dim": 1, "action_repeat": 1,
            "episode_length": 12 + 4 * i, "score": "clip((return+200)/200,0,1)", "env_kwargs": {"g": 9.0 + i},
        },
        "the tests",
    )
    for i in range(3)
]  # fmt: skip


def main(options: dict) -> None:
    options = DEFAULTS | options
    runtime = config.Runtime(
        device="auto", threads=1, env_workers=options["env_workers"], precision="fp32", accumulate=1, keep_saves=2,
        stop_seconds=options["stop_seconds"], trackers=(), replay=options["replay"], matmul="torch",
        plan_products="float32",
    )  # fmt: skip
    settings = config.Finetune(
        env_steps=options["env_steps"], utd=0.1, batch_size=6, demo_fraction=0.5, imitate="none", lr_scale=1.0,
        envs_per_task=1, warmup_updates=3, seeding_episodes=1, constraint=options["constraint"], evidence_memory=10,
        constraint_steps=100, constraint_decay=100, replay_capacity=240, log_every=45, save_every=30,
        eval_every=options["eval_every"], eval_episodes=1, cooldown=0.2,
        scaling=_scaling(options["scaling"]), imitated="intended" if options["returns"] else "executed",
        demos_in_replay=options["returns"], stagger=options["stagger"],
    )  # fmt: skip
    clipped = None
    if options["clipped"] is not None:
        clipped = config.Clipped(
            plan=options["clipped"], every=45, passes=2, batch_size=20, ratio=0.2, gae_lambda=0.9, bonus=1.0,
            bonus_limit=1.0,
        )  # fmt: skip
    learning, seed = dataclasses.replace(LEARNING, lr=options["lr"], clipped=clipped), 1
    if options["returns"]:
        learning = dataclasses.replace(learning, value_target="returns", relabel_every=4)
    ranks = start(runtime, seed)
    table = dataclasses.replace(make_table(), names=tuple(spec.name for spec in TASKS))
    sizes = dataclasses.replace(TINY, history=HISTORY if options["history"] else None)
    if options["experts"]:
        experts = config.Experts(("dynamics", "reward", "policy", "q"), 3, 1, 8, True, "latent", 1.0, 0.01)
        sizes = dataclasses.replace(sizes, mlp_dim=24, experts=experts)
    model = make_model(sizes)
    _plant(options, ranks)
    with open_run_dir("short", [settings, learning], [], seed, ranks) as run_dir:
        setup = Setup(
            model, table, TINY_PLANNER, learning, runtime, seed, ranks, run_dir,
            labels=LABELS if options["labels"] else None, **build.acting_and_replay(sizes, learning),
        )  # fmt: skip
        demos = setup.demo_replay(_demos())
        extensions = build.online_extensions(model, table, learning, settings.scaling, seed)
        learner = setup.learner(settings.warmup_updates, extensions)
        patience, best = options["patience"], run_dir / "best.safetensors"
        early_stop = EarlyStop(model, table, best, math.inf, patience) if patience else None
        # It evaluates in its own process: the workers there are step the environments that are learned in.
        alone = dataclasses.replace(setup, runtime=dataclasses.replace(runtime, env_workers=0))
        run = alone.run("short", run_dir, learner, settings, TASKS, early_stop=early_stop)
        replay = setup.learn_online(run, settings, demos, TASKS)
        if early_stop:
            early_stop.restore()
        found = replay.state_tensors()
        Path(f"result-{ranks.rank}.json").write_text(
            json.dumps(
                {
                    "learner": _hash(state_tensors(learner)),
                    "replay": _hash(found),
                    "imitation": dict(zip(found["episodes"][2].tolist(), found["imitation"].tolist(), strict=True)),
                    "tasks": sorted(set(found["episodes"][2].tolist())),
                    "updates": learner.updates,
                    "stopped_at": run.position,
                    "constraint": table.constraint.tolist(),
                    "value_scale": learner.value_scale.tolist(),
                    "curriculum": _curriculum(extensions),
                    "demos_mapped": "demos/rows.f32" in Path("/proc/self/maps").read_text(),
                }
            )
        )
        if ranks.is_main:
            run.publish("metrics")


def _curriculum(extensions: Sequence[Extension]) -> dict[str, Any] | None:
    """Return the stage, which tasks are solved and were unsolved when it began, and at which update that was."""
    for one in extensions:
        if isinstance(one, Curriculum):
            return {**one.summary(), "open": sorted(one._open or ()), "began": one._began}
    return None


def _scaling(targets: dict[str, float] | None) -> config.Scaling | None:
    if targets is None:
        return None
    return config.Scaling(
        parts=("dynamics",), adapters=2, rank=2, alpha=4.0, target=1.0, targets=targets, slack=0.0,
        first_stage_updates=8, stage_updates=6,
    )  # fmt: skip


def _plant(options: dict, ranks: Ranks) -> None:
    """Put the faults asked for where they happen."""
    if options["kill_at_write"]:
        write, written = saves._write, [0]

        def write_and_die(tensors: dict, path: Path) -> None:
            write(tensors, path)
            written[0] += 1
            if written[0] == options["kill_at_write"]:
                os.kill(os.getpid(), signal.SIGKILL)

        saves._write = write_and_die
    if options["slow_save"]:
        write_all = saves.Saves._write_all

        def slow_write_all(self: saves.Saves, *args: Any) -> None:
            time.sleep(options["slow_save"])
            write_all(self, *args)

        saves.Saves._write_all = slow_write_all
    if options["signal_at"]:
        save = saves.Saves.save

        def signalled_save(self: saves.Saves, position: int, *args: Any) -> None:
            save(self, position, *args)
            if position == options["signal_at"]:
                os.kill(os.getpid(), signal.SIGTERM)

        saves.Saves.save = signalled_save
    for name, what in (("nan_at", _spoil), ("fail_at", _fail)):
        if options[name] and options[name][0] == ranks.rank:
            what(options[name][1])


def _spoil(number: int) -> None:
    update = Learner.update

    def spoiled(self: Learner, batch, mode, draws):
        if self.updates == number:
            batch.reward[0, 0] = math.nan
        return update(self, batch, mode, draws)

    Learner.update = spoiled


def _fail(number: int) -> None:
    update = Learner.update

    def failing(self: Learner, batch, mode, draws):
        if self.updates == number:
            raise OSError("the disk of this machine is gone")
        return update(self, batch, mode, draws)

    Learner.update = failing


def _demos() -> dict[str, list[Episode]]:
    draw = np.random.default_rng(0)

    def episode(task: str) -> Episode:
        obs, action = draw.normal(size=(11, 3)).astype(np.float32), draw.uniform(-1, 1, (10, 1)).astype(np.float32)
        reward = draw.normal(size=10).astype(np.float32)
        return Episode(task, obs, action, action, reward, False, True, 1.0, float(reward.sum()), 0, "test")

    return {spec.name: [episode(spec.name) for _ in range(2)] for spec in TASKS}


def _hash(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def serve() -> None:
    """Fork a run, of `ranks` processes in `folder`, for each line; answer with their pids, then with their exit codes.

    What rank 0 says goes to `<folder>/rank-0.err`, and so on.
    """
    importlib.import_module("torch._dynamo")  # once here and not, on its way, in every run
    for line in sys.stdin:
        options = json.loads(line)
        folder, count = options.pop("folder"), options.pop("ranks", 1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = [_fork(options, folder, rank, count, port) for rank in range(count)]
        print(*children, flush=True)
        print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)


def _fork(options: dict, folder: str, rank: int, count: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    for number, name in ((0, os.devnull), (1, os.devnull), (2, f"rank-{rank}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        run_stage(lambda: main(options), several=True)
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        run_stage(lambda: main(json.loads(sys.argv[1])), several=True)
