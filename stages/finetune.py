"""The world model goes on learning online, on all training tasks at once -> checkpoints/finetune/."""

from __future__ import annotations

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.tasks import registry
from pipeline.train.evaluate import Evaluator
from pipeline.train.loops import Loop, learn_online
from pipeline.train.runtime import Summary, run_stage, start
from pipeline.train.scratch import scratch_folder
from pipeline.train.seeing import make_envs
from pipeline.train.step import Learner
from pipeline.train.workspace import CHECKPOINTS, DEMOS, demo_buffer, load_demonstrations

PRETRAINED = CHECKPOINTS / "pretrain" / "model"
OUT = CHECKPOINTS / "finetune"


def main() -> None:
    tasks, planner, learning = config.load(config.Tasks), config.load(config.Planner), config.load(config.Learning)
    runtime, settings, seed = config.load(config.Runtime), config.load(config.Finetune), config.load_seed()
    accelerator = start(runtime, seed)
    specs = registry.get(tasks.train, tasks.folder)
    evaluated = Agent.from_pretrained(PRETRAINED, device=accelerator.device).with_planner(planner)
    world_model, model = evaluated.model, evaluated.model.config
    table = evaluated.table
    demos = demo_buffer(load_demonstrations(specs, evaluated.sight), table.names, model, planner.horizon)
    env_specs = [spec for spec in specs for _ in range(settings.envs_per_task)]

    shaping = [tasks.train, planner, learning, settings]
    with scratch_folder("finetune", shaping, [DEMOS, PRETRAINED], seed) as scratch:
        learner = Learner(world_model, table, learning, settings.warmup_updates, accelerator)
        replay = ReplayBuffer(settings.replay_capacity, model.obs_dim, model.action_dim, planner.horizon)
        with (
            Evaluator(
                specs,
                settings.eval_episodes,
                model.obs_dim,
                model.action_dim,
                seed + 1,
                runtime.env_workers,
                evaluated.sight,
            ) as evaluator,
            make_envs(
                evaluated.sight, env_specs, model.obs_dim, model.action_dim, seed + 3, runtime.env_workers
            ) as envs,
        ):
            loop = Loop("finetune", scratch, learner, Actor(world_model, table, planner), evaluator, seed)
            learn_online(loop, settings, demos, replay, envs, env_specs, Actor(world_model, table, planner), specs)
        evaluated.save_pretrained(OUT / "model")
        loop.log.publish(OUT / "metrics")
        Summary("finetune", loop.seconds).write(
            OUT / "metrics", env_steps=loop.position, updates=learner.updates, transitions=replay.num_transitions
        )


if __name__ == "__main__":
    run_stage(main)
