"""Collecting episodes: many environments step together, and each episode is stored when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.returns import Returns
from pipeline.model.actor import Actor
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv

# What is saved with a row per environment, and the dim of these rows; the actor's own come from `Actor.ENV_DIMS`.
_ENV_DIMS = {"length": 0, "episodes": 0}
_MOST_SHORT = 50  # episodes shorter than a slice, while none was stored; then nothing will ever be learned
_log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """One episode that has just ended."""

    env: int  # which of the environments
    task: str
    episode_return: float
    score: float
    whole: bool = True  # False of a first episode that was cut off, whose score says nothing


class Collector:
    """Steps the environments with an actor and stores every finished episode.

    Args:
        specs: the task of each environment.
        rows: (N,) row of the task table of each environment.
        envs: the environments, in the order of `specs`; with labels, the replay must keep expert actions.
        actor: acts, exploring.
        replay: takes the episodes, with those columns of the actor's that it keeps.
        settings: `imitate`, how much the policy imitates these episodes where no expert labels them;
            `seeding_episodes`, how many per environment the policy plays alone before training begins; `stagger`,
            whether the first ones were cut off.
        seed: of the actor's random numbers.
        returns: gives each episode its value targets when it is stored; None where Q has others.

    Attributes:
        episodes: (N,) finished episodes of each environment.
        seeded: enough episodes were played for training to begin.

    Raises:
        ValueError: the time limit of a task is shorter than a slice.
    """

    def __init__(
        self,
        specs: Sequence[TaskSpec],
        rows: Tensor,
        envs: VectorEnv,
        actor: Actor,
        replay: ReplayBuffer,
        settings: config.Finetune,
        seed: int,
        returns: Returns | None = None,
    ):
        for spec in specs:
            if spec.episode_length < replay.horizon:
                raise ValueError(
                    f"episodes of {spec.name} have {spec.episode_length} agent steps, planner.horizon is "
                    f"{replay.horizon}: no slice of one fits. Lower the horizon or leave the task out."
                )
        self._settings, self.seeded, self._returns = settings, False, returns
        self._specs, self._rows, self._envs, self._actor, self._replay = list(specs), rows, envs, actor, replay
        num_envs, longest = len(specs), max(spec.episode_length for spec in specs)
        model = actor.model.config
        # The episodes under way; an environment's row is copied into the replay when its episode ends.
        self._obs = torch.zeros(num_envs, longest + 1, model.obs_dim)
        self._action = torch.zeros(num_envs, longest, model.action_dim)
        self._reward = torch.zeros(num_envs, longest)
        self._columns = {name: torch.zeros(num_envs, longest) for name in replay.columns}
        self._labelled = np.array([envs.labels is not None and spec.name in envs.labels.kinds for spec in specs])
        self._expert_action = torch.zeros_like(self._action) if replay.keeps_expert_actions else None
        self._short: dict[str, int] = {}  # episodes of each task that were left out, shorter than a slice
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._stepping = np.arange(num_envs)  # the environments that the step under way is for
        self.episodes = np.zeros(num_envs, dtype=np.int64)  # episodes ended per environment, lost ones too
        self._actor.reset(num_envs, seed=seed)
        self._start(self._envs.reset())
        self.episodes[:] = self._envs.episodes

    @property
    def tasks(self) -> set[int]:
        """The rows of the task table that are played here."""
        return set(self._rows.tolist())

    @property
    def env_dims(self) -> dict[str, int]:
        """What `state_tensors` holds with a row per environment, and the dim of these rows."""
        return _ENV_DIMS | {f"actor.{name}": dim for name, dim in self._actor.ENV_DIMS.items()}

    def seeding(self, playing: np.ndarray) -> bool:
        """Whether an environment among `playing` (N,) bool has still to finish its `seeding_episodes`."""
        return not (self.seeded or ((self.episodes >= self._settings.seeding_episodes) | ~playing).all())

    def begin_step(self, plan: Tensor, constraint_weight: Tensor, playing: np.ndarray | None = None) -> None:
        """Choose actions and let the environments step; the caller may do something else meanwhile.

        Args:
            plan: (N,) bool, with the planner, else with the policy alone.
            constraint_weight: (N,) in [0, 1], weight of the policy's rollouts in the plan's first mean and std.
            playing: (N,) bool, the environments that step; the others are paused within their episode. None for all.
        """
        everyone = playing is None or bool(playing.all())
        which = self._stepping = np.arange(len(self._specs)) if playing is None else np.flatnonzero(playing)
        envs = None if everyone else torch.from_numpy(which)
        action = torch.zeros(len(self._specs), self._action.shape[2])
        if len(which):
            length = self._length[which]
            own = (self._rows, plan, constraint_weight)
            rows, plan, constraint_weight = own if envs is None else (part[envs] for part in own)
            action[which] = self._actor.act(self._obs[which, length], rows, plan, True, constraint_weight, envs)
            for name, column in self._columns.items():
                column[which, length] = self._actor.columns[name]
            self._action[which, length] = action[which]
            if self._expert_action is not None:
                intended = self._settings.imitated == "intended"
                self._expert_action[which, length] = self._actor.intended if intended else action[which]
        self._envs.begin_step(action.numpy(), None if everyone else playing)

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
        if self._expert_action is not None and self._labelled.any():
            asked = which[self._labelled[which]]
            self._expert_action[asked, self._length[asked]] = torch.from_numpy(step.label[asked])
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
        return {
            **{
                name: torch.cat([column[i, : length + (name == "obs")] for i, length in enumerate(self._length)])
                for name, column in self._steps.items()
            },
            "length": torch.from_numpy(self._length),
            "episodes": torch.from_numpy(self.episodes),
            "seeded": torch.tensor([self.seeded]),
            **{f"actor.{name}": tensor for name, tensor in self._actor.state_tensors().items()},
        }

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state_tensors` returned: the simulators replay the actions of the episodes under way.

        Raises:
            ValueError: a simulator does not come to the saved observation again, so it is not deterministic.
        """
        self._length, self.seeded = state["length"].numpy().copy(), bool(state["seeded"])
        for name, column in self._steps.items():
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
        prefix = "actor."
        actor = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        # With another number of ranks there is no saved random state for this one: it keeps that of its seed.
        own = {name: part for name, part in self._actor.state_tensors().items() if name in ("generator", "members")}
        self._actor.load_state_tensors({**own, **actor})

    @property
    def _steps(self) -> dict[str, Tensor]:
        """What is kept of each step of the episodes under way, by name."""
        labels = {} if self._expert_action is None else {"expert_action": self._expert_action}
        return {"obs": self._obs, "action": self._action, "reward": self._reward, **self._columns, **labels}

    def _start(self, obs: np.ndarray) -> None:
        self._obs[:, 0] = torch.from_numpy(obs)

    def _finish(self, i: int, terminated: bool, success: bool) -> Finished:
        length, spec = int(self._length[i]), self._specs[i]
        episode_return = float(self._reward[i, :length].sum())
        score = spec.evaluate(episode_return, success)
        cut = self._settings.stagger and not self.episodes[i] and not terminated and length < spec.episode_length
        imitation = {"all": 1.0, "score": 0.0 if cut else score, "none": 0.0}[self._settings.imitate]
        obs, reward, task = self._obs[i, : length + 1], self._reward[i, :length], int(self._rows[i])
        self._replay.add(
            obs,
            self._action[i, :length],
            reward,
            terminated,
            task,
            expert_action=None if self._expert_action is None else self._expert_action[i, :length],
            imitation=1.0 if self._labelled[i] else imitation,  # an expert's action is right however the episode went
            columns={name: column[i, :length] for name, column in self._columns.items()},
            value_target=None if self._returns is None else self._returns.of_episode(obs, reward, terminated, task),
        )
        if length < self._replay.horizon:
            self._left_out(spec.name, length)
        return Finished(i, spec.name, episode_return, score, not cut)

    @property
    def only_short(self) -> str:
        """What to say where every task has had such episodes alone, many of them; empty where something is stored."""
        everyone = self._short.keys() >= {spec.name for spec in self._specs}
        if not everyone or self._replay.num_episodes or sum(self._short.values()) < _MOST_SHORT:
            return ""
        return (
            f"episodes of {', '.join(sorted(self._short))} end before planner.horizon = {self._replay.horizon} agent "
            f"steps. All of the first {_MOST_SHORT} episodes were shorter, so there is nothing to learn from. "
            "Let the environment go on for longer, lower action_repeat or the horizon, or leave the task out."
        )

    def _left_out(self, task: str, length: int) -> None:
        """Count an episode that was too short to be stored, and say so once of each task."""
        self._short[task] = self._short.get(task, 0) + 1
        if self._short[task] == 1:
            _log.warning(
                "an episode of %s ended after %d agent steps. Those of fewer than planner.horizon = %d are not learned "
                "from: no slice of one fits. The score counts them.", task, length, self._replay.horizon,
            )  # fmt: skip


