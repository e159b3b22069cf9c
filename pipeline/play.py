"""Whole episodes of one task, played by an agent that is instructed what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from pipeline.agent import Agent


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode as it was played."""

    seed: int
    score: float  # in [0, 1], by the task's own rule
    episode_return: float
    length: int  # agent steps
    frames: list[np.ndarray]  # length + 1 pictures, (size, size, 3) uint8; empty if not drawn


def play(
    agent: Agent,
    spec: TaskSpec,
    instruction: str | None,
    plan: bool,
    seeds: Iterable[int],
    render_size: int = 0,
    literal: bool = False,
) -> Iterator[PlayedEpisode]:
    """Play one episode per seed, yielding each as soon as it is over.

    Args:
        agent: acts without exploring.
        spec: the task whose environment is played and by whose rule episodes are scored.
        instruction: what the agent is instructed to do with the task's body; None for the task's own instruction.
        plan: with planning, else with the policy alone.
        seeds: of the episodes.
        render_size: pixels of a picture's side; 0 draws nothing. An agent that observes images is filmed in their size.
        literal: the instruction is not to be understood as a known task.

    Raises:
        ValueError: the task does not fit into the agent's widths.
        RenderingUnavailable: this machine cannot draw.
    """
    instructed = told(agent, spec, instruction, literal)
    if agent.vision:
        render_size = agent.vision.size  # one picture serves both: the film shows what the agent observes
    env = make(spec, spec.obs_dim, spec.action_dim, render_size)
    try:
        for seed in seeds:
            obs, _ = env.reset(seed=seed)
            agent.reset(seed=seed)
            frames = [env.render()] if render_size else []
            total, length, done, success = 0.0, 0, False, False
            while not done:
                images: dict[str, Any] = {"picture": frames[-1]} if agent.vision else {}
                obs, reward, terminated, truncated, info = env.step(agent.act(obs, plan=plan, **instructed, **images))
                total, length, success, done = total + reward, length + 1, info["success"], terminated or truncated
                if render_size:
                    frames.append(env.render())
            yield PlayedEpisode(seed, spec.evaluate(total, success), total, length, frames)
    finally:
        env.close()


def told(agent: Agent, spec: TaskSpec, instruction: str | None, literal: bool = False) -> dict[str, Any]:
    """Return what `Agent.act` is given so that it does `instruction`, None for the task's own, in a task's body.

    With `literal` it is not to be understood as a known task.
    """
    if instruction is None and spec.name in agent.tasks:
        return {"task": spec.name}
    # Texts read in training begin with the body; an unknown task is given in its own words.
    text = spec.text() if instruction is None else f"{spec.embodiment} {instruction}"
    return {"instruction": text, "action_dim": spec.action_dim, "literal": literal}
