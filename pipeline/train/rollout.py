"""Collecting episodes: many environments step together, whole episodes go into the replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv

# What is saved with a row per environment, and the dim of these rows.
_BY_ENVIRONMENT = {
    "length": 0,
    "episodes": 0,
    "actor.is_first": 0,
    "actor.prev_mean": 1,
    "actor.past_obs": 1,
    "actor.past_action": 1,
    "actor.past_length": 0,
}


class Finished(NamedTuple):
    """One episode that has just ended."""

    env: int  # which of the environments
    task: str
    episode_return: float
    score: float


class Collector:
    """Steps the environments with an actor and stores every finished episode.

    Args:
        specs: the task of each environment.
        rows: (N,) row of the task table of each environment.
        envs: the environments, in the order of `specs`.
        actor: acts, exploring.
        replay: takes the episodes.
        imitate: how much the policy imitates these episodes.
        seed: of the actor's random numbers.

    Attributes:
        episodes: (N,) finished episodes of each environment.

    Raises:
        ValueError: the episodes of a task are shorter than a slice.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        rows: Tensor,
        envs: VectorEnv,
        actor: Actor,
        replay: ReplayBuffer,
        imitate: config.Imitate,
        seed: int,
    ):
        for spec in specs:
            if spec.episode_length < replay.horizon:
                raise ValueError(
                    f"episodes of {spec.name} have {spec.episode_length} agent steps, planner.horizon is "
                    f"{replay.horizon}: no slice of one fits. Lower the horizon or leave the task out."
                )
        self._imitate = imitate
        self._specs, self._rows, self._envs, self._actor, self._replay = list(specs), rows, envs, actor, replay
        num_envs, longest = len(specs), max(spec.episode_length for spec in specs)
        model = actor.model.config
        # The episodes under way; an environment's row is copied into the replay when its episode ends.
        self._obs = torch.zeros(num_envs, longest + 1, model.obs_dim)
        self._action = torch.zeros(num_envs, longest, model.action_dim)
        self._reward = torch.zeros(num_envs, longest)
        self._log_prob = torch.zeros(num_envs, longest) if "log_prob" in replay.columns else None
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._stepping = np.arange(num_envs)  # the environments that the step under way is for
        self.episodes = np.zeros(num_envs, dtype=np.int64)  # episodes ended per environment, lost ones too
        self._actor.reset(num_envs, seed=seed)
        self._start(self._envs.reset())
        self.episodes[:] = self._envs.episodes

    def begin_step(
        self, plan: bool | Tensor, constraint_weight: float | Tensor, playing: np.ndarray | None = None
    ) -> None:
        """Choose actions and let the environments step; the caller may do something else meanwhile.

        Args:
            plan: with the planner, else with the policy alone; for all, or (N,) bool.
            constraint_weight: how much the plan starts from the policy's own, in [0, 1], for all or (N,).
            playing: (N,) bool, the environments that step; the others rest in the middle of an episode. None for all.
        """
        which = self._stepping = np.arange(len(self._specs)) if playing is None else np.flatnonzero(playing)
        if len(which) == len(self._specs):
            playing = None
        envs = None if playing is None else torch.from_numpy(which)
        if envs is not None:
            plan = plan[envs] if isinstance(plan, Tensor) else plan
            constraint_weight = constraint_weight[envs] if isinstance(constraint_weight, Tensor) else constraint_weight
        action = torch.zeros(len(self._specs), self._action.shape[2])
        if len(which):
            length = self._length[which]
            obs, rows = self._obs[which, length], self._rows if envs is None else self._rows[envs]
            if self._log_prob is None:
                action[which] = self._actor.act(obs, rows, plan, True, constraint_weight, envs)
            else:
                action[which], log_prob = self._actor.explore(obs, rows, plan, constraint_weight, envs)
                self._log_prob[which, length] = log_prob
            self._action[which, length] = action[which]
        self._envs.begin_step(action.numpy(), playing)

    def end_step(self) -> list[Finished]:
        """Wait for the environments and return the episodes that ended with this step.

        Raises:
            ValueError: an observation or reward is not finite; the task is named.
        """
        step = self._envs.end_step()
        which = self._stepping
        self._reward[which, self._length[which]] = torch.from_numpy(step.reward[which])
        for name, values in (("reward", step.reward), ("observation", step.final_obs)):
            if not np.isfinite(values).all():
                i = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise ValueError(
                    f"the environment of {self._specs[i].name} gave a {name} that is not finite at step "
                    f"{self._length[i]} of an episode. `eft check-task` examines the task; leave it out until it is "
                    "mended."
                )
        self._length[which] += 1
        self._obs[which, self._length[which]] = torch.from_numpy(step.final_obs[which])
        done = step.terminated | step.truncated
        finished = [self._finish(int(i), bool(step.terminated[i]), bool(step.success[i])) for i in np.flatnonzero(done)]
        done |= step.lost  # a failed episode never reaches the replay
        if done.any():
            self._length[done] = 0
            self.episodes[done] = self._envs.episodes[done]
            self._obs[torch.from_numpy(done), 0] = torch.from_numpy(step.obs[done])
            self._actor.begin_episodes(torch.from_numpy(done))
        return finished

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the episodes under way and the actor's state, for a bit-for-bit resume."""
        steps = {"action": self._action, "reward": self._reward}
        if self._log_prob is not None:
            steps["log_prob"] = self._log_prob
        return {
            "obs": torch.cat([self._obs[i, : length + 1] for i, length in enumerate(self._length)]),
            **{
                name: torch.cat([column[i, :length] for i, length in enumerate(self._length)])
                for name, column in steps.items()
            },
            "length": torch.from_numpy(self._length),
            "episodes": torch.from_numpy(self.episodes),
            **{f"actor.{name}": tensor for name, tensor in self._actor.state_tensors().items()},
        }

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_tensors` returned: the simulators replay the actions of the episodes under way.

        Raises:
            ValueError: a simulator does not come to the saved observation again, so it is not deterministic.
        """
        self._length = state["length"].numpy().copy()
        columns = {"obs": self._obs, "action": self._action, "reward": self._reward}
        if self._log_prob is not None:
            columns["log_prob"] = self._log_prob
        for name, column in columns.items():
            rows = self._length + (name == "obs")
            for i, part in enumerate(state[name].split(rows.tolist())):
                column[i, : len(part)] = part
        self.episodes = state["episodes"].numpy().copy()
        actions = [self._action[i, :length].numpy() for i, length in enumerate(self._length)]
        obs = self._envs.restore(self.episodes, actions)
        for i, spec in enumerate(self._specs):
            if not np.array_equal(obs[i], self._obs[i, self._length[i]].numpy()):
                raise ValueError(
                    f"the environment of {spec.name} did not return to its saved state after its {self._length[i]} "
                    "actions were replayed: it is not deterministic under a seed, so this run cannot be resumed. "
                    "`eft check-task` examines the task; delete .resume/ to start anew."
                )
        actor_state: dict[str, Any] = {
            name.removeprefix("actor."): tensor for name, tensor in state.items() if name.startswith("actor.")
        }
        if "generator" not in actor_state:  # environments dealt anew: they have come from several ranks
            actor_state["generator"] = self._actor.state_tensors()["generator"]
        self._actor.load_state_tensors(actor_state)

    def _start(self, obs: np.ndarray) -> None:
        self._obs[:, 0] = torch.from_numpy(obs)

    def _finish(self, i: int, terminated: bool, success: bool) -> Finished:
        length, spec = int(self._length[i]), self._specs[i]
        episode_return = float(self._reward[i, :length].sum())
        score = spec.evaluate(episode_return, success)
        self._replay.add(
            self._obs[i, : length + 1],
            self._action[i, :length],
            self._reward[i, :length],
            terminated,
            int(self._rows[i]),
            imitation={"all": 1.0, "score": score, "none": 0.0}[self._imitate],
            columns={} if self._log_prob is None else {"log_prob": self._log_prob[i, :length]},
        )
        return Finished(i, spec.name, episode_return, score)


def deal_state(states: Sequence[dict[str, Tensor]], rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Deal the environments of a run to another number of ranks.

    Args:
        states: of the collectors of all ranks of before, rank after rank; environment i was on rank i % len(states).
        rank: the new rank.
        num_ranks: how many ranks there are now.

    Returns:
        what the collector of that rank loads: all but the random numbers of acting.
    """
    numbers = range(rank, sum(len(state["length"]) for state in states), num_ranks)
    places = [(states[number % len(states)], number // len(states)) for number in numbers]
    dealt: dict[str, Tensor] = {}
    for name in ("obs", "action", "reward", "log_prob"):
        if name not in states[0]:
            continue
        extra = int(name == "obs")
        dealt[name] = torch.cat([state[name].split((state["length"] + extra).tolist())[i] for state, i in places])
    for name, dim in _BY_ENVIRONMENT.items():
        if name in states[0]:  # the past is that of a model with history
            dealt[name] = torch.stack([state[name].select(dim, i) for state, i in places], dim)
    return dealt


def deal_episodes(part: dict[str, Tensor], replay: ReplayBuffer, takes: Callable[[int, int], bool]) -> None:
    """Add episodes of a saved replay to another one.

    Args:
        part: what `ReplayBuffer.state_tensors` returned.
        replay: takes them.
        takes: says by its row of the task table and its number whether an episode is taken.
    """
    columns = part["episodes"]
    first = int(part["counters"][1]) - columns.shape[1]
    lengths = (columns[1] + 1).tolist()
    rows = zip(*(part[name].split(lengths) for name in ("obs", "action", "reward", *replay.columns)), strict=True)
    for i, (obs, action, reward, *others) in enumerate(rows):
        _, length, task, terminated = columns[:, i].tolist()
        if takes(task, first + i):
            imitation = float(part["imitation"][i])
            kept = {name: values[:length] for name, values in zip(replay.columns, others, strict=True)}
            steps = obs, action[:length], reward[:length]
            replay.add(*steps, bool(terminated), task, imitation=imitation, columns=kept)
