"""Learning one new task on a trained model: from demonstrations, from interaction, or from both in this order."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.episode import Episode, say_unrewarded
from pipeline.demonstrate.labels import find_labels, methods_of, who_labels
from pipeline.examine import Reference, apart, examine_actions, unlike
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.learn.early_stop import EarlyStop
from pipeline.learn.evaluator import Evaluator, summarise
from pipeline.learn.offline import learn_offline
from pipeline.learn.setup import Setup
from pipeline.learn.task_setup import observation_statistics, observed_at_random, task_discount
from pipeline.learn.training_run import TrainingRun
from pipeline.observing import Observing
from pipeline.run.ranks import Ranks
from pipeline.systems import build
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.video import write_video

Event = Literal["zero-shot", "evaluated", "demonstrated", "adapted"]
Watch = Callable[[Event, list[dict[str, float]]], None]  # called with what has just happened, and all evaluations


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every parameter that adapting reads."""

    adapt: config.Adapt
    learning: config.Learning
    evaluate: config.Evaluate
    runtime: config.Runtime
    seed: int

    @property
    def shaping(self) -> list[Any]:
        """What the result depends on beside the inputs."""
        return [self.adapt, self.learning]


class Adapted(NamedTuple):
    """What came of it. The adapter is in the agent."""

    zero_shot: dict[str, dict[str, Any]]  # by mode ("policy", "plan"): score, interval, episodes
    adapted: dict[str, dict[str, Any]]
    curve: list[dict[str, float]]  # every evaluation on the way: env_steps, updates, seconds, score
    runs: list[TrainingRun]  # of the phases that took place
    seconds: float  # of learning, with the evaluations on the way
    adapter_parameters: int
    base_parameters: int
    demos: int
    labels: dict[str, str] | None  # who labelled the task while it was learned online; None where nobody was asked

    def summary(self, task: str) -> dict[str, Any]:
        """Return what goes into summary.json."""
        return {
            "task": task,
            "zero_shot": self.zero_shot["plan"],
            "adapted": self.adapted["plan"],
            "policy": {"zero_shot": self.zero_shot["policy"], "adapted": self.adapted["policy"]},
            "curve": self.curve,
            "adapter_parameters": self.adapter_parameters,
            "base_parameters": self.base_parameters,
            "demos": self.demos,
            "labels": self.labels,
        }


def introduce(
    agent: Agent,
    spec: TaskSpec,
    embeddings: TaskEmbeddings,
    demonstrations: Sequence[Episode],
    learning: config.Learning,
    seed: int,
) -> None:
    """Make a task known to the agent, unless it is.

    How observations of a body that the agent has not met are centred and scaled is taken from the demonstrations;
    without any, from random actions.

    Raises:
        ValueError: another task of this name is known, the task does not fit the model, or the demonstrations do not
            fit the task.
    """
    width = Observing(agent.pixel_encoder).width(spec)
    for number, episode in enumerate(demonstrations):
        widths = episode.obs.shape[1], episode.action.shape[1]
        if episode.task != spec.name or widths != (width, spec.action_dim):
            raise ValueError(
                f"demonstration {number} is of the task {episode.task}, with {widths[0]} observation and {widths[1]} "
                f"action dims; {spec.name} has {width} and {spec.action_dim}. Give demonstrations of this task"
                f"{', with the vectors of their images (`dvc repro embed`).' if agent.pixel_encoder else '.'}"
            )
    if spec.name in agent.tasks:
        known = agent.tasks[spec.name]
        if (known.suite, known.env_id, known.obs_dim, known.action_dim) != (
            spec.suite,
            spec.env_id,
            spec.obs_dim,
            spec.action_dim,
        ):
            raise ValueError(
                f"the checkpoint knows another task called {spec.name} ({known.suite} {known.env_id}). Rename yours."
            )
        _compare(agent, spec, demonstrations)
        return
    obs_dim, statistics = agent.model.config.obs_dim, None
    if width <= obs_dim:  # else `add_task` says what to do
        if demonstrations:
            statistics = observation_statistics([spec], {spec.name: list(demonstrations)}, obs_dim)
        elif agent.table.obs_mean is not None and agent.pixel_encoder:
            raise ValueError(
                f"an agent that observes images needs demonstrations of {spec.name}: how its images vary is unknown."
            )
        elif agent.table.obs_mean is not None:
            statistics = observed_at_random(spec, obs_dim, seed)
    agent.add_task(spec, embeddings, task_discount(spec, learning), statistics)
    _compare(agent, spec, demonstrations)
    if agent.model.config.clusters is not None:
        ((nearest, _),) = agent.nearest_tasks(spec.name, 1)
        cluster = int(agent.table.columns["cluster"][agent.table.names.index(spec.name)])
        print(f"adapt {spec.name}: by the networks of cluster {cluster}, that of {nearest}, which reads most like it")


