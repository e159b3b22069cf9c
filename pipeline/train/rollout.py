"""Collecting episodes: many environments step together, whole episodes go into the replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.data.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv


class Finished(NamedTuple):
    """One episode that has just ended."""

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
        self._imitate = imitate
        self._specs, self._rows, self._envs, self._actor, self._replay = list(specs), rows, envs, actor, replay
        num_envs, longest = len(specs), max(spec.episode_length for spec in specs)
        model = actor.model.config
        # The episodes under way; an environment's row is copied into the replay when its episode ends.
        self._obs = torch.zeros(num_envs, longest + 1, model.obs_dim)
        self._action = torch.zeros(num_envs, longest, model.action_dim)
        self._reward = torch.zeros(num_envs, longest)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self.episodes = np.zeros(num_envs, dtype=np.int64)  # episodes ended per environment, lost ones too
        self._actor.reset(num_envs, seed=seed)
        self._start(self._envs.reset())
        self.episodes[:] = self._envs.episodes

    def step(self, plan: bool, constraint_weight: float) -> list[Finished]:
        """Step every environment once and return the episodes that ended with it.

        Args:
            plan: with the planner, else with the policy alone.
            constraint_weight: how much the plan starts from the policy's own, in [0, 1].
        """
        everyone = np.arange(len(self._specs))
        action = self._actor.act(
            self._obs[everyone, self._length], self._rows, plan, explore=True, constraint_weight=constraint_weight
        )
        step = self._envs.step(action.numpy())
        self._action[everyone, self._length] = action
        self._reward[everyone, self._length] = torch.from_numpy(step.reward)
        self._length += 1
        self._obs[everyone, self._length] = torch.from_numpy(step.final_obs)
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
        return {
            "obs": self._obs,
            "action": self._action,
            "reward": self._reward,
            "length": torch.from_numpy(self._length),
            "episodes": torch.from_numpy(self.episodes),
            **{f"actor.{name}": tensor for name, tensor in self._actor.state_tensors().items()},
        }

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_tensors` returned: the simulators replay the actions of the episodes under way.

        Raises:
            ValueError: a simulator does not come to the saved observation again, so it is not deterministic.
        """
        for name in ("obs", "action", "reward"):
            getattr(self, f"_{name}")[:] = state[name]
        self._length = state["length"].numpy().copy()
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
        )
        return Finished(spec.name, episode_return, score)
