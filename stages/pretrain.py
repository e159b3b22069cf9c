"""The world model learns from demonstrations alone -> checkpoints/pretrain/."""

from __future__ import annotations

import dataclasses
import sys

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.episode import say_unrewarded
from pipeline.learn.offline import learn_offline
from pipeline.learn.setup import Setup, product_modes
from pipeline.learn.task_setup import (
    CHECKPOINTS,
    DEMOS,
    EMBEDDINGS,
    load_demonstrations,
    load_embeddings,
    task_table,
)
from pipeline.model.task_table import POLICY
from pipeline.observing import Observing
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.run_dir import open_run_dir
from pipeline.systems import build
from pipeline.tasks import registry

OUT = CHECKPOINTS / "pretrain"


def main() -> None:
    tasks, model, planner = config.load(config.Tasks), config.load(config.Model), config.load(config.Planner)
    learning, runtime = config.load(config.Learning), config.load(config.Runtime)
    settings, vision, seed = config.load(config.Pretrain), config.load(config.Vision), config.load_seed()
    ranks = start(runtime, seed)
    specs = registry.get(tasks.train, tasks.folder)
    build.check_pretraining(model, settings, tasks.train)
    embeddings = load_embeddings(specs)
    observing = Observing.load(vision, ranks.device, tasks.train, embeddings.nearest)
    demonstrations = load_demonstrations(specs, ranks, observing.demonstrations)
    table, without = None, None
    if ranks.is_main:
        observing.check_bodies(specs, demonstrations)
        columns = build.task_columns(model, len(specs))
        table = task_table(specs, embeddings, demonstrations, model, learning, seed, observing.width, columns)
        without = [spec.name for spec in specs if not demonstrations[spec.name]]
        for row, spec in enumerate(specs):
            episodes = demonstrations[spec.name]
            if said := say_unrewarded(episodes):
                print(f"pretrain: {spec.name}: {said}", file=sys.stderr)
            if episodes and not any(episode.rewarded for episode in episodes):
                # Nothing tells plans what is worth doing: the policy plays alone until rewards are met online.
                table.constraint[row] = POLICY
    table, without = ranks.from_main(table).to(ranks.device), ranks.from_main(without)
    build.check_pretraining(model, settings, tasks.train, without)

    shaping = [tasks.train, tasks.weights, model, planner, learning, settings]
    shaping += [vision] if observing.pixel_encoder else []
    with open_run_dir("pretrain", shaping, [DEMOS, EMBEDDINGS], seed, ranks) as folder:
        # All tasks share every network until clusters of them are found.
        world_model = build.build_model(dataclasses.replace(model, clusters=None)).to(ranks.device)
        setup = Setup(
            world_model, table, planner, learning, runtime, seed, ranks, folder, tasks.weights, observing.make_envs,
            **build.acting_and_replay(model, learning),
        )  # fmt: skip
        demos = setup.demo_replay(demonstrations)
        if demos is None and settings.updates:
            raise ValueError("none of the tasks has demonstrations: set pretrain.updates to 0 to learn online alone")
        demonstrations.clear()
        extensions = build.offline_extensions(
            world_model, table, learning, model.clusters, demos, seed, folder / "metrics"
        )
        learner = setup.learner(settings.warmup_updates, extensions)
        run = setup.run("pretrain", folder, learner, settings, specs)
        with run:
            if demos is not None:
                learn_offline(run, demos)
        if ranks.is_main:
            Agent(world_model, specs, embeddings, table, planner, vision=vision).save_pretrained(OUT / "model")
            run.publish(OUT / "metrics")
            Summary("pretrain", run.seconds).write(
                OUT / "metrics",
                updates=learner.updates,
                parameters=sum(parameter.numel() for parameter in world_model.parameters() if parameter.requires_grad),
                demonstrations=demos.num_episodes if demos else 0,
                transitions=demos.num_transitions if demos else 0,
                processes=ranks.count,
                matmul=product_modes(runtime, ranks.device)[0],
            )


if __name__ == "__main__":
    run_stage(main, several=True)