def _compare(agent: Agent, spec: TaskSpec, demonstrations: Sequence[Episode]) -> None:
    """Say what demonstrations lack, and where they are unlike each other or what the agent knows of their body."""
    if said := say_unrewarded(demonstrations):
        print(f"adapt {spec.name}: {said}", file=sys.stderr)
    if not demonstrations:
        return
    mean, std = agent.table.obs_mean, agent.table.obs_std
    obs, action = (np.concatenate([getattr(one, name) for one in demonstrations]) for name in ("obs", "action"))
    found = [*apart(demonstrations), *(finding for finding in examine_actions(action) if finding.wrong)]
    if mean is not None and std is not None:
        row = agent.table.names.index(spec.name)
        known = (part[row, : obs.shape[1]].double().cpu().numpy() for part in (mean, std))
        found = [*unlike(obs, Reference("what the checkpoint knows of this body", *known)), *found]
    for finding in found:
        print(f"adapt {spec.name}: {finding.text}", file=sys.stderr)


def adapt(
    agent: Agent,
    spec: TaskSpec,
    demonstrations: Sequence[Episode],
    settings: Settings,
    folder: Path,
    ranks: Ranks | None = None,
    watch: Watch | None = None,
) -> Adapted:
    """Put an adapter for a known task into the agent and train it: on demonstrations first, then online.

    An adapter of the task that is in already, and trainable, is trained on.

    Args:
        agent: knows the task (`introduce`); its base stays as it is.
        spec: the task.
        demonstrations: of it; may be empty, and is then learned from interaction alone.
        settings: all parameters.
        folder: where the run is saved, and gone on with.
        ranks: the process of the run, which names the precision; it is one.
        watch: called at every step forward.

    Raises:
        ValueError: there is nothing to learn from.
    """
    name, measured, seed = spec.name, settings.evaluate, settings.seed
    if not (demonstrations and settings.adapt.pretrain.updates) and not settings.adapt.finetune.env_steps:
        raise ValueError(
            f"nothing to learn {name} from: give demonstrations and adapt.pretrain.updates above 0, or "
            "adapt.finetune.env_steps above 0 (`--env-steps`), or both."
        )
    watch = watch or (lambda event, curve: None)
    widths, workers = (agent.model.config.obs_dim, agent.model.config.action_dim), settings.runtime.env_workers
    make_envs = functools.partial(Observing(agent.pixel_encoder).make_envs, timeout=settings.runtime.env_timeout)
    with Evaluator([spec], measured.episodes, *widths, seed + 100, workers, make_envs=make_envs) as evaluator:
        zero_shot = _score(agent, evaluator, name, "zero-shot", measured, seed)
        start = {"env_steps": 0, "updates": 0, "seconds": 0.0, "score": zero_shot["plan"]["score"]}
        watch("zero-shot", [start])
        if name not in agent.adapters:
            agent.create_adapter(name, settings.adapt.parts, settings.adapt.rank, settings.adapt.alpha)
        learning = dataclasses.replace(settings.learning, lr=settings.adapt.lr)
        runs = learn(
            agent,
            spec,
            demonstrations,
            dataclasses.replace(settings, learning=learning),
            folder,
            ranks,
            lambda event, points: watch(event, [start, *points]),
        )
        adapted = _score(agent, evaluator, name, "adapted", measured, seed)
    points = [start, *curve(runs)]
    watch("adapted", points)
    base = [p.numel() for key, p in agent.model.named_parameters() if ".lora_" not in key and "target_q" not in key]
    trained = sum(p.numel() for p in agent.model.parameters() if p.requires_grad)
    online = settings.adapt.finetune
    methods = methods_of({name: demonstrations})
    labels = who_labels([spec], online.teacher, methods) if online.env_steps else None
    seconds = points[-1]["seconds"]
    return Adapted(zero_shot, adapted, points, runs, seconds, trained, sum(base), len(demonstrations), labels)


