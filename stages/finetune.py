"""The world model goes on learning online, on all training tasks at once -> checkpoints/finetune/."""

from __future__ import annotations

import math

from pipeline import config
from pipeline.agent import Agent
from pipeline.model.actor import Actor
from pipeline.model.scaling import Stages
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.run_dir import open_run_dir as scratch_folder
from pipeline.tasks import registry
from pipeline.train.curriculum import Curriculum, check_targets
from pipeline.train.evaluate import Evaluator
from pipeline.train.loop import Loop
from pipeline.train.loops import learn_online, own_environments
from pipeline.train.runtime import compute
from pipeline.train.seeing import make_envs
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    CHECKPOINTS,
    DEMOS,
    load_demonstrations,
    online_buffer,
    replay_place,
    shared_demo_buffer,
)

PRETRAINED = CHECKPOINTS / "pretrain" / "model"
OUT = CHECKPOINTS / "finetune"


def main() -> None:
    tasks, planner, learning = config.load(config.Tasks), config.load(config.Planner), config.load(config.Learning)
    runtime, settings, seed = config.load(config.Runtime), config.load(config.Finetune), config.load_seed()
    ranks = start(runtime, seed)
    how_learning, how_acting = compute(runtime, ranks.device)
    specs = registry.get(tasks.train, tasks.folder)
    evaluated = Agent.from_pretrained(PRETRAINED, device=ranks.device).with_planner(planner)
    world_model, model = evaluated.model, evaluated.model.config
    table = evaluated.table
    if settings.scaling:
        check_targets(settings.scaling, tasks.train)
    sight = evaluated.sight
    demonstrations = load_demonstrations(specs, ranks, sight)
    env_specs = [spec for spec in specs for _ in range(settings.envs_per_task)]

    shaping = [tasks.train, tasks.weights, planner, learning, settings]
    with scratch_folder("finetune", shaping, [DEMOS, PRETRAINED], seed, ranks) as scratch:
        stages = Stages(world_model, settings.scaling, seed) if settings.scaling else None
        learner = Learner(
            world_model,
            table,
            learning,
            settings.warmup_updates,
            ranks,
            how_learning,
            runtime.accumulate,
            stages=stages,
        )
        curriculum = Curriculum(settings.scaling, learner, table.names) if settings.scaling else None
        place = replay_place(runtime, ranks.device, scratch, table.names, tasks.weights)
        demos = shared_demo_buffer(ranks, demonstrations, table.names, model, planner.horizon, place, scratch)
        demonstrations.clear()
        numbers = own_environments(ranks, env_specs)
        capacity = math.ceil(settings.replay_capacity * len(numbers) / len(env_specs))
        replay = online_buffer(capacity, model, planner.horizon, place, ranks.rank, learning.clipped)
        own_specs = [env_specs[number] for number in numbers]
        widths, workers = (model.obs_dim, model.action_dim), runtime.env_workers
        with (
            Evaluator(specs, settings.eval_episodes, *widths, seed + 1, workers, ranks, sight) as evaluator,
            make_envs(sight, own_specs, *widths, seed + 3, workers, numbers) as envs,
        ):
            player, collector = (Actor(world_model, table, planner, how_acting) for _ in range(2))
            loop = Loop("finetune", scratch, learner, player, evaluator, seed, runtime, ranks)
            learn_online(loop, settings, demos, replay, envs, env_specs, collector, specs, curriculum)
        transitions = sum(ranks.collect(replay.num_transitions))
        if ranks.is_main:
            evaluated.save_pretrained(OUT / "model")
            loop.publish(OUT / "metrics")
            Summary("finetune", loop.seconds).write(
                OUT / "metrics",
                env_steps=loop.position,
                updates=learner.updates,
                transitions=transitions,
                processes=ranks.count,
                matmul=how_learning.matmul,
                **({"stage": stages.stage, "solved": sorted(curriculum.solved)} if stages and curriculum else {}),
            )


if __name__ == "__main__":
    run_stage(main, several=True)
