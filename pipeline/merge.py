"""A new task learned into a checkpoint's own weights, while the tasks that it knows are rehearsed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import config
from pipeline.adapt import Settings
from pipeline.agent import Agent
from pipeline.data.demos import FILE, read_episodes
from pipeline.data.episode import Episode
from pipeline.learn.evaluator import Evaluator, summarise
from pipeline.learn.offline import learn_offline
from pipeline.learn.setup import Setup
from pipeline.learn.task_setup import Demonstrations
from pipeline.learn.training_run import TrainingRun
from pipeline.observing import Observing
from pipeline.progress import Progress
from pipeline.record import record
from pipeline.run.ranks import Ranks
from pipeline.systems import build
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec

Scores = dict[str, dict[str, Any]]  # by task: score, interval and episodes


class Merged(NamedTuple):
    """What came of it. The task is in the agent's weights."""

    before: Scores  # of the policy alone, on the new task and the rehearsed ones
    after: Scores
    run: TrainingRun

    def worst(self) -> tuple[str, float]:
        """Return the task that lost most, and how much it changed."""
        changed = {name: self.after[name]["score"] - one["score"] for name, one in self.before.items()}
        return min(changed.items(), key=lambda item: item[1])


def rehearsal(agent: Agent, folder: Path, task: str, limit: int | None = None) -> Demonstrations:
    """Return demonstrations of the tasks that the agent knows, but for `task`, from `folder/<task>/episodes.parquet`.

    Raises:
        ValueError: there are none of any of them, or a file is damaged or of another task.
    """
    found: dict[str, list[Episode]] = {}
    for name in agent.tasks:
        path = folder / name / FILE
        if name == task or not path.is_file():
            continue
        found[name] = read_episodes(path, "what published them")[:limit]
        if wrong := {episode.task for episode in found[name]} - {name}:
            raise ValueError(f"{path} holds demonstrations of {', '.join(sorted(wrong))}, expected {name} alone.")
    if not found:
        raise ValueError(
            f"{folder} holds no <task>/{FILE} of a task that the checkpoint knows "
            f"({', '.join(list(agent.tasks)[:5])}, ...): what is not rehearsed is forgotten."
        )
    return found


def played(agent: Agent, spec: TaskSpec, episodes: int, seed: int) -> list[Episode]:
    """Let an agent with the task's adapter play, and return the episodes that score no less than all in the mean.

    Raises:
        ValueError: none of them scores above 0.
    """
    kept: list[Episode] = []
    env = make(spec, spec.obs_dim, spec.action_dim)
    try:
        with Progress(f"{spec.name}: the adapter plays", episodes, "episodes") as progress:
            for number in range(seed, seed + episodes):
                agent.reset(seed=number)
                kept.append(record(env, functools.partial(_act, agent, spec.name), number, "adapter"))
                progress.update(1)
    finally:
        env.close()
    mean = float(np.mean([episode.score for episode in kept]))
    if mean <= 0:
        raise ValueError(f"the adapter scores 0 in {episodes} episodes of {spec.name}: there is nothing to merge.")
    return [episode for episode in kept if episode.score >= mean - 1e-9]  # rounding must not drop equal ones


def _act(agent: Agent, task: str, obs: np.ndarray, success: bool) -> np.ndarray:
    return agent.act(obs, task=task)


def merge(
    agent: Agent,
    spec: TaskSpec,
    demonstrations: Sequence[Episode],
    rehearsed: Demonstrations,
    share: float,
    settings: Settings,
    folder: Path,
    ranks: Ranks | None = None,
) -> Merged:
    """Train all weights on a task and on what is rehearsed, as `adapt.pretrain` and `adapt.lr` say.

    Args:
        agent: knows the task (`introduce`), and has no adapters.
        spec: the task.
        demonstrations: of it.
        rehearsed: demonstrations of tasks that the agent knows.
        share: of every batch that is of the new task, in (0, 1); the others share the rest evenly.
        settings: all parameters.
        folder: where the run is saved, and gone on with.
        ranks: the process of the run.
    """
    own = ranks or Ranks()
    learning = dataclasses.replace(settings.learning, lr=settings.adapt.lr)
    each = (1 - share) / len(rehearsed)
    weights = dict.fromkeys(agent.table.names, 0.0) | dict.fromkeys(rehearsed, each) | {spec.name: share}
    observing = Observing(agent.pixel_encoder)
    setup = Setup(
        agent.model, agent.table, agent.planner, learning, settings.runtime, settings.seed, own, folder, weights,
        observing.make_envs, **build.acting_and_replay(agent.model.config, learning),
    )  # fmt: skip
    specs = [spec, *(agent.tasks[name] for name in rehearsed)]
    make_envs = functools.partial(observing.make_envs, timeout=settings.runtime.env_timeout)
    workers, episodes = settings.runtime.env_workers, settings.evaluate.episodes
    with Evaluator(specs, episodes, *setup.widths, settings.seed + 100, workers, own, make_envs) as evaluator:
        before = _scores(agent, evaluator, "before", settings)
        demos = setup.demo_replay({**rehearsed, spec.name: list(demonstrations)})
        assert demos is not None, "there are demonstrations"
        phase = settings.adapt.pretrain
        extensions = build.online_extensions(agent.model, agent.table, learning, seed=settings.seed)
        learner = setup.learner(phase.warmup_updates, extensions)
        run = setup.run(f"merge {spec.name}", folder / "merge", learner, phase, [spec], agent.actor, plan=True)
        with run:
            learn_offline(run, demos)
        agent.actor.refresh()
        after = _scores(agent, evaluator, "after", settings)
    return Merged(before, after, run)


def _scores(agent: Agent, evaluator: Evaluator, label: str, settings: Settings) -> Scores:
    measured: config.Evaluate = settings.evaluate
    names = [spec.name for spec in evaluator.specs]
    found = evaluator.run(agent.actor, names, False, f"merge: {label}", settings.seed)
    return summarise(dict(zip(names, found, strict=True)), measured, settings.seed)[0]
