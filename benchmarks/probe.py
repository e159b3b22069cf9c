"""What a checkpoint's values and plans are worth, task by task.

    python -m benchmarks.probe                                        the finetuned checkpoint on its training tasks
    python -m benchmarks.probe --model checkpoints/pretrain/model --tasks mw-reach mw-pick-place --starts 100

For each task:

q_over_return      mean Q of demonstrated actions / their mean discounted return, over the first halves of the episodes;
                   what an episode's end cuts off is made up for by Q there
advantage_q        rank correlation of predicted and true advantages: from one state four actions (the policy's and
                   three around it) are played and then the policy; true are discounted returns over `--steps`
advantage_model    the same, predicted by the model: rewards of three steps by the policy, then Q
value_share        part of the policy's gradient that is the value's, the rest is imitation's, on demonstrations
plan_distance      root mean square distance per action dim of a plan's action from the policy's
policy, plan       mean score, and mean return as a part of the demonstrations' mean return, of either on its own

Prints a table and writes it, with command, commit and machine, to results/learning.json (`--name` tells runs apart);
of the finetuned checkpoint on all its tasks also to checkpoints/probe.json, which the report shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import results
from pipeline import config
from pipeline.agent import Agent
from pipeline.data.demos import load_demos
from pipeline.data.episode import Episode
from pipeline.files import sha256, write_json
from pipeline.learn.evaluator import Evaluator
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.replay import from_demos
from pipeline.model.math import decode
from pipeline.model.task_table import TIED
from pipeline.model.world_model import TaskContext
from pipeline.progress import Progress
from pipeline.run.provenance import commit, machine
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

OFFSETS, OFFSET_STD = 3, 0.3  # perturbed actions per state, and how far from the policy's
LATEST = 0.5  # part of an episode within which a state is taken
MODEL_STEPS = 3
PLANS_WIN = 6  # tasks on which plans are to earn more than the policy
ADVANTAGES = {"mw-reach": 0.5, "mw-pick-place": 0.35}  # promised rank correlations
FINETUNED = Path("checkpoints/finetune/model")
RUN = Path("checkpoints/finetune/metrics/summary.json")  # of the run that made it
SHOWN = Path("checkpoints/probe.json")  # by the report


class Probe:
    """Asks one checkpoint.

    Args:
        agent: the checkpoint.
        learning: coefficients of the policy's loss.
        seed: of all that is drawn.
    """

    def __init__(self, agent: Agent, learning: config.Learning, seed: int):
        self.agent, self.learning, self.seed = agent, learning, seed
        self.model, self.table = agent.model, agent.table
        self.learner = Learner(self.model, self.table, learning)

    def context(self, spec: TaskSpec, rows: int) -> TaskContext:
        """Return the context of one task for a number of rows."""
        return self.model.context(self.table, torch.full((rows,), self.table.names.index(spec.name)))

    def q(self, obs: Tensor, action: Tensor, ctx: TaskContext) -> Tensor:
        """Return Q (n,), the mean of all members, for observations (n, O) and actions (n, A)."""
        return decode(self.model.q(self.model.encode(obs, ctx), action, ctx), self.model.bins).mean(0)

    def in_model(self, obs: Tensor, action: Tensor, ctx: TaskContext) -> Tensor:
        """Return what the model predicts (n,): rewards of an action and of the policy after it, then Q."""
        z, earned, weight = self.model.encode(obs, ctx), torch.zeros(len(obs)), torch.ones(len(obs))
        for _ in range(MODEL_STEPS):
            earned = earned + weight * decode(self.model.reward(z, action, ctx), self.model.bins)
            z, weight = self.model.next(z, action, ctx)[0], weight * ctx.discount
            action = self.model.policy(z, ctx).action
        return earned + weight * decode(self.model.q(z, action, ctx), self.model.bins).mean(0)

    def padded(self, values: np.ndarray, width: int) -> Tensor:
        """Return values (n, w) padded with 0 to (n, width)."""
        out = torch.zeros(len(values), width)
        out[:, : values.shape[1]] = torch.from_numpy(values)
        return out

    @torch.no_grad()
    def q_over_return(self, spec: TaskSpec, demos: Sequence[Episode]) -> float:
        """Return mean Q over mean discounted return of what was demonstrated."""
        sizes, found, true = self.model.config, [], []
        for episode in demos:
            length = len(episode.action)
            ctx = self.context(spec, length)
            discount = float(ctx.discount[0])
            obs, action = self.padded(episode.obs[:-1], sizes.obs_dim), self.padded(episode.action, sizes.action_dim)
            q = self.q(obs, action, ctx).numpy()
            left, returns = (0.0 if episode.terminated else float(q[-1])), np.empty(length)
            for t in reversed(range(length)):
                left = float(episode.reward[t]) + discount * left
                returns[t] = left
            half = max(1, round(LATEST * length))
            found.append(q[:half])
            true.append(returns[:half])
        return float(np.concatenate(found).mean() / np.concatenate(true).mean())

    @torch.no_grad()
    def advantages(self, spec: TaskSpec, starts: int, steps: int) -> tuple[float, float]:
        """Return the rank correlations of true advantages with those by Q and by the model.

        Args:
            spec: the task.
            starts: states, each of an episode of its own.
            steps: that a return is summed over.
        """
        rng, sizes = np.random.default_rng(self.seed), self.model.config
        ctx, pairs = self.context(spec, OFFSETS + 1), []
        with ExitStack() as opened, Progress(f"{spec.name}: advantages", starts, "states") as progress:
            envs = [make(spec, sizes.obs_dim, sizes.action_dim) for _ in range(OFFSETS + 1)]
            for env in envs:
                opened.callback(env.close)
            for number in range(starts):
                before = int(rng.integers(max(1, round(LATEST * spec.episode_length))))
                obs = np.stack([env.reset(seed=10_000 + number)[0] for env in envs])
                over = np.zeros(len(envs), bool)
                for _ in range(before):  # the same way to the same state in each
                    same = self._policy(obs, ctx)[:1].repeat(len(envs), axis=0)
                    obs, _ = step(envs, obs, same, over)
                action = self._policy(obs, ctx)
                action[1:] += OFFSET_STD * rng.standard_normal((OFFSETS, action.shape[1])).astype(np.float32)
                action = action.clip(-1, 1) * ctx.action_mask.numpy()
                seen, done = torch.from_numpy(obs), torch.from_numpy(action)
                predicted = self.q(seen, done, ctx), self.in_model(seen, done, ctx)
                earned, weight = np.zeros(len(envs)), 1.0
                for _ in range(min(steps, spec.episode_length - before)):
                    obs, reward = step(envs, obs, action, over)
                    earned, weight = earned + weight * reward, weight * float(ctx.discount[0])
                    action = self._policy(obs, ctx)
                pairs.append([earned[1:] - earned[0], *((one[1:] - one[0]).numpy() for one in predicted)])
                progress.update()
        true, by_q, by_model = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return float(spearmanr(true, by_q)[0]), float(spearmanr(true, by_model)[0])  # pyright: ignore

    def value_share(self, spec: TaskSpec, demos: Sequence[Episode]) -> float:
        """Return the norm of the value's part of the policy's gradient over the sum of both parts' norms."""
        sizes, row = self.model.config, self.table.names.index(spec.name)
        replay = from_demos([(row, one) for one in demos], sizes.obs_dim, sizes.action_dim, self.agent.planner.horizon)
        generator = torch.Generator().manual_seed(self.seed)
        batch = replay.sample(256, generator)
        draws = UpdateDraws.sample(batch, 1, sizes.num_q, generator)
        with torch.no_grad():
            z = self.model.encode(batch.obs, self.model.context(self.table, batch.task))
        parameters = list(self.model.policy_head.parameters())
        norms = []
        for weight, imitation in ((1.0, 0.0), (0.0, 1.0)):
            self.learner.q_weight = torch.full((len(self.table.names),), weight)
            loss, _ = self.learner.policy_loss(batch._replace(imitation=imitation * batch.imitation), draws, z, [])
            parts = torch.autograd.grad(loss, parameters)
            norms.append(float(torch.stack([part.norm() for part in parts]).norm()))
        return norms[0] / (sum(norms) or 1.0)

    def _policy(self, obs: np.ndarray, ctx: TaskContext) -> np.ndarray:
        z = self.model.encode(torch.from_numpy(obs), ctx)
        return self.model.policy(z, ctx).action.numpy().copy()


