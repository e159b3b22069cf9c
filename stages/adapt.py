"""A low-rank adapter learns one held-out task from a few demonstrations and steps -> checkpoints/adapt/<task>/."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.replay import ReplayBuffer
from pipeline.files import atomic_folder
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.train.evaluate import Evaluator, record, summarise
from pipeline.train.loop import Loop
from pipeline.train.loops import learn_offline, learn_online
from pipeline.train.runtime import Summary, compute, run_stage, start
from pipeline.train.scratch import scratch_folder
from pipeline.train.seeing import make_envs
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    CHECKPOINTS,
    DEMOS,
    EMBEDDINGS,
    ReplayPlace,
    demo_buffer,
    load_demonstrations,
    load_embeddings,
    observation_statistics,
    online_buffer,
    replay_place,
    task_discount,
)
from pipeline.video import write_video

BASE = CHECKPOINTS / "finetune" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.adapt", description=__doc__)
    parser.add_argument("task", help="a held-out task, by its name in the catalogue or in your own task files")
    name = parser.parse_args().task
    settings, runtime, seed = config.load(config.Adapt), config.load(config.Runtime), config.load_seed()
    learning = dataclasses.replace(config.load(config.Learning), lr=settings.lr)
    tasks, demos_settings = config.load(config.Tasks), config.load(config.Demos)
    measured = config.load(config.Evaluate)
    ranks = start(runtime, seed)
    (spec,) = registry.get([name], tasks.folder)
    how_learning, how_acting = compute(runtime, ranks.device)
    agent = Agent.from_pretrained(BASE, device=ranks.device, compute=how_acting)
    demonstrations = load_demonstrations([spec], sight=agent.sight) if demos_settings.held_out_episodes else {}
    statistics = observation_statistics([spec], demonstrations, agent.model.config.obs_dim) if demonstrations else None
    agent.add_task(spec, load_embeddings([spec]), task_discount(spec, learning), statistics)
    model, out = agent.model.config, CHECKPOINTS / "adapt" / name

    inputs = [DEMOS / name] if demonstrations else []
    with scratch_folder(f"adapt-{name}", [settings, learning], [*inputs, EMBEDDINGS, BASE], seed) as scratch:
        widths = model.obs_dim, model.action_dim
        place = replay_place(runtime, ranks.device, scratch)
        demos = (
            demo_buffer(demonstrations, agent.table.names, model, agent.planner.horizon, place)
            if demonstrations
            else None
        )
        with Evaluator(
            [spec], measured.episodes, *widths, seed + 100, runtime.env_workers, sight=agent.sight
        ) as evaluator:

            def score(label: str) -> dict[str, dict[str, Any]]:
                found = {
                    mode: evaluator.run(agent.actor, [name], mode == "plan", f"adapt {name}: {label}, {mode}", seed)
                    for mode in ("policy", "plan")
                }
                return {mode: summarise({name: result}, measured, seed)[0][name] for mode, (result,) in found.items()}

            zero_shot = score("zero-shot")
            base_parameters = sum(p.numel() for p in agent.model.parameters() if p.requires_grad)
            agent.create_adapter(name, settings.parts, settings.rank, settings.alpha)
            first = settings.pretrain if settings.pretrain.updates else settings.finetune
            learner = Learner(
                agent.model, agent.table, learning, first.warmup_updates, ranks, how_learning, runtime.accumulate
            )
            loops = learn(agent, spec, learner, demos, place, settings, scratch, seed, runtime)
            agent.actor.refresh()
            adapted = score("adapted")

        agent.save_adapter(out / "adapter", name)
        with atomic_folder(out / "videos") as folder:
            film(agent, spec, measured, seed, folder)
        for loop in loops:
            loop.publish(out / "metrics" / loop.scratch.name)
        trained = sum(p.numel() for p in agent.model.parameters() if p.requires_grad)
        Summary("adapt", sum(loop.seconds for loop in loops)).write(
            out / "metrics",
            task=name,
            zero_shot=zero_shot["plan"],
            adapted=adapted["plan"],
            policy={"zero_shot": zero_shot["policy"], "adapted": adapted["policy"]},
            curve=[{"env_steps": 0, "updates": 0, "seconds": 0.0, "score": zero_shot["plan"]["score"]}, *curve(*loops)],
            adapter_parameters=trained,
            base_parameters=base_parameters,
            demos=demos.num_episodes if demos else 0,
        )
    print(
        f"adapt: {name}: {zero_shot['plan']['score']:.3f} zero-shot, {adapted['plan']['score']:.3f} adapted",
        file=sys.stderr,
    )


def learn(
    agent: Agent,
    spec: TaskSpec,
    learner: Learner,
    demos: ReplayBuffer | None,
    place: ReplayPlace,
    settings: config.Adapt,
    scratch: Path,
    seed: int,
    runtime: config.Runtime,
) -> tuple[Loop, Loop]:
    """Train the adapter: on the demonstrations alone, then online."""
    widths = agent.model.config.obs_dim, agent.model.config.action_dim
    phases = settings.pretrain, settings.finetune
    if demos is None and settings.pretrain.updates:
        raise ValueError("demos.held_out_episodes is 0, so set adapt.pretrain.updates to 0: there is nothing to clone")
    sight, workers = agent.sight, runtime.env_workers
    with Evaluator([spec], phases[0].eval_episodes, *widths, seed + 1, workers, sight=sight) as evaluator:
        offline = Loop(
            f"adapt {spec.name}", scratch / "pretrain", learner, agent.actor, evaluator, seed, runtime, plan=True
        )
        if demos is not None:
            learn_offline(offline, settings.pretrain, demos.sample, [spec])
    env_specs = [spec] * settings.finetune.envs_per_task
    replay = online_buffer(settings.finetune.replay_capacity, agent.model.config, agent.planner.horizon, place)
    with (
        Evaluator([spec], phases[1].eval_episodes, *widths, seed + 1, workers, sight=sight) as evaluator,
        make_envs(sight, env_specs, *widths, seed + 3, workers) as envs,
    ):
        online = Loop(
            f"adapt {spec.name} online", scratch / "finetune", learner, agent.actor, evaluator, seed, runtime, plan=True
        )
        collecting = agent.with_planner(agent.planner).actor
        learn_online(online, settings.finetune, demos, replay, envs, env_specs, collecting, [spec])
    return offline, online


def curve(offline: Loop, online: Loop) -> list[dict[str, float]]:
    """Return every evaluation of the adaptation, over both phases."""
    points = []
    for loop, seconds_before in ((offline, 0.0), (online, offline.seconds)):
        columns = (loop.history(name) for name in ("eval/score", "clock/seconds", "clock/updates"))
        for (position, score), (_, seconds), (_, updates) in zip(*columns, strict=True):
            points.append(
                {
                    "env_steps": position if loop is online else 0,
                    "updates": int(updates),
                    "seconds": round(seconds_before + seconds, 1),
                    "score": score,
                }
            )
    return points


def film(agent: Agent, spec: TaskSpec, measured: config.Evaluate, seed: int, folder: Path) -> None:
    """Record one planned episode with the adapter."""
    if measured.video_size:
        try:
            frames, _ = record(agent.actor, spec, seed + 300, measured, agent.sight)
            write_video(folder / "adapted.mp4", frames, measured.video_fps)
        except RenderingUnavailable as error:
            print(f"adapt: no video: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(main)
