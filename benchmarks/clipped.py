"""How the clipped policy step learns from nothing, beside Newt's: one swing-up, no demonstrations, a small model.

    python -m benchmarks.clipped [--env-steps 8000] [--seed 1] [newt clipped planned ...]

newt: plans collect and the policy climbs the value. clipped: the policy collects and learns by the clipped ratio.
planned: plans collect for it. `-bonus` behind a name leaves the bonus of disagreement out. Prints, for each, the scores
of policy and plans at the end, and what the last policy phase reported. Writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.problem import LEARNING, TINY, TINY_PLANNER
from pipeline import config
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.tasks.spec import parse_spec
from pipeline.tasks.vector import VectorEnv
from pipeline.train.evaluate import Evaluator
from pipeline.train.loop import Loop
from pipeline.train.loops import learn_online
from pipeline.train.step import Learner
from pipeline.train.workspace import ReplayPlace, online_buffer

TASK = parse_spec(
    {
        "name": "pendulum", "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole.",
        "instructions": ["Swing it up."], "obs_dim": 3, "action_dim": 1, "action_repeat": 2, "episode_length": 100,
        "score": "clip((return+1500)/1500,0,1)",
    },
    "the benchmark",
)  # fmt: skip
SIZES = dataclasses.replace(
    TINY, obs_dim=3, action_dim=1, task_dim=4, latent_dim=64, enc_dim=64, mlp_dim=96, num_bins=101, bin_min=-10.0,
    bin_max=10.0,
)  # fmt: skip
PLANNER = dataclasses.replace(
    TINY_PLANNER, iterations=3, num_samples=64, num_policy_samples=16, num_elites=16
)  # fmt: skip
CLIPPED = config.Clipped(
    plan=False, every=800, passes=8, batch_size=200, ratio=0.2, gae_lambda=0.95, bonus=1.0, bonus_limit=None
)
SHOWN = ("start_kl", "ratio", "clip_fraction", "approx_kl", "bonus", "advantage_std", "policy_entropy")


def run(name: str, env_steps: int, seed: int, folder: Path) -> tuple[float, float, dict[str, float], float]:
    """Learn; return the scores of policy and plans, what the last policy phase reported, and the seconds it took."""
    clipped = None
    if not name.startswith("newt"):
        bonus = 0.0 if name.endswith("-bonus") else 1.0
        clipped = dataclasses.replace(CLIPPED, plan=name.startswith("planned"), bonus=bonus)
    learning = dataclasses.replace(LEARNING, online_bc_coef=0.0, prior_coef=0.0, clipped=clipped)
    settings = config.Finetune(
        env_steps=env_steps, utd=0.25, batch_size=128, demo_fraction=0.0, imitate="none", lr_scale=1.0,
        envs_per_task=8, warmup_updates=0, seeding_episodes=1, constraint="schedule", evidence_memory=30,
        constraint_steps=0, constraint_decay=0, replay_capacity=50_000, log_every=env_steps, save_every=env_steps,
        eval_every=env_steps, eval_episodes=10,
    )  # fmt: skip
    runtime = config.Runtime(
        device="cpu", threads=1, env_workers=0, precision="fp32", accumulate=1, keep_saves=1, stop_seconds=0,
        trackers=(), replay="memory", matmul="torch", plan_products="float32", compile=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    table = TaskTable((TASK.name,), torch.zeros(1, 1, SIZES.task_dim), torch.ones(1, 1), torch.tensor([0.95]))
    learner = Learner(WorldModel(SIZES), table, learning)
    replay = online_buffer(
        settings.replay_capacity, SIZES, PLANNER.horizon, ReplayPlace(torch.device("cpu"), None, None), 0, clipped
    )
    specs, widths, started = [TASK] * settings.envs_per_task, (SIZES.obs_dim, SIZES.action_dim), time.monotonic()
    with Evaluator([TASK], 10, *widths, seed + 1, 0) as evaluator, VectorEnv(specs, *widths, seed + 3, 0) as envs:
        player, collector = (Actor(learner.model, table, PLANNER) for _ in range(2))
        loop = Loop(name, folder / name, learner, player, evaluator, seed, runtime)
        learn_online(loop, settings, None, replay, envs, specs, collector, [TASK])
        seconds = time.monotonic() - started
        player.refresh()
        policy, plans = (
            float(np.mean(evaluator.run(player, [TASK.name], plan, name, seed)[0].scores)) for plan in (False, True)
        )
    told = {one: loop.history(f"train/{one}") for one in SHOWN}
    return policy, plans, {one: points[-1][1] for one, points in told.items() if points}, seconds


def main() -> None:
    """Run what is named on the command line and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["newt", "clipped", "clipped-bonus", "planned"])
    parser.add_argument("--env-steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            policy, plans, told, seconds = run(name, options.env_steps, options.seed, Path(folder))
            shown = "  ".join(f"{one} {value:.3g}" for one, value in told.items())
            print(f"{name:14} policy {policy:.2f}  plans {plans:.2f}  {seconds:.0f} s  {shown}", flush=True)


if __name__ == "__main__":
    main()
