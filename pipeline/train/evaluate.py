"""Playing whole episodes with a checkpoint, and the score of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pipeline import config
from pipeline.model.actor import Actor
from pipeline.progress import Progress
from pipeline.statistics import summarise_tasks
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv
from pipeline.train.seeing import make_envs
from pipeline.vision.sight import Sight

_ENVS_PER_TASK = 5  # enough to fill a batch, few enough to keep the simulators' memory small


@dataclass
class Result:
    """What was reached on one task, per episode."""

    scores: list[float] = field(default_factory=list)  # each in [0, 1]
    episode_returns: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))


class Evaluator:
    """Plays the same episodes, from the same seeds, with any number of checkpoints.

    Args:
        specs: the tasks.
        episodes: per task.
        obs_dim: O.
        action_dim: A.
        seed: of the first episodes; independent of training's.
        num_workers: processes stepping the environments.
        sight: what is observed beside or in place of the state, None for the state alone.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        episodes: int,
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        sight: Sight | None = None,
    ):
        self.specs, self.episodes = list(specs), episodes
        self._envs_per_task = min(episodes, _ENVS_PER_TASK)
        # Tasks of one episode length step together, so that no environment waits for a longer one.
        self._groups: list[tuple[list[int], VectorEnv]] = []
        for length in sorted({spec.episode_length for spec in specs}):
            members = [i for i, spec in enumerate(specs) if spec.episode_length == length]
            repeated = [specs[i] for i in members for _ in range(self._envs_per_task)]
            envs = make_envs(sight, repeated, obs_dim, action_dim, seed, min(num_workers, len(repeated)))
            self._groups.append((members, envs))

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _, envs in self._groups:
            envs.close()

    def run(self, actor: Actor, told: Sequence[str], plan: bool, label: str, seed: int) -> list[Result]:
        """Play every task and return its results, in the order of `specs`.

        Args:
            actor: acts without exploring.
            told: per task, the name of the task whose instruction the actor is given (normally its own).
            plan: with the planner, else with the policy alone.
            label: for the progress bar.
            seed: of the actor's own random numbers.
        """
        results = [Result() for _ in self.specs]
        total = self.episodes * len(self.specs)
        with Progress(label, total, "episodes") as progress:
            for members, envs in self._groups:
                self._play(actor, members, envs, [told[i] for i in members], plan, seed, results, progress)
        return results

    def _play(
        self,
        actor: Actor,
        members: list[int],
        envs: VectorEnv,
        told: list[str],
        plan: bool,
        seed: int,
        results: list[Result],
        progress: Progress,
    ) -> None:
        each = self._envs_per_task
        task_of = np.repeat(members, each)
        rows = actor.rows([name for name in told for _ in range(each)])
        wanted = np.tile([math.ceil((self.episodes - j) / each) for j in range(each)], len(members))
        played = np.zeros(len(task_of), dtype=int)
        returns = np.zeros(len(task_of))
        obs = envs.reset()
        actor.reset(len(task_of), seed=seed)
        while (played < wanted).any():
            step = envs.step(actor.act(torch.from_numpy(obs), rows, plan).numpy())
            obs = step.obs
            returns += step.reward
            done = step.terminated | step.truncated
            for i in np.flatnonzero(done):
                if played[i] < wanted[i]:
                    result = results[task_of[i]]
                    spec = self.specs[task_of[i]]
                    result.scores.append(spec.evaluate(float(returns[i]), bool(step.success[i])))
                    result.episode_returns.append(float(returns[i]))
                    played[i] += 1
                    progress.update(1)
            done |= step.lost  # another episode takes the place of a failed one
            returns[done] = 0
            actor.begin_episodes(torch.from_numpy(done))


def summarise(
    results: Mapping[str, Result], settings: config.Evaluate, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return each task's score with its interval and episodes, and the mean over tasks with its interval, for JSON."""
    tasks, mean = summarise_tasks(
        {name: result.scores for name, result in results.items()}, settings.confidence, settings.bootstrap_samples, seed
    )
    return {
        name: {
            **estimate._asdict(),
            "scores": results[name].scores,
            "episode_return": float(np.mean(results[name].episode_returns)),
        }
        for name, estimate in tasks.items()
    }, mean._asdict()


def record(
    actor: Actor, spec: TaskSpec, seed: int, settings: config.Evaluate, sight: Sight | None = None
) -> tuple[list[np.ndarray], float]:
    """Play one planned episode and return its frames (size, size, 3) uint8 and its score.

    An actor that sees is filmed as it sees: in the size of its pictures.

    Raises:
        RenderingUnavailable: the machine has no EGL; the message names the packages.
    """
    model = actor.model.config
    env = make(spec, model.obs_dim, model.action_dim, sight.encoder.size if sight else settings.video_size)

    def look(obs: np.ndarray) -> np.ndarray:
        batch = obs[None].copy()
        if sight:
            sight.look(batch, [spec.obs_dim], sight.encoder.encode(env.render()[None]))
        return batch

    try:
        rows = actor.rows([spec.name])
        obs, _ = env.reset(seed=seed)
        actor.reset(1, seed=seed)
        frames, total, success = [env.render()], 0.0, False
        done, number = False, 0
        while not done:
            action = actor.act(torch.from_numpy(look(obs)), rows, plan=True)[0].numpy()
            obs, reward, terminated, truncated, info = env.step(action)
            total, number = total + float(reward), number + 1
            success, done = bool(info["success"]), terminated or truncated
            if done or number % settings.video_every == 0:
                frames.append(env.render())
    finally:
        env.close()
    return frames, spec.evaluate(total, success)
