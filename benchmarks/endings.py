"""Do plans know what may end an episode? A walk along a ledge, learned online from nothing, plan against policy.

    python -m benchmarks.endings                          3 seeds, with and without `model.termination`
    python -m benchmarks.endings --termination true       with it alone

Each step shows where the edge is, which comes and goes as a sine wave. Going at speed a in [-1, 1] pays (1 + a) / 2
and, beyond the edge, ends the episode with a probability that rises to 0.3. The end does not show in what is observed.
The score is the return over that of the best fixed distance to the edge, and free plans (`constraint: schedule`) must
reach the policy's.
Writes results/endings.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy.optimize import minimize_scalar

from benchmarks import results
from benchmarks.problem import LEARNING
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.systems.build import make_replay

LENGTH, DISCOUNT, NUM_ENVS = 50, 0.95, 8
SIZES = config.Model(
    obs_dim=2, action_dim=1, task_dim=2, latent_dim=64, enc_dim=64, num_enc_layers=2, mlp_dim=64, num_q=3, num_bins=41,
    bin_min=-4.0, bin_max=4.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
)  # fmt: skip
PLANNER = config.Planner(
    horizon=3, iterations=4, num_samples=96, num_policy_samples=8, num_elites=12, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
ALONE = replace(  # no expert to imitate
    LEARNING, lr=1e-3, tau=0.05, encoder_lr_scale=1.0, online_bc_coef=0.0, prior_coef=0.0, termination_coef=1.0
)


def risk(speed: np.ndarray | float, edge: np.ndarray | float) -> Any:
    """Return the probability that a step at this speed ends the episode."""
    return 0.3 / (1 + np.exp(-20 * (np.asarray(speed) - edge)))


class Ledge(gym.Env[np.ndarray, np.ndarray]):
    """A walk along a ledge, which is left for good by going too fast."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin a walk."""
        super().reset(seed=seed)
        self._steps, self._phase = 0, self.np_random.uniform(0, 2 * np.pi)
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Go one step at a speed."""
        speed, self._steps = float(np.clip(action[0], -1, 1)), self._steps + 1
        ended = bool(self.np_random.random() < risk(speed, np.sin(self._phase)))
        self._phase += 0.5
        return self._look(), (1 + speed) / 2, ended, self._steps == LENGTH and not ended, {}

    def _look(self) -> np.ndarray:
        return np.array([np.sin(self._phase), np.cos(self._phase)], np.float32)


def best_return() -> float:
    """Return the mean return of the best speed: a fixed distance to the edge, within [-1, 1]."""
    edges = np.sin(np.linspace(0, 2 * np.pi, 400, endpoint=False))

    def loss(distance: float) -> float:
        speed = np.clip(edges - distance, -1, 1)
        reward, survival = ((1 + speed) / 2).mean(), 1 - risk(speed, edges).mean()
        return -float(reward * (1 - survival**LENGTH) / (1 - survival))

    found: Any = minimize_scalar(loss, bounds=(-1, 1), method="bounded")
    return -float(found.fun)


def learn(termination: bool, seed: int, env_steps: int) -> Learner:
    """Learn online from nothing, by the published schedule: plans leave the policy over the first half."""
    torch.manual_seed(seed)
    sizes = replace(SIZES, termination=termination)
    table = TaskTable(("ledge",), torch.zeros(1, 1, 2), torch.ones(1, 1), torch.tensor([DISCOUNT]))
    learner, generator = Learner(WorldModel(sizes), table, ALONE), torch.Generator().manual_seed(seed)
    replay, actor = make_replay(sizes)(2 * env_steps, 2, 1, PLANNER.horizon), Actor(learner.model, table, PLANNER)
    actor.reset(NUM_ENVS, seed)
    envs = [Ledge() for _ in range(NUM_ENVS)]
    episodes = [[env.reset(seed=1000 * seed + i)[0]] for i, env in enumerate(envs)]
    steps: list[list[tuple[torch.Tensor, float]]] = [[] for _ in envs]
    for step in range(env_steps // NUM_ENVS):
        obs = torch.from_numpy(np.stack([seen[-1] for seen in episodes]))
        weight = max(0.0, 1 - 2 * step * NUM_ENVS / env_steps)
        action = actor.act(obs, torch.zeros(NUM_ENVS, dtype=torch.long), step > 50, True, weight)
        if step <= 50:  # seeding, by chance
            action = 2 * torch.rand(NUM_ENVS, 1, generator=generator) - 1
        over = torch.zeros(NUM_ENVS, dtype=torch.bool)
        for i, env in enumerate(envs):
            seen, reward, terminated, truncated, _ = env.step(action[i].numpy())
            episodes[i].append(seen)
            steps[i].append((action[i], reward))
            over[i] = terminated or truncated
            if over[i]:
                actions, rewards = zip(*steps[i], strict=True)
                stored = torch.from_numpy(np.stack(episodes[i])), torch.stack(actions), torch.tensor(rewards)
                replay.add(*stored, terminated, 0)
                episodes[i], steps[i] = [env.reset()[0]], []
        actor.begin_episodes(over)
        if step > 50:
            learner.update(replay.sample(128, generator), "online", generator)
            actor.refresh()
    return learner


def score(learner: Learner, plan: bool, seed: int, num_envs: int = 100) -> float:
    """Return the mean score of one episode in each environment, without noise."""
    actor = Actor(learner.model, learner.table, PLANNER)
    actor.reset(num_envs, seed)
    envs = [Ledge() for _ in range(num_envs)]
    obs = np.stack([env.reset(seed=100_000 * seed + i)[0] for i, env in enumerate(envs)])
    alive, total = np.ones(num_envs, dtype=bool), np.zeros(num_envs)
    while alive.any():
        action = actor.act(torch.from_numpy(obs), torch.zeros(num_envs, dtype=torch.long), plan, False, 0.0)
        for i in np.flatnonzero(alive):
            obs[i], reward, terminated, truncated, _ = envs[i].step(action[i].numpy())
            total[i] += reward
            alive[i] = not (terminated or truncated)
    return float(total.mean()) / best_return()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--env-steps", type=int, default=12_000)
    parser.add_argument("--termination", choices=["false", "true"], nargs="+", default=["false", "true"])
    args, begin = parser.parse_args(), time.perf_counter()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for termination in args.termination:
        scores = found[f"termination: {termination}"] = {"policy": [], "plan": []}
        for seed in args.seeds:
            learner = learn(termination == "true", seed, args.env_steps)
            for name, plan in (("policy", False), ("plan", True)):
                scores[name].append(round(score(learner, plan, seed), 3))
            print(termination, seed, {name: values[-1] for name, values in scores.items()}, flush=True)
    on = found.get("termination: true")
    gain = round(float(np.mean(on["plan"]) - np.mean(on["policy"])), 3) if on else None
    claims, seconds = {"plan_minus_policy": results.claim(gain, -0.02, "above")}, time.perf_counter() - begin
    command = " ".join(["python -m benchmarks.endings", *sys.argv[1:]])
    results.write("endings", command, seconds, claims, env_steps=args.env_steps, scores=found)


if __name__ == "__main__":
    main()