def step(
    envs: Sequence[TaskEnv], obs: np.ndarray, action: np.ndarray, over: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Step every environment whose episode is not `over` (n,) bool, which is kept up to date.

    Returns:
        what is observed (n, O), and the rewards (n,); where the episode is over, what was observed before, and 0.
    """
    seen, rewards = obs.copy(), np.zeros(len(envs))
    for number in np.flatnonzero(~over):
        seen[number], rewards[number], terminated, truncated, _ = envs[int(number)].step(action[number])
        over[number] = terminated or truncated
    return seen, rewards


def played(agent: Agent, specs: Sequence[TaskSpec], episodes: int, seed: int, plan: bool) -> dict[str, tuple[Any, Any]]:
    """Return scores and returns of each task, played by plans on every task or by the policy alone."""
    sizes, names = agent.model.config, [spec.name for spec in specs]
    kept = agent.table.constraint.clone()
    if plan:
        agent.table.constraint[:] = TIED
    try:
        with Evaluator(specs, episodes, sizes.obs_dim, sizes.action_dim, seed, 0) as evaluator:
            found = evaluator.run(agent.actor, names, plan, "plans" if plan else "policy", seed)
    finally:
        agent.table.constraint[:] = kept
    return {name: (one.scores, one.episode_returns) for name, one in zip(names, found, strict=True)}


def probe(
    model: str, names: Sequence[str], starts: int, steps: int, episodes: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return all figures of each task; see the top of this file."""
    torch.set_num_threads(1)
    agent = Agent.from_pretrained(model)
    specs = [agent.tasks[name] for name in names or agent.tasks]
    asked, rows = Probe(agent, config.load(config.Learning), seed), {}
    alone, plans = (played(agent, specs, episodes, seed + 100, plan) for plan in (False, True))
    for spec in specs:
        demos = load_demos("datasets/demos", spec.name)
        by_q, by_model = asked.advantages(spec, starts, steps)
        best = float(np.mean([one.episode_return for one in demos]))
        rows[spec.name] = {
            "q_over_return": asked.q_over_return(spec, demos),
            "advantage_q": by_q,
            "advantage_model": by_model,
            "value_share": asked.value_share(spec, demos),
            "plan_distance": plan_distance(agent, spec, demos),
            **{
                f"{name}_{what}": float(np.mean(values)) / ((best or np.nan) if what == "return" else 1)
                for name, found in (("policy", alone), ("plan", plans))
                for what, values in zip(("score", "return"), found[spec.name], strict=True)
            },
        }
        print(f"{spec.name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rows[spec.name].items()), flush=True)
    return {name: {key: _figure(value) for key, value in row.items()} for name, row in rows.items()}


def claims(rows: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return what is promised of these tasks; a figure that is not there does not hold."""

    def gained(what: str) -> list[float]:
        pairs = [(row[f"plan_{what}"], row[f"policy_{what}"]) for row in rows.values()]
        return [plan - policy for plan, policy in pairs if plan is not None and policy is not None]

    off = [None if row["q_over_return"] is None else abs(row["q_over_return"] - 1) for row in rows.values()]
    known = [one for one in off if one is not None]
    worst = round(max(known), 4) if known and len(known) == len(off) else None
    scores = gained("score")
    found = {
        "largest_error_of_q": results.claim(worst, 0.05, "below"),  # as a part of the return
        "tasks_with_plans_above_policy": results.claim(sum(one > 0 for one in gained("return")), PLANS_WIN, "above"),
        "plans_minus_policy": results.claim(round(float(np.mean(scores)), 4) if scores else None, 0.0, "above"),
    }
    for task, least in ADVANTAGES.items():
        for by in ("q", "model"):
            if task in rows:
                found[f"advantage_{by}_{task}"] = results.claim(rows[task][f"advantage_{by}"], least, "above")
    return found


def _figure(value: float) -> float | None:
    """Return a figure as it is written: None where there is none, of returns or advantages that are all 0 say."""
    return round(value, 4) if np.isfinite(value) else None


def plan_distance(agent: Agent, spec: TaskSpec, demos: Sequence[Episode], states: int = 64) -> float:
    """Return the root mean square distance per action dim of tied plans from the policy, in demonstrated states."""
    rng, sizes = np.random.default_rng(0), agent.model.config
    obs = np.concatenate([one.obs[:-1] for one in demos])
    obs = obs[rng.choice(len(obs), min(states, len(obs)), replace=False)]
    wide = torch.zeros(len(obs), sizes.obs_dim)
    wide[:, : obs.shape[1]] = torch.from_numpy(obs)
    rows = agent.actor.rows([spec.name] * len(obs))
    agent.actor.reset(len(obs), 0)
    plan, alone = (agent.actor.act(wide, rows, which, constraint_weight=1.0) for which in (True, False))
    return float((plan - alone)[:, : spec.action_dim].square().mean().sqrt())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FINETUNED), help=f"default: {FINETUNED}")
    parser.add_argument("--tasks", nargs="+", default=[], help="default: all that it knows")
    parser.add_argument("--starts", type=int, default=40, help="states whose actions are compared (default: 40)")
    parser.add_argument("--steps", type=int, default=60, help="that a return is summed over (default: 60)")
    parser.add_argument("--episodes", type=int, default=40, help="played by policy and by plans (default: 40)")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--name", default="finetuned", help="of the figures in results/learning.json")
    options = parser.parse_args(arguments)
    started, shown = time.monotonic(), Path(options.model) == FINETUNED and not options.tasks
    if shown and not RUN.exists():
        raise SystemExit(f"{RUN} is missing, which says of which run {FINETUNED} is: run `dvc repro finetune`")
    rows = probe(options.model, options.tasks, options.starts, options.steps, options.episodes, options.seed)
    numbers = {"--starts": options.starts, "--steps": options.steps, "--episodes": options.episodes}
    words = [f"--model {options.model} --name {options.name} --seed {options.seed}"]
    words += [f"{name} {number}" for name, number in numbers.items() if number != parser.get_default(name[2:])]
    words += [f"--tasks {' '.join(options.tasks)}"] if options.tasks else []
    command = " ".join(["python -m benchmarks.probe", *words])
    results.add("learning", f"probe.{options.name}", command, time.monotonic() - started, claims(rows), tasks=rows)
    if shown:
        content = {"command": command, "commit": commit(), "machine": machine(), "run": sha256(RUN), "tasks": rows}
        write_json(SHOWN, content)
        print(f"{SHOWN} is written; `dvc repro --force report` shows it")


if __name__ == "__main__":
    main()
