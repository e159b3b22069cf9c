"""The world model learns from demonstrations alone -> checkpoints/pretrain/."""

from __future__ import annotations

from pipeline import config
from pipeline.agent import Agent
from pipeline.model.actor import Actor
from pipeline.model.world_model import WorldModel
from pipeline.tasks import registry
from pipeline.train.evaluate import Evaluator
from pipeline.train.loops import Loop, learn_offline
from pipeline.train.runtime import Summary, run_stage, start
from pipeline.train.scratch import scratch_folder
from pipeline.train.step import Learner
from pipeline.train.workspace import (
    CHECKPOINTS,
    DEMOS,
    EMBEDDINGS,
    demo_buffer,
    load_demonstrations,
    load_embeddings,
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
    accelerator = start(runtime, seed)
    specs = registry.get(tasks.train, tasks.folder)
    embeddings = load_embeddings(specs)
    vision = config.load(config.Vision)
    sight = load_sight(vision, accelerator.device)
    demonstrations = load_demonstrations(specs, sight)
    table = task_table(specs, embeddings, demonstrations, model, learning, sight).to(accelerator.device)
    demos = demo_buffer(demonstrations, table.names, model, planner.horizon)

    shaping = [tasks.train, model, planner, learning, settings, *([vision] if sight else [])]
    with scratch_folder("pretrain", shaping, [DEMOS, EMBEDDINGS], seed) as scratch:
        world_model = WorldModel(model).to(accelerator.device)
        learner = Learner(world_model, table, learning, settings.warmup_updates, accelerator)
        actor = Actor(world_model, table, planner)
        with Evaluator(
            specs, settings.eval_episodes, model.obs_dim, model.action_dim, seed + 1, runtime.env_workers, sight
        ) as evaluator:
            loop = Loop("pretrain", scratch, learner, actor, evaluator, seed)
            learn_offline(loop, settings, demos.sample, specs)
        agent = Agent(world_model, specs, embeddings, table, planner, vision)
        agent.save_pretrained(CHECKPOINTS / "pretrain" / "model")
        loop.log.publish(CHECKPOINTS / "pretrain" / "metrics")
        Summary("pretrain", loop.seconds).write(
            CHECKPOINTS / "pretrain" / "metrics",
            updates=learner.updates,
            parameters=sum(parameter.numel() for parameter in world_model.parameters() if parameter.requires_grad),
            demonstrations=demos.num_episodes,
            transitions=demos.num_transitions,
        )


if __name__ == "__main__":
    run_stage(main)
