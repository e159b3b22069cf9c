"""A low-rank adapter learns one held-out task from a few demonstrations and steps -> checkpoints/adapt/<task>/."""

from __future__ import annotations

import argparse
import sys

from pipeline import config
from pipeline.adapt import Settings, adapt, film, introduce
from pipeline.agent import Agent
from pipeline.demonstrate.labels import methods_of, teachers_of
from pipeline.files import atomic_folder
from pipeline.learn.setup import product_modes
from pipeline.learn.task_setup import CHECKPOINTS, DEMOS, EMBEDDINGS, load_demonstrations, load_embeddings
from pipeline.observing import Observing
from pipeline.run.launch import run_stage, start
from pipeline.run.provenance import Summary
from pipeline.run.run_dir import open_run_dir
from pipeline.tasks import registry

BASE = CHECKPOINTS / "finetune" / "model"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.adapt", description=__doc__)
    parser.add_argument("task", help="a held-out task, by its name in the catalogue or in your own task files")
    name = parser.parse_args().task
    settings = Settings(
        config.load(config.Adapt),
        config.load(config.Learning),
        config.load(config.Evaluate),
        config.load(config.Runtime),
        config.load_seed(),
    )
    tasks, demos = config.load(config.Tasks), config.load(config.Demos)
    ranks = start(settings.runtime, settings.seed)
    (spec,) = registry.get([name], tasks.folder)
    _, mode = product_modes(settings.runtime, ranks.device)
    agent = Agent.from_pretrained(BASE, device=ranks.device, mode=mode)
    demonstrations = []
    if demos.held_out_episodes:
        demonstrations = load_demonstrations([spec], observe=Observing(agent.pixel_encoder).demonstrations)[name]
    introduce(agent, spec, load_embeddings([spec]), demonstrations, settings.learning, settings.seed)
    out = CHECKPOINTS / "adapt" / name

    methods = methods_of({name: demonstrations})
    inputs = [EMBEDDINGS, BASE, *teachers_of([spec], settings.adapt.finetune.teacher, methods)]
    inputs += [DEMOS / name] if demonstrations else []
    with open_run_dir(f"adapt-{name}", settings.shaping, inputs, settings.seed) as folder:
        done = adapt(agent, spec, demonstrations, settings, folder, ranks)
        agent.save_adapter(out / "adapter", name)
        with atomic_folder(out / "videos") as videos:
            film(agent, spec, settings, videos / "adapted.mp4")
        for run in done.runs:
            run.publish(out / "metrics" / run.folder.name)
        Summary("adapt", done.seconds).write(out / "metrics", **done.summary(name))
    before, after = (scores["plan"]["score"] for scores in (done.zero_shot, done.adapted))
    print(f"adapt: {name}: {before:.3f} zero-shot, {after:.3f} adapted", file=sys.stderr)


if __name__ == "__main__":
    run_stage(main)
