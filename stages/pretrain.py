"""The world model learns from demonstrations alone -> checkpoints/pretrain/."""

from __future__ import annotations

import dataclasses

from pipeline import config
from pipeline.agent import Agent
from pipeline.model.actor import Actor
from pipeline.model.world_model import WorldModel
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.run_dir import open_run_dir as scratch_folder
from pipeline.tasks import registry
from pipeline.train import clustering
from pipeline.train.evaluate import Evaluator
from pipeline.train.loop import RANK_SEEDS, Loop
from pipeline.train.loops import learn_offline
from pipeline.train.runtime import compute
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    CHECKPOINTS,
    DEMOS,
    EMBEDDINGS,
    load_demonstrations,
    load_embeddings,
    replay_place,
    shared_demo_buffer,
    task_table,
)
from pipeline.vision.sight import load_sight


def main() -> None:
    tasks, model, planner = config.load(config.Tasks), config.load(config.Model), config.load(config.Planner)
    learning, runtime, settings = (
        config.load(config.Learning),
        config.load(config.Runtime),
        config.load(config.Pretrain),
    )
    seed = config.load_seed()
    ranks = start(runtime, seed)
    how_learning, how_acting = compute(runtime, ranks.device)
    specs = registry.get(tasks.train, tasks.folder)
    if model.clusters is not None:
        clustering.check(model.clusters, len(specs), settings.updates)
    embeddings = load_embeddings(specs)
    vision = config.load(config.Vision)
    sight = load_sight(vision, ranks.device)
    if sight is not None:
        for name in tasks.train:  # one without demonstrations has no autoencoder of its own cluster
            sight.adopt(name, embeddings.nearest)
    demonstrations = load_demonstrations(specs, ranks, sight)
    table = task_table(specs, embeddings, demonstrations, model, learning, sight, seed) if ranks.is_main else None
    table = ranks.from_main(table).to(ranks.device)

    shaping = [tasks.train, tasks.weights, model, planner, learning, settings, *([vision] if sight else [])]
    with scratch_folder("pretrain", shaping, [DEMOS, EMBEDDINGS], seed, ranks) as scratch:
        place = replay_place(runtime, ranks.device, scratch, table.names, tasks.weights)
        demos = shared_demo_buffer(ranks, demonstrations, table.names, model, planner.horizon, place, scratch)
        if demos is None and settings.updates:
            raise ValueError("none of the tasks has demonstrations: set pretrain.updates to 0 to learn online alone")
        without = [spec.name for spec in specs if not demonstrations.get(spec.name)]
        if model.clusters and without:
            raise ValueError(
                f"model.clusters compares gradients on demonstrations, and {', '.join(without)} have none: set it to "
                "null, or leave these tasks out of tasks.train"
            )
        demonstrations.clear()
        # All tasks share every network during the warm-up of the clusters.
        world_model = WorldModel(dataclasses.replace(model, clusters=None)).to(ranks.device)
        warmup, clusters = settings.warmup_updates, model.clusters
        learner = Learner(world_model, table, learning, warmup, ranks, how_learning, runtime.accumulate, clusters)
        actor = Actor(world_model, table, planner, how_acting)
        with Evaluator(
            specs, settings.eval_episodes, model.obs_dim, model.action_dim, seed + 1, runtime.env_workers, ranks, sight
        ) as evaluator:
            loop = Loop("pretrain", scratch, learner, actor, evaluator, seed, runtime, ranks)
            if demos is not None:
                own_seed = seed + clustering.SEED + RANK_SEEDS * ranks.rank
                clusterer = (
                    clustering.Clusterer(learner, demos, own_seed, ranks, scratch / "metrics") if clusters else None
                )
                learn_offline(loop, settings, demos.sample, specs, clusterer)
        if ranks.is_main:
            agent = Agent(world_model, specs, embeddings, table, planner, vision=vision)
            agent.save_pretrained(CHECKPOINTS / "pretrain" / "model")
            loop.publish(CHECKPOINTS / "pretrain" / "metrics")
            Summary("pretrain", loop.seconds).write(
                CHECKPOINTS / "pretrain" / "metrics",
                updates=learner.updates,
                parameters=sum(parameter.numel() for parameter in world_model.parameters() if parameter.requires_grad),
                demonstrations=demos.num_episodes if demos else 0,
                transitions=demos.num_transitions if demos else 0,
                processes=ranks.count,
                matmul=how_learning.matmul,
            )


if __name__ == "__main__":
    run_stage(main, several=True)
