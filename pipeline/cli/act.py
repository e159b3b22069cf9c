"""`eft act`: let a checkpoint act in a task."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_encoder, add_folder, count, own_folder, seed

if TYPE_CHECKING:
    import numpy as np


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    act = add_command(
        commands,
        "act",
        act_in_task,
        "let a checkpoint act in a task",
        "eft act checkpoints/finetune/model --task mw-reach --episodes 5 --video reach.mp4",
    )
    act.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or user/name on the Hugging Face Hub")
    act.add_argument("--revision", metavar="REV", help="commit, tag or branch on the Hub (default: the newest)")
    act.add_argument("--task", required=True, help="the task whose environment it acts in and is scored by")
    act.add_argument(
        "--instruction",
        metavar="TEXT",
        help="what it is told to do, in your words (default: the task's own instruction)",
    )
    act.add_argument("--literal", action="store_true", help="do not understand the instruction as a task that it knows")
    act.add_argument(
        "--adapter",
        metavar="FOLDER",
        help="an adapter, e.g. checkpoints/adapt/NAME/adapter; it acts if the task, or what is told, is its own",
    )
    act.add_argument("--episodes", type=count, default=1, metavar="N", help="episodes to play (default: 1)")
    act.add_argument("--video", type=Path, metavar="MP4", help="film the episodes")
    add_encoder(act)
    act.add_argument("--device", default="cpu", help="where it computes: cpu, cuda, cuda:1, ... (default: cpu)")
    act.add_argument("--policy-only", action="store_true", help="act by the policy alone, without planning")
    act.add_argument("--seed", type=seed, default=0, help="seed of the first episode, then counted up (default: 0)")
    add_folder(act)


def act_in_task(options: argparse.Namespace) -> int:
    """Play episodes of a task with a checkpoint; print each score, film them if asked; 2 if that was not possible."""
    from pipeline.agent import Agent
    from pipeline.language.encoder import load_encoder
    from pipeline.play import play
    from pipeline.tasks import registry
    from pipeline.tasks.rendering import RenderingUnavailable

    spec = registry.get([options.task], own_folder(options))[0]
    agent = Agent.from_pretrained(options.checkpoint, options.revision, options.device)
    if options.encoder:
        agent.encoder = load_encoder(options.encoder)
    if options.adapter:
        adapted = agent.add_adapter(options.adapter)
        if options.instruction is None and spec.name != adapted:
            print(f"{options.adapter} is for {adapted}: {spec.name} is played by the checkpoint as it was before")
    if options.instruction is not None and agent.embeddings.head is not None and not options.literal:
        logging.getLogger("pipeline.known_tasks").setLevel(logging.ERROR)  # which would say it once more
        print(agent.understand(f"{spec.embodiment} {options.instruction}", spec.obs_dim, spec.action_dim))
    if options.instruction is None and spec.name not in agent.tasks:
        print(f"{options.checkpoint} was not trained on {spec.name}: it is told what the task says, {spec.text()!r}")
    scores: list[float] = []

    def frames(render_size: int) -> Iterator[np.ndarray]:
        episodes = play(
            agent,
            spec,
            options.instruction,
            plan=not options.policy_only,
            literal=options.literal,
            seeds=range(options.seed, options.seed + options.episodes),
            render_size=render_size,
        )
        for episode in episodes:
            scores.append(episode.score)
            print(
                f"episode with seed {episode.seed}: score {episode.score:.3f}, "
                f"return {episode.episode_return:.1f}, {episode.length} steps",
                flush=True,
            )
            yield from episode.frames

    film = options.video is not None
    if film:
        from pipeline.video import write_video  # only here: who films nothing needs no encoder

        try:
            write_video(options.video, frames(224), fps=25)
            print(f"filmed in {options.video}")
        except RenderingUnavailable as error:
            if agent.vision:  # it cannot act without images
                raise
            print(f"act: no video: {error}", file=sys.stderr)
            film = False
    if not film:
        scores.clear()
        deque(frames(0), maxlen=0)
    print(f"mean score {sum(scores) / len(scores):.3f} over {len(scores)} episodes of {spec.name}")
    return 2 if options.video and not film else 0
