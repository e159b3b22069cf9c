"""Learning one new task on a trained model: from demonstrations, from interaction, or from both in this order."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.episode import Episode
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.run.ranks import Ranks
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.train.early_stop import EarlyStop
from pipeline.train.evaluate import Evaluator, record, summarise
from pipeline.train.loop import Loop
from pipeline.train.loops import learn_offline, learn_online
from pipeline.train.runtime import compute
from pipeline.train.seeing import make_envs
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    demo_buffer,
    observation_statistics,
    observed_at_random,
    online_buffer,
    replay_place,
    task_discount,
)
from pipeline.video import write_video

Event = Literal["zero-shot", "evaluated", "demonstrated", "adapted"]
Watch = Callable[[Event, list[dict[str, float]]], None]  # told what has just happened, and every evaluation so far


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
    loops: list[Loop]  # of the phases that took place
    seconds: float  # of learning, with the evaluations on the way
    adapter_parameters: int
    base_parameters: int
    demos: int

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
    without any, from one episode of random actions.

    Raises:
        ValueError: another task of this name is known, the task does not fit the model, or the demonstrations do not
            fit the task.
    """
    width = agent.sight.width(spec.obs_dim) if agent.sight else spec.obs_dim
    for number, episode in enumerate(demonstrations):
        widths = episode.obs.shape[1], episode.action.shape[1]
        if episode.task != spec.name or widths != (width, spec.action_dim):
            raise ValueError(
                f"demonstration {number} is of the task {episode.task}, with {widths[0]} observation and {widths[1]} "
                f"action dims; {spec.name} has {width} and {spec.action_dim}. Give demonstrations of this task"
                f"{', with the vectors of their pictures (`dvc repro embed`).' if agent.sight else '.'}"
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
        return
    obs_dim, statistics = agent.model.config.obs_dim, None
    if width <= obs_dim:  # else `add_task` says what to do
        if demonstrations:
            statistics = observation_statistics([spec], {spec.name: list(demonstrations)}, obs_dim)
        elif agent.table.obs_mean is not None and agent.sight:
            raise ValueError(
                f"an agent that sees needs demonstrations of {spec.name}: how its pictures vary is unknown."
            )
        elif agent.table.obs_mean is not None:
            statistics = observed_at_random(spec, obs_dim, seed)
    agent.add_task(spec, embeddings, task_discount(spec, learning), statistics)
    if agent.model.config.clusters is not None:
        ((nearest, _),) = agent.nearest_tasks(spec.name, 1)
        cluster = int(agent.table.cluster[agent.table.names.index(spec.name)])
        print(f"adapt {spec.name}: by the networks of cluster {cluster}, that of {nearest}, which reads most like it")


def adapt(
    agent: Agent,
    spec: TaskSpec,
    demonstrations: Sequence[Episode],
    settings: Settings,
    run_dir: Path,
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
        run_dir: where the run is saved, and taken up again.
        ranks: the process of the run, which names the precision; it is one.
        watch: hears of every step forward.

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
    widths = agent.model.config.obs_dim, agent.model.config.action_dim
    workers, sight = settings.runtime.env_workers, agent.sight
    with Evaluator([spec], measured.episodes, *widths, seed + 100, workers, sight=sight) as evaluator:

        def score(label: str) -> dict[str, dict[str, Any]]:
            found = {
                mode: evaluator.run(agent.actor, [name], mode == "plan", f"adapt {name}: {label}, {mode}", seed)
                for mode in ("policy", "plan")
            }
            return {mode: summarise({name: result}, measured, seed)[0][name] for mode, (result,) in found.items()}

        zero_shot = score("zero-shot")
        start = {"env_steps": 0, "updates": 0, "seconds": 0.0, "score": zero_shot["plan"]["score"]}
        watch("zero-shot", [start])
        if name not in agent.adapters:
            agent.create_adapter(name, settings.adapt.parts, settings.adapt.rank, settings.adapt.alpha)
        base_parameters = sum(
            parameter.numel()
            for key, parameter in agent.model.named_parameters()
            if ".lora_" not in key and not key.startswith("target_q_heads.")
        )
        trained = sum(p.numel() for p in agent.model.parameters() if p.requires_grad)
        learning = dataclasses.replace(settings.learning, lr=settings.adapt.lr)
        loops = learn(
            agent,
            spec,
            demonstrations,
            dataclasses.replace(settings, learning=learning),
            run_dir,
            ranks,
            lambda event, points: watch(event, [start, *points]),
        )
        adapted = score("adapted")
    points = [start, *curve(loops)]
    seconds = points[-1]["seconds"]
    watch("adapted", points)
    return Adapted(zero_shot, adapted, points, loops, seconds, trained, base_parameters, len(demonstrations))


def learn(
    agent: Agent,
    spec: TaskSpec,
    demonstrations: Sequence[Episode],
    settings: Settings,
    run_dir: Path,
    ranks: Ranks | None = None,
    watch: Watch | None = None,
    plan: bool = True,
) -> list[Loop]:
    """Train whatever is trainable in the agent's model on one task, and leave the best weights of each phase in it.

    Each phase ends early as `adapt.stop_score` and `adapt.patience` say; if learning from demonstrations has only done
    harm, what was there before comes back. Evaluations on the way play the policy alone and, with `plan`, plans too:
    the better of the two is how the agent acts. Returns the phases that took place.
    """
    watch = watch or (lambda event, curve: None)
    model, runtime, seed, label = agent.model.config, settings.runtime, settings.seed, f"adapt {spec.name}"
    offline, online = settings.adapt.pretrain, settings.adapt.finetune
    widths, workers, sight = (model.obs_dim, model.action_dim), runtime.env_workers, agent.sight
    place = replay_place(runtime, agent.device, run_dir)
    buffer = None
    if demonstrations:
        named = {spec.name: list(demonstrations)}
        buffer = demo_buffer(named, agent.table.names, model, agent.planner.horizon, place)
    first = offline if buffer is not None and offline.updates else online
    how, _ = compute(runtime, agent.device)
    # There is one task: nothing to weigh it against, nothing to tell it from.
    learning = dataclasses.replace(settings.learning, weighting="even", task_id_coef=0.0)
    learner = Learner(agent.model, agent.table, learning, first.warmup_updates, ranks, how, runtime.accumulate)
    loops: list[Loop] = []

    def begin(name: str, label: str, evaluator: Evaluator, start_episodes: int | None = None) -> tuple[Loop, EarlyStop]:
        best = EarlyStop(
            agent.model,
            agent.table,
            run_dir / name / "best.safetensors",
            settings.adapt.stop_score,
            settings.adapt.patience,
            lambda: watch("evaluated", curve(loops)),
            start_episodes,
        )
        loop = Loop(
            label, run_dir / name, learner, agent.actor, evaluator, seed, runtime, ranks, plan=plan, early_stop=best
        )
        loops.append(loop)
        return loop, best

    if buffer is not None and offline.updates:
        with Evaluator([spec], offline.eval_episodes, *widths, seed + 1, workers, sight=sight) as evaluator:
            loop, best = begin("pretrain", label, evaluator, start_episodes=offline.eval_episodes)
            loop.owes_evaluation |= loop.resumed is None  # what was there before is evaluated first
            learn_offline(loop, offline, buffer.sample, [spec])
        best.restore()
        agent.actor.refresh()
        watch("demonstrated", curve(loops))
    if online.env_steps:
        env_specs = [spec] * online.envs_per_task
        clipped = settings.learning.clipped
        replay = online_buffer(online.replay_capacity, model, agent.planner.horizon, place, clipped=clipped)
        with (
            Evaluator([spec], online.eval_episodes, *widths, seed + 1, workers, sight=sight) as evaluator,
            make_envs(sight, env_specs, *widths, seed + 3, workers) as envs,
        ):
            loop, best = begin("finetune", f"{label} online", evaluator)
            collecting = agent.with_planner(agent.planner).actor
            learn_online(loop, online, buffer, replay, envs, env_specs, collecting, [spec])
        best.restore()
        agent.actor.refresh()
    return loops


def curve(loops: Sequence[Loop]) -> list[dict[str, float]]:
    """Return every evaluation of the adaptation, over its phases."""
    points, seconds_before = [], 0.0
    for loop in loops:
        columns = (loop.history(name) for name in ("eval/score", "clock/seconds", "clock/updates"))
        for (position, score), (_, seconds), (_, updates) in zip(*columns, strict=True):
            points.append(
                {
                    "env_steps": position if loop.scratch.name == "finetune" else 0,
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
        frames, _ = record(agent.actor, spec, settings.seed + 300, settings.evaluate, agent.sight)
    except RenderingUnavailable as error:
        print(f"adapt: no video: {error}", file=sys.stderr)
        return False
    write_video(path, frames, settings.evaluate.video_fps)
    return True
