"""The world model goes on learning online, on all training tasks at once -> checkpoints/finetune/."""

from __future__ import annotations

from pipeline import config
from pipeline.agent import Agent
from pipeline.model.actor import Actor
from pipeline.tasks import registry
from pipeline.tasks.vector import VectorEnv
from pipeline.train.evaluate import Evaluator
from pipeline.train.loops import Loop, learn_online
from pipeline.train.runtime import Summary, compute, run_stage, start
from pipeline.train.scratch import scratch_folder
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    CHECKPOINTS,
    DEMOS,
    demo_buffer,
    load_demonstrations,
    online_buffer,
    replay_place,
)

PRETRAINED = CHECKPOINTS / "pretrain" / "model"
OUT = CHECKPOINTS / "finetune"


def main() -> None:
    tasks, planner, learning = config.load(config.Tasks), config.load(config.Planner), config.load(config.Learning)
    runtime, settings, seed = config.load(config.Runtime), config.load(config.Finetune), config.load_seed()
    accelerator = start(runtime, seed)
    how_learning, how_acting = compute(runtime, accelerator.device)
    specs = registry.get(tasks.train, tasks.folder)
    evaluated = Agent.from_pretrained(PRETRAINED, device=accelerator.device).with_planner(planner)
    world_model, model = evaluated.model, evaluated.model.config
    table = evaluated.table
    demonstrations = load_demonstrations(specs)
    env_specs = [spec for spec in specs for _ in range(settings.envs_per_task)]

    shaping = [tasks.train, tasks.weights, planner, learning, settings]
    with scratch_folder("finetune", shaping, [DEMOS, PRETRAINED], seed) as scratch:
        learner = Learner(world_model, table, learning, settings.warmup_updates, accelerator, how_learning)
        place = replay_place(runtime, accelerator.device, scratch, table.names, tasks.weights)
        demos = demo_buffer(demonstrations, table.names, model, planner.horizon, place)
        replay = online_buffer(settings.replay_capacity, model, planner.horizon, place)
        with (
            Evaluator(
                specs, settings.eval_episodes, model.obs_dim, model.action_dim, seed + 1, runtime.env_workers
            ) as evaluator,
            VectorEnv(env_specs, model.obs_dim, model.action_dim, seed + 3, runtime.env_workers) as envs,
        ):
            player, collector = (Actor(world_model, table, planner, how_acting) for _ in range(2))
            loop = Loop("finetune", scratch, learner, player, evaluator, seed)
            learn_online(loop, settings, demos, replay, envs, env_specs, collector, specs)
        evaluated.save_pretrained(OUT / "model")
        loop.log.publish(OUT / "metrics")
        Summary("finetune", loop.seconds).write(
            OUT / "metrics",
            env_steps=loop.position,
            updates=learner.updates,
            transitions=replay.num_transitions,
            matmul=how_learning.matmul,
        )


if __name__ == "__main__":
    run_stage(main)