def share_out_state(
    states: Sequence[dict[str, Tensor]], rank: int, num_ranks: int, env_dims: dict[str, int]
) -> dict[str, Tensor]:
    """Redistribute the environments of a run over another number of ranks.

    Args:
        states: of the collectors of all old ranks, in order; environment i was on rank i % len(states).
        rank: the new rank.
        num_ranks: how many ranks there are now.
        env_dims: `Collector.env_dims`.

    Returns:
        the state that this rank's collector loads, without the actor's random state.
    """
    numbers = range(rank, sum(len(state["length"]) for state in states), num_ranks)
    places = [(states[number % len(states)], number // len(states)) for number in numbers]
    found = {"seeded": states[0]["seeded"]}
    for name in states[0].keys() - env_dims.keys() - {"seeded", "actor.generator", "actor.members"}:  # a row per step
        extra = int(name == "obs")
        found[name] = torch.cat([state[name].split((state["length"] + extra).tolist())[i] for state, i in places])
    for name, dim in env_dims.items():
        found[name] = torch.stack([state[name].select(dim, i) for state, i in places], dim)
    return found


def share_out_episodes(part: dict[str, Tensor], replay: ReplayBuffer, takes: Callable[[int, int], bool]) -> None:
    """Add those episodes of a saved replay that this rank takes.

    Args:
        part: what `ReplayBuffer.state_tensors` returned.
        replay: takes them.
        takes: called with an episode's row of the task table and its number; whether this rank takes it.
    """
    columns = part["episodes"]
    first = int(part["counters"][1]) - columns.shape[1]
    lengths = (columns[1] + 1).tolist()
    names = ["obs", "action", "reward", *replay.columns, *(["expert_action"] if replay.keeps_expert_actions else [])]
    rows = zip(*(part[name].split(lengths) for name in names), strict=True)
    for i, steps in enumerate(rows):
        _, length, task, terminated = columns[:, i].tolist()
        if takes(task, first + i):
            obs, *others = steps
            kept = {name: values[:length] for name, values in zip(names[1:], others, strict=True)}
            replay.add(
                obs,
                kept.pop("action"),
                kept.pop("reward"),
                bool(terminated),
                task,
                expert_action=kept.pop("expert_action", None),
                imitation=float(part["imitation"][i]),
                columns=kept,
            )
