"""`eft grow`: a wider checkpoint, for bodies that observe or move more than the one it was made for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipeline.cli.options import add_command, count


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    grow = add_command(
        commands,
        "grow",
        grow_checkpoint,
        "make a checkpoint wider, with the same actions on old tasks",
        "eft grow user/base wider --obs-dim 192 --action-dim 24",
    )
    grow.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or user/name on the Hugging Face Hub")
    grow.add_argument("folder", type=Path, metavar="FOLDER", help="where the wider one goes; must not be there yet")
    grow.add_argument("--obs-dim", type=count, metavar="N", help="observations up to this width (default: as before)")
    grow.add_argument("--action-dim", type=count, metavar="N", help="actions up to this width (default: as before)")


def grow_checkpoint(options: argparse.Namespace) -> None:
    """Write a wider copy of a checkpoint."""
    from pipeline.agent import Agent

    if options.folder.exists():
        raise ValueError(f"{options.folder} is there already. Choose another folder, or remove it.")
    agent = Agent.from_pretrained(options.checkpoint)
    before = agent.model.config
    obs_dim, action_dim = options.obs_dim or before.obs_dim, options.action_dim or before.action_dim
    if (obs_dim, action_dim) == (before.obs_dim, before.action_dim):
        raise ValueError(
            f"{options.checkpoint} has obs_dim {obs_dim} and action_dim {action_dim} already: say with --obs-dim or "
            "--action-dim how wide it is to be."
        )
    agent.grown(obs_dim, action_dim).save_pretrained(options.folder)
    print(
        f"{options.folder}: obs_dim {before.obs_dim} -> {obs_dim}, action_dim {before.action_dim} -> {action_dim}. "
        "On old tasks its policy acts as before. Adapters of the old checkpoint do not fit it; to train on, "
        "set model.obs_dim and model.action_dim in params.yaml alike."
    )