def _score(
    agent: Agent, evaluator: Evaluator, task: str, label: str, settings: config.Evaluate, seed: int
) -> dict[str, dict[str, Any]]:
    """Return score, interval and episodes of the policy alone and of plans."""
    found = {
        mode: evaluator.run(agent.actor, [task], mode == "plan", f"adapt {task}: {label}, {mode}", seed)
        for mode in ("policy", "plan")
    }
    return {mode: summarise({task: result}, settings, seed)[0][task] for mode, (result,) in found.items()}


def learn(
    agent: Agent,
    spec: TaskSpec,
    demonstrations: Sequence[Episode],
    settings: Settings,
    folder: Path,
    ranks: Ranks | None = None,
    watch: Watch | None = None,
    plan: bool = True,
) -> list[TrainingRun]:
    """Train whatever is trainable in the agent's model on one task, and leave the best weights of each phase in it.

    Each phase ends early as `adapt.stop_score` and `adapt.patience` say; if learning from demonstrations has only done
    harm, what was there before comes back. Evaluations on the way play the policy alone and, with `plan`, plans too:
    the better of the two is how the agent acts. Returns the phases that took place.
    """
    watch, runs = watch or (lambda event, curve: None), []
    offline, online = settings.adapt.pretrain, settings.adapt.finetune
    # There is one task: nothing to weigh it against, nothing to tell it from.
    learning = dataclasses.replace(settings.learning, weighting="even", task_id_coef=0.0)
    methods = methods_of({spec.name: demonstrations})
    labels = find_labels(f"adapt {spec.name}", [spec], online.teacher, methods) if online.env_steps else None
    setup = Setup(
        agent.model, agent.table, agent.planner, learning, settings.runtime, settings.seed, ranks or Ranks(), folder,
        make_envs=Observing(agent.pixel_encoder).make_envs, labels=labels,
        **build.acting_and_replay(agent.model.config, learning),
    )  # fmt: skip
    demos = setup.demo_replay({spec.name: list(demonstrations)})
    on_demos = demos is not None and offline.updates > 0
    extensions = build.online_extensions(agent.model, agent.table, learning, seed=settings.seed)
    learner = setup.learner((offline if on_demos else online).warmup_updates, extensions)

    def begin(name: str, label: str, phase: config.Pretrain | config.Finetune, start_episodes: int | None = None):
        best = EarlyStop(
            agent.model,
            agent.table,
            folder / name / "best.safetensors",
            settings.adapt.stop_score,
            settings.adapt.patience,
            lambda: watch("evaluated", curve(runs)),
            start_episodes,
        )
        run = setup.run(label, folder / name, learner, phase, [spec], agent.actor, plan, best)
        runs.append(run)
        return run, best

    if demos is not None and on_demos:
        run, best = begin("pretrain", f"adapt {spec.name}", offline, offline.eval_episodes)
        with run:
            learn_offline(run, demos, evaluate_first=True)  # of what was there before
        best.restore()
        agent.actor.refresh()
        watch("demonstrated", curve(runs))
    if online.env_steps:
        run, best = begin("finetune", f"adapt {spec.name} online", online)
        setup.learn_online(run, online, demos, [spec])
        best.restore()
        agent.actor.refresh()
    return runs


def curve(runs: Sequence[TrainingRun]) -> list[dict[str, float]]:
    """Return every evaluation of the adaptation, over its phases."""
    points, seconds_before = [], 0.0
    for run in runs:
        columns = (run.logged(name) for name in ("eval/score", "clock/seconds", "clock/updates"))
        for (position, score), (_, seconds), (_, updates) in zip(*columns, strict=True):
            points.append(
                {
                    "env_steps": position if run.folder.name == "finetune" else 0,
                    "updates": int(updates),
                    "seconds": round(seconds_before + seconds, 1),
                    "score": score,
                }
            )
        seconds_before = points[-1]["seconds"] if points else 0.0
    return points


def film(agent: Agent, spec: TaskSpec, settings: Settings, path: Path) -> bool:
    """Record one planned episode as mp4; says why and returns False where this machine cannot draw."""
    if not settings.evaluate.video_size:
        return False
    try:
        seed = settings.seed + 300
        frames, _ = Observing(agent.pixel_encoder).record(agent.actor, spec, seed, settings.evaluate)
    except RenderingUnavailable as error:
        print(f"adapt: no video: {error}", file=sys.stderr)
        return False
    write_video(path, frames, settings.evaluate.video_fps)
    return True
