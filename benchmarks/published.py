"""Does learning from nothing go as published? Single tasks, no demonstrations, one update per agent step.

    python -m benchmarks.published                                     5 tasks, 3 seeds, 50,000 agent steps: a day
    python -m benchmarks.published --tasks mw-reach --seeds 1          one run: an hour and more of one core
    python -m benchmarks.published --env-steps 10000                   shorter; a later call goes on from there
    python -m benchmarks.published --dry                               tiny, writes nothing

Each run is saved in .resume/published/ as it goes: one that was stopped goes on when the same command is called again.
Each that is done is written at once into results/published.json, with the claims, and results/published.svg is drawn
anew; runs that are in the file with as many steps, learned by the same settings, are not made again. Several commands,
each of other tasks or seeds, may run at once, a core each.

The values to reach are TD-MPC2's own, of three seeds (published_tdmpc2.json). They count simulator steps, two per agent
step: 50,000 agent steps are its first point after 0. What is as published: losses, TD target, discounts, learning
rates, random actions at first (five episodes and at least 1,000 steps), then plans that are free of the policy, one
update per agent step, evaluation by plans of ten episodes. What differs: sizes of model, batch and plan, which one CPU
core bears (`SIZE`); Newt's weights of the steps of a slice, which sum to 1; no dropout in Q; no burst of updates after
the random steps; Meta-World v3 instead of v2.
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import results
from benchmarks.published_figure import draw
from benchmarks.results import claim
from pipeline import config
from pipeline.files import atomic_file, read_json
from pipeline.learn.setup import Setup
from pipeline.learn.task_setup import task_discount
from pipeline.model.actor import Actor
from pipeline.model.math import Policy
from pipeline.model.task_table import FREE, TaskTable
from pipeline.model.world_model import TaskContext
from pipeline.run.launch import start
from pipeline.run.provenance import commit, machine
from pipeline.run.run_dir import ROOT, fingerprint, hold_output
from pipeline.systems.build import build_model
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

COMMAND = "python -m benchmarks.published"
TASKS = ("mw-reach", "mw-drawer-open", "cartpole-swingup", "reacher-easy", "walker-walk")  # cheapest evaluations first
SEEDS = (1, 2, 3)
STEPS = 50_000  # agent steps; an agent step is one environment step of ours, and two steps of the simulator
REACH = 3  # of the five curves are to be as good as the published ones
PUBLISHED = Path(__file__).with_name("published_tdmpc2.json")

LEARNING = config.Learning(
    lr=3e-4, encoder_lr_scale=0.3, grad_clip_norm=20.0, tau=0.01, rho=0.5, consistency_coef=20.0, reward_coef=0.1,
    value_coef=0.1, bc_coef=0.0, online_bc_coef=0.0, prior_coef=0.0, entropy_coef=1e-4, termination_coef=1.0,
    normalize_obs=False, discount_min=0.95, discount_max=0.995, value_target="td",
)  # fmt: skip


class Size(NamedTuple):
    """What a machine bears: none of it changes what is learned, only how well."""

    model: config.Model  # widths of observation and action are set to the task's
    planner: config.Planner
    batch_size: int
    seeding: tuple[int, int]  # episodes, and environment steps, of random actions at least
    eval_every: int
    eval_episodes: int


# TD-MPC2's smallest model but for mlp_dim (384 there): estimated at some 80 minutes for a run, on one quiet core of an
# AMD EPYC (from benchmarks/results/speed.json). The published curves are of 5M parameters: mlp_dim 512, latent_dim 512,
# 5 Q members; plans of 6 iterations of 512 samples, 64 of them elites; batches of 256.
SIZE = Size(
    config.Model(
        obs_dim=1, action_dim=1, task_dim=1, latent_dim=128, enc_dim=256, num_enc_layers=2, mlp_dim=256, num_q=2,
        num_bins=101, bin_min=-10.0, bin_max=10.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
    ),
    config.Planner(
        horizon=3, iterations=4, num_samples=128, num_policy_samples=24, num_elites=24, min_std=0.05, max_std=2.0,
        temperature=0.5,
    ),
    batch_size=128, seeding=(5, 1000), eval_every=5_000, eval_episodes=10,
)  # fmt: skip
DRY = Size(
    replace(SIZE.model, latent_dim=16, enc_dim=16, mlp_dim=16, num_bins=11),
    replace(SIZE.planner, iterations=1, num_samples=4, num_policy_samples=3, num_elites=2),
    batch_size=8, seeding=(1, 1), eval_every=100, eval_episodes=1,
)  # fmt: skip
DRY_STEPS = 210


class Player(Actor):
    """Acts as TD-MPC2 does: at random before anything is learned, and by plans wherever it is judged."""

    def act(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        explore: bool = False,
        constraint_weight: float | Tensor | None = None,
        envs: Tensor | None = None,
    ) -> Tensor:
        """Choose actions as `Actor.act`, but plan whenever nothing is explored."""
        return super().act(obs, rows, plan if explore else True, explore, constraint_weight, envs)

    def _policy(self, ctx: TaskContext, obs: Tensor, explore: bool, envs: Tensor | None) -> Policy:
        # While exploring the policy acts alone only until training begins, and an untrained one hardly moves.
        found = super()._policy(ctx, obs, explore, envs)
        uniform = 2 * torch.rand(found.action.shape, generator=self._generator) - 1
        return replace(found, action=uniform.to(found.action) * ctx.action_mask)


Runs = dict[tuple[str, int], dict[str, Any]]  # by task and seed


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are asked for and missing, and write each that is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all five")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 1 2 3")
    parser.add_argument("--env-steps", type=int, help=f"agent steps of a run (default: {STEPS}, dry: {DRY_STEPS})")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, and nothing is written")
    options = parser.parse_args(arguments)
    size, env_steps = (DRY, options.env_steps or DRY_STEPS) if options.dry else (SIZE, options.env_steps or STEPS)
    name, published = shape(size), read_published()
    found: Runs = {} if options.dry else recall(name)
    for seed, task in itertools.product(options.seeds, options.tasks):
        if found.get((task, seed), {"env_steps": 0})["env_steps"] < env_steps:
            found[task, seed] = learn(task, seed, size, env_steps, ROOT / "published" / name / f"{task}-{seed}")
            if not options.dry:
                remember(found, published, name)
    if not options.dry:
        remember(found, published, name)  # also where nothing was missing: claims and figure by today's code
    for row in summed_up(found, published):
        print(f"{row['task']}: {row['seeds']}, published {row['published']} - {row['spread']}", flush=True)


def settings(spec: TaskSpec, size: Size, env_steps: int) -> config.Finetune:
    """Return how a task is learned from nothing: by own episodes alone, one update per agent step."""
    episodes, steps = size.seeding
    return config.Finetune(
        env_steps=env_steps, utd=1.0, batch_size=size.batch_size, demo_fraction=0.0, imitate="none", lr_scale=1.0,
        envs_per_task=1, warmup_updates=0, seeding_episodes=max(episodes, math.ceil(steps / spec.episode_length)),
        constraint="schedule", evidence_memory=2, constraint_steps=0, constraint_decay=0, replay_capacity=100_000,
        log_every=500, save_every=2_500, eval_every=size.eval_every, eval_episodes=size.eval_episodes,
    )  # fmt: skip


def learn(task: str, seed: int, size: Size, env_steps: int, folder: Path) -> dict[str, Any]:
    """Learn one task from nothing, or go on where that was stopped.

    Args:
        task: its name.
        seed: of everything that is drawn.
        size: of model, batches and plans.
        env_steps: agent steps in all; `folder` is kept for a longer run while they are fewer than STEPS.
        folder: where the run is saved as it goes.

    Returns:
        task, seed, `env_steps`, `curve` (score of the evaluation by agent steps), seconds, commit and machine.
    """
    (spec,) = registry.get([task])
    runtime = replace(config.load(config.Runtime), trackers=(), env_workers=0, threads=1)
    learning = settings(spec, size, env_steps)
    with hold_output(folder, COMMAND):
        folder.mkdir(parents=True, exist_ok=True)
        ranks = start(runtime, seed)
        model = build_model(replace(size.model, obs_dim=spec.obs_dim, action_dim=spec.action_dim)).to(ranks.device)
        table = TaskTable(
            (task,), torch.zeros(1, 1, 1), torch.ones(1, spec.action_dim),
            torch.tensor([task_discount(spec, LEARNING)]), constraint=torch.tensor([FREE]),
        ).to(ranks.device)  # fmt: skip
        setup = Setup(model, table, size.planner, LEARNING, runtime, seed, ranks, folder, make_actor=Player)
        run = setup.run(f"{task} {seed}", folder, setup.learner(0), learning, [spec])
        setup.learn_online(run, learning, None, [spec])
        curve = {str(int(steps)): round(score, 4) for steps, score in run.logged(f"eval/{task}")}
        done = {"task": task, "seed": seed, "env_steps": run.position, "curve": curve, "seconds": round(run.seconds, 1)}
        if env_steps >= STEPS:
            shutil.rmtree(folder)
    return {**done, "commit": commit(), "machine": machine()}


def shape(size: Size) -> str:
    """Hash all settings that a run's results depend on, but not its length."""
    (spec,) = registry.get(TASKS[:1])
    sections = [size.model, size.planner, LEARNING, settings(spec, size, STEPS), list(size.seeding)]
    return fingerprint(sections, [], 0)


