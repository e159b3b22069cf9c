"""What a sentence is taken for: the one place where the page asks the agent."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pipeline.agent import Agent
    from pipeline.tasks.spec import TaskSpec

_LEAD = 0.02  # of cosine, by which a task elsewhere must read more like the sentence than the one in the present place


class Understood(NamedTuple):
    """What a sentence is taken for.

    Attributes:
        task: the known task; None if nothing known is meant.
        how: `own`, it is one of that task's own texts; `head`, the agent understands it as that task; `near`, the agent
            is told the sentence itself, which reads most like that task.
        near: the best tasks, with the probability (`head`) or the cosine of the texts (`near`).
    """

    task: str | None
    how: Literal["own", "head", "near"]
    near: tuple[tuple[str, float], ...] = ()

    @property
    def acts_as_task(self) -> bool:
        """Whether the agent does exactly what it does when told the task."""
        return self.task is not None and self.how != "near"


def understand(agent: Agent, sentence: str, spec: TaskSpec, here: bool = False) -> Understood:
    """Find the known task that a sentence means.

    Args:
        agent: knows the tasks.
        sentence: in anyone's words.
        spec: the task in whose place it is said.
        here: it is for the body of that place alone.

    Raises:
        OSError, ValueError: the sentence is new, and the agent's text encoder is not to be had.
    """
    said = _words(sentence)
    tasks = [spec] + [task for task in agent.tasks.values() if task.name != spec.name]
    # A task that the agent does not know is meant to be done in its own place.
    here = here or (spec.name not in agent.tasks and said in _own_words(spec))
    tasks = [task for task in tasks if not here or task.embodiment == spec.embodiment]
    for task in tasks:  # the present task first: others may share its words
        if task.name in agent.tasks and said in _own_words(task):
            return Understood(task.name, "own", ((task.name, 1.0),))
    return _by_head(agent, sentence, spec, here) or _by_cosine(agent, sentence, spec, tasks)


def _by_head(agent: Any, sentence: str, spec: TaskSpec, here: bool) -> Understood | None:
    """Ask an agent that says itself which task words mean; None for one that does not."""
    if getattr(agent.embeddings, "head", None) is None:
        return None
    found = None if here else agent.understand(sentence)
    if found is None or found.task is None:  # the same as `act` makes of it, which knows the body
        found = agent.understand(f"{spec.embodiment} {sentence}", spec.obs_dim, spec.action_dim)
    near = ((found.task, found.probability), (found.runner_up, found.runner_up_probability))
    return Understood(found.task, "head", tuple((name, value) for name, value in near if name is not None))


def _by_cosine(agent: Agent, sentence: str, spec: TaskSpec, tasks: list[TaskSpec]) -> Understood:
    cosines: dict[str, float] = {}
    for body in dict.fromkeys(task.embodiment for task in tasks):
        # Texts read in training begin with the body: said to each body, a sentence is compared with its own tasks.
        names = [task.name for task in agent.tasks.values() if task.embodiment == body]
        if not names:
            continue
        vector = agent.embed(dataclasses.replace(spec, embodiment=body, instructions=(sentence,))).vectors[0, 0]
        known = agent.embeddings.select(names).vectors  # (n, P, E)
        lengths = np.linalg.norm(known, axis=2) * np.linalg.norm(vector)
        cosines |= dict(zip(names, ((known @ vector) / lengths.clip(1e-12)).max(1).tolist(), strict=True))
    near = tuple(sorted(cosines.items(), key=lambda pair: -pair[1])[:3])
    if not near:
        return Understood(None, "near")
    stays = cosines.get(spec.name, -1.0) > near[0][1] - _LEAD
    return Understood(spec.name if stays else near[0][0], "near", near)


def _own_words(task: TaskSpec) -> set[str]:
    """Return a task's own texts, with and without its body."""
    return {_words(text) for number, one in enumerate(task.instructions) for text in (one, task.text(number))}


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
