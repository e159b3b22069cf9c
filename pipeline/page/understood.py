"""What a sentence is taken for: the one place where the page asks the agent."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pipeline.agent import Agent
    from pipeline.tasks.spec import TaskSpec

_LEAD = 0.02  # of cosine, by which a task elsewhere must read more like the sentence than one in the present scene


class Understood(NamedTuple):
    """What a sentence is taken for."""

    task: str | None  # the known task that reads most like it; None where the agent knows none with this body
    exact: bool  # it is one of that task's own texts
    near: tuple[tuple[str, float], ...] = ()  # the tasks that read most like it, best first, with the cosine


def understand(agent: Agent, sentence: str, spec: TaskSpec) -> Understood:
    """Find the known task that a sentence, said to the body of `spec`, reads most like.

    Raises:
        OSError, ValueError: the sentence is new, and the agent's text encoder is not to be had.
    """
    said = _words(sentence)
    tasks = [spec] + [task for task in agent.tasks.values() if task.name != spec.name]
    for task in tasks:  # the present task first: others may share its words
        if task.name in agent.tasks and said in map(_words, (*task.instructions, *map(task.text, _phrasings(task)))):
            return Understood(task.name, True, ((task.name, 1.0),))
    cosines: dict[str, float] = {}
    for body in dict.fromkeys(task.embodiment for task in tasks):
        # Texts read in training begin with the body: said to each body, a sentence is compared with its own tasks.
        names = [task.name for task in agent.tasks.values() if task.embodiment == body]
        if not names:
            continue
        told = dataclasses.replace(spec, embodiment=body, instructions=(sentence,))
        vector = agent.embed(told).vectors[0, 0]
        known = agent.embeddings.select(names).vectors  # (n, P, E)
        lengths = np.linalg.norm(known, axis=2) * np.linalg.norm(vector)
        cosines |= dict(zip(names, ((known @ vector) / lengths.clip(1e-12)).max(1).tolist(), strict=True))
    near = tuple(sorted(cosines.items(), key=lambda pair: -pair[1])[:3])
    if not near:
        return Understood(None, False)
    stays = cosines.get(spec.name, -1.0) > near[0][1] - _LEAD
    return Understood(spec.name if stays else near[0][0], False, near)


def _phrasings(task: TaskSpec) -> range:
    return range(len(task.instructions))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
