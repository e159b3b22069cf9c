"""The world model goes on learning online, on all training tasks at once -> checkpoints/finetune/."""

from __future__ import annotations

from pipeline import config
from pipeline.agent import Agent
from pipeline.demonstrate.labels import find_labels, methods_of, teachers_of, who_labels
from pipeline.learn.offline import learn_control
from pipeline.learn.setup import Setup, product_modes
from pipeline.learn.task_setup import CHECKPOINTS, DEMOS, load_demonstrations
from pipeline.model.task_table import TIED
from pipeline.observing import Observing
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.run_dir import open_run_dir
from pipeline.systems import build
from pipeline.tasks import registry

PRETRAINED = CHECKPOINTS / "pretrain" / "model"
OUT = CHECKPOINTS / "finetune"


def main() -> None:
    tasks, planner, learning = config.load(config.Tasks), config.load(config.Planner), config.load(config.Learning)
    runtime, settings, seed = config.load(config.Runtime), config.load(config.Finetune), config.load_seed()
    ranks = start(runtime, seed)
    specs = registry.get(tasks.train, tasks.folder)
    agent = Agent.from_pretrained(PRETRAINED, device=ranks.device).with_planner(planner)
    model = agent.model.config
    observing = Observing(agent.pixel_encoder)
    demonstrations = load_demonstrations(specs, ranks, observing.demonstrations)
    methods = methods_of(demonstrations, ranks)
    labels = find_labels("finetune", specs, settings.teacher, methods, ranks)

    shaping = [tasks.train, tasks.weights, planner, learning, settings]
    inputs = [DEMOS, PRETRAINED, *teachers_of(specs, settings.teacher, methods)]
    with open_run_dir("finetune", shaping, inputs, seed, ranks) as folder:
        setup = Setup(
            agent.model, agent.table, planner, learning, runtime, seed, ranks, folder, tasks.weights,
            observing.make_envs, labels=labels, **build.acting_and_replay(model, learning),
        )  # fmt: skip
        demos = setup.demo_replay(demonstrations)
        demonstrations.clear()
        num_envs = len(specs) * settings.envs_per_task
        build.check_finetuning(model, learning, settings, tasks.train, ranks, num_envs, demos is not None)
        extensions = build.online_extensions(agent.model, agent.table, learning, settings.scaling, seed)
        learner = setup.learner(settings.warmup_updates, extensions)
        plan = settings.constraint != "schedule" and learner.extensions.plans
        run = setup.run("finetune", folder, learner, settings, specs, plan=plan)
        if settings.control:
            if demos is None:
                raise ValueError("finetune.control learns from demonstrations alone, and there are none")
            with run:
                learn_control(run, settings, demos, num_envs, max(spec.episode_length for spec in specs))
            transitions = 0
        else:
            # Demonstrations without rewards turned plans off; here rewards are met.
            agent.table.constraint.fill_(TIED)
            replay = setup.learn_online(run, settings, demos, specs)
            transitions = sum(ranks.collect(replay.num_transitions))
        if ranks.is_main:
            agent.save_pretrained(OUT / "model")
            run.publish(OUT / "metrics")
            Summary("finetune", run.seconds).write(
                OUT / "metrics",
                env_steps=run.position,
                updates=learner.updates,
                transitions=transitions,
                processes=ranks.count,
                matmul=product_modes(runtime, ranks.device)[0],
                labels=who_labels(specs, settings.teacher, methods),
                **build.summary(extensions),
            )


if __name__ == "__main__":
    run_stage(main, several=True)
