"""Evaluation: whole episodes on every task, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline import config
from pipeline.learn.pieces import act_in_pieces
from pipeline.model.actor import Actor
from pipeline.progress import Progress
from pipeline.run.ranks import Ranks
from pipeline.statistics import summarise_tasks
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv
from pipeline.tasks.vector import Step, VectorEnv

_RETURN = 0.1  # weight of the relative difference of two returns beside that of their scores
_ENVS_PER_TASK, _MOST_ENVS = 5, 300  # enough to fill a batch, few enough to keep the simulators' memory small


@dataclass
class Result:
    """Scores and returns of one task, per episode."""

    scores: list[float] = field(default_factory=list)  # each in [0, 1]
    episode_returns: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean score."""
        return float(np.mean(self.scores))

    def better_than(self, other: Result) -> bool:
        """Whether the score is higher, or alike and the return is: a return twice as high counts as 0.05 of score."""
        own, others = float(np.mean(self.episode_returns)), float(np.mean(other.episode_returns))
        gained = (own - others) / (max(abs(own), abs(others)) or 1.0)
        return self.score - other.score + _RETURN * min(max(gained, -1.0), 1.0) > 0


class GivenUp(Exception):
    """An evaluation was stopped before its end; its episodes do not count."""


class Evaluator:
    """Plays the same seeded episodes at every call, shared among all ranks.

    Args:
        specs: the tasks.
        episodes: per task.
        obs_dim: O.
        action_dim: A.
        seed: of the first episodes; independent of training's.
        num_workers: processes stepping the environments, on each rank.
        ranks: the processes of the run, which share the environments.
        make_envs: makes the environments; called like `VectorEnv`.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        episodes: int,
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        ranks: Ranks | None = None,
        make_envs: Callable[..., VectorEnv] = VectorEnv,
    ):
        self.specs, self.episodes, self._ranks = list(specs), episodes, ranks or Ranks()
        self._action_dim = action_dim
        each = envs_per_task(len(specs), episodes)
        # Tasks of one episode length step together, so that no environment waits for a longer one. All of them lie in
        # one vector: each group has all its workers.
        self._groups: list[_Group] = []
        own_specs: list[TaskSpec] = []
        numbers: list[int] = []
        for length in sorted({spec.episode_length for spec in specs}):
            members = [i for i, spec in enumerate(specs) if spec.episode_length == length]
            everyone = [(i, copy) for i in members for copy in range(each)]
            own_numbers = self._ranks.shard(range(len(everyone)))
            if own_numbers:
                tasks, copies = np.array([everyone[number] for number in own_numbers]).T
                wanted = (episodes - copies + each - 1) // each
                self._groups.append(_Group(tasks, copies, wanted, len(own_specs) + np.arange(len(tasks))))
                own_specs += [specs[i] for i in tasks]
                numbers += own_numbers
        self._envs: VectorEnv | None = None
        if own_specs:
            self._envs = make_envs(own_specs, obs_dim, action_dim, seed, min(num_workers, len(own_specs)), numbers)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._envs is not None:
            self._envs.close()

    def run(
        self,
        actor: Actor,
        instructed: Sequence[str],
        plan: bool,
        label: str,
        seed: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[Result]:
        """Play every task and return its results on every rank, in the order of `specs`, episodes in a fixed order.

        Args:
            actor: acts without exploring.
            instructed: per task, the name of the task whose instruction the actor is given (normally its own).
            plan: with the planner, else with the policy alone.
            label: for the progress bar.
            seed: of the actor's random numbers; each rank adds its own, so plans depend on the number of ranks.
            stopped: called once per step; True ends the evaluation.

        Raises:
            GivenUp: on every rank, if any of them was stopped.
        """
        played: list[_Played] | None = []
        total = sum(int(group.wanted.sum()) for group in self._groups)
        with Progress(label, total, "episodes", quiet=not self._ranks.is_main) as progress:
            for group in self._groups:
                found = self._play(actor, group, instructed, plan, seed + self._ranks.rank, progress, stopped)
                played = None if played is None or found is None else played + found
        everyone = self._ranks.collect(played)
        results = [Result() for _ in self.specs]
        if any(part is None for part in everyone):
            raise GivenUp
        for task, _, _, score, episode_return in sorted(one for part in everyone for one in part):
            results[task].scores.append(score)
            results[task].episode_returns.append(episode_return)
        return results

    def _play(
        self,
        actor: Actor,
        group: _Group,
        instructed: Sequence[str],
        plan: bool,
        seed: int,
        progress: Progress,
        stopped: Callable[[], bool],
    ) -> list[_Played] | None:
        envs = self._envs
        assert envs is not None
        playing = np.isin(np.arange(len(envs.specs)), group.envs)
        action = np.zeros((len(playing), self._action_dim), np.float32)
        rows = actor.rows([instructed[int(task)] for task in group.tasks])
        count = np.zeros(len(rows), dtype=int)
        returns = np.zeros(len(rows))
        played = []
        obs = envs.reset(playing)[group.envs]
        actor.reset(len(rows), seed=seed)
        while (count < group.wanted).any():
            if stopped():
                return None
            action[group.envs] = act_in_pieces(actor, torch.from_numpy(obs), rows, plan).numpy()
            envs.begin_step(action, playing)
            step = Step(*(part[group.envs] for part in envs.end_step()))
            obs = step.obs
            returns += step.reward
            done = step.terminated | step.truncated
            for i in np.flatnonzero(done):
                if count[i] < group.wanted[i]:
                    task, total = int(group.tasks[i]), float(returns[i])
                    score = self.specs[task].evaluate(total, bool(step.success[i]))
                    played.append(_Played(task, int(count[i]), int(group.copies[i]), score, total))
                    count[i] += 1
                    progress.update(1)
            done |= step.lost  # another episode takes the place of a failed one
            returns[done] = 0
            actor.begin_episodes(torch.from_numpy(done))
        return played


def envs_per_task(num_tasks: int, episodes: int) -> int:
    """Return how many environments play the episodes of each task: 5 with up to 60 tasks, 2 with 150, 1 with 200."""
    return min(episodes, max(1, min(_ENVS_PER_TASK, _MOST_ENVS // max(num_tasks, 1))))


class _Group(NamedTuple):
    """Environments of one episode length, those of this rank."""

    tasks: np.ndarray  # (N,) index of each environment's task
    copies: np.ndarray  # (N,) its number among the environments of that task
    wanted: np.ndarray  # (N,) episodes to play in it
    envs: np.ndarray  # (N,) its index in the vector of all groups


class _Played(NamedTuple):
    """One finished episode; sorting them gives the order of their seeds."""

    task: int
    episode: int
    copy: int
    score: float
    episode_return: float


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
    actor: Actor,
    spec: TaskSpec,
    env: TaskEnv,
    seed: int,
    every: int,
    observe: Callable[[TaskEnv, np.ndarray], np.ndarray] = lambda env, obs: obs[None].copy(),
) -> tuple[list[np.ndarray], float]:
    """Play one planned episode and return its frames (size, size, 3) uint8 and its score; the environment is closed.

    Args:
        actor: acts.
        spec: the task.
        env: its environment, which draws.
        seed: of the episode and of the actor.
        every: agent steps per frame.
        observe: turns an observation of the environment (O,) into one for the actor (1, O).

    Raises:
        RenderingUnavailable: the machine has no EGL; the message names the packages.
    """
    try:
        rows = actor.rows([spec.name])
        obs, _ = env.reset(seed=seed)
        actor.reset(1, seed=seed)
        frames, total, success = [env.render()], 0.0, False
        done, number = False, 0
        while not done:
            observed = torch.from_numpy(observe(env, obs))
            obs, reward, terminated, truncated, info = env.step(actor.act(observed, rows, plan=True)[0].numpy())
            total, number = total + float(reward), number + 1
            success, done = bool(info["success"]), terminated or truncated
            if done or number % every == 0:
                frames.append(env.render())
    finally:
        env.close()
    return frames, spec.evaluate(total, success)