def read_published() -> dict[str, dict[str, dict[str, float]]]:
    """Return the published scores by task, seed and agent steps."""
    tasks = read_json(PUBLISHED, COMMAND)["tasks"]
    return {
        task: {seed: {str(steps): score for steps, score in points} for seed, points in one["seeds"].items()}
        for task, one in tasks.items()
    }


def recall(name: str) -> Runs:
    """Return the runs of results/published.json that were made by these settings."""
    path = results.RESULTS / "published.json"
    stored = read_json(path, COMMAND)["runs"] if path.exists() else []
    return {(run["task"], run["seed"]): run for run in stored if run["shape"] == name}


def remember(found: Runs, published: Mapping[str, Any], name: str) -> None:
    """Write results/published.json and the figure, with what another process has put there meanwhile."""
    for key, run in recall(name).items():
        if run["env_steps"] > found.get(key, {"env_steps": -1})["env_steps"]:
            found[key] = run
    runs: list[dict[str, Any]] = [found[key] | {"shape": name} for key in sorted(found)]
    command, seconds = " ".join([COMMAND, *sys.argv[1:]]), sum(run["seconds"] for run in runs)
    rows = summed_up(found, published)
    results.write("published", command, seconds, claims(rows), tasks=rows, runs=runs)
    with atomic_file(results.RESULTS / "published.svg") as partial:
        partial.write_text(draw(published, runs, STEPS), encoding="utf-8")


def summed_up(found: Runs, published: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per task: its published mean and spread at STEPS, and each seed's score there or so far.

    The spread is the standard deviation over the published seeds; `score` is None until all of SEEDS got to STEPS.
    """
    rows = []
    for task in TASKS:
        values = [points[str(STEPS)] for points in published[task].values()]
        runs = {seed: found[task, seed] for seed in SEEDS if (task, seed) in found}
        last = {seed: list(run["curve"].items())[-1] for seed, run in runs.items()}
        ended = [score for steps, score in last.values() if int(steps) >= STEPS]
        rows.append(
            {
                "task": task,
                "published": round(float(np.mean(values)), 4),
                "spread": round(float(np.std(values, ddof=1)), 4),
                "score": round(float(np.mean(ended)), 4) if len(ended) == len(SEEDS) else None,
                "seeds": {
                    str(seed): {"env_steps": int(steps), "score": score} for seed, (steps, score) in last.items()
                },
            }
        )
    return rows


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what is promised: each task's score at STEPS, and how many are as good as published less its spread."""
    found = {
        row["task"]: claim(row["score"], round(row["published"] - row["spread"], 4), "above")
        for row in rows
    }  # fmt: skip
    measured = any(row["score"] is not None for row in rows)
    reached = sum(one["holds"] for one in found.values()) if measured else None
    return {"curves_as_published": claim(reached, REACH, "above"), **found}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("published: stopped. What was saved is kept: the same command goes on from there.") from None
