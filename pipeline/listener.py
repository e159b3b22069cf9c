"""What an agent makes of words: its text encoder, and which known task a text means."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from pipeline import config
from pipeline.adapters import Adapters
from pipeline.known_tasks import KnownTasks, Meaning, Read, Told
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import TextEncoder
from pipeline.language.head import HeadedEncoder, Understood, headed, knowing
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.systems import build
from pipeline.tasks.spec import TaskSpec

L = TypeVar("L", bound="Listener")
P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Let threads that share an agent, or agents that share a model, wait for each other in this method."""

    @functools.wraps(method)
    def in_turn(self: L, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return in_turn


class Listener:
    """The part of an agent that hears: texts in, tasks and vectors out. `Agent` says what its attributes are."""

    tasks: dict[str, TaskSpec]
    embeddings: TaskEmbeddings
    encoder: TextEncoder | None
    actor: Actor
    model: WorldModel
    planner: config.Planner
    _adapters: Adapters
    _lock: threading.RLock  # pyright: ignore[reportGeneralTypeIssues]
    _num_trained: int

    @property
    def table(self) -> TaskTable:
        """The known tasks as tensors. Rows beyond `tasks` are instructions that were given."""
        return self.actor.table

    @one_at_a_time
    def understand(self, text: str, obs_dim: int | None = None, action_dim: int | None = None) -> Understood:
        """Say which known task a text means, and how sure that is: what `act` takes it for.

        Args:
            text: in anyone's words, with or without the body's sentence before it.
            obs_dim: how wide the observations are, which leaves the tasks of fitting bodies; None for any.
            action_dim: how wide the actions are.

        Returns:
            the task, or None if nothing known is meant, each with its probability; and the runner-up.

        Raises:
            ValueError: this agent was trained without a head (`language.head: null`).
        """
        if self._read is None:
            raise ValueError("this agent has no head (language.head was null): only its tasks' own texts mean a task.")
        return self._read(text, self._known.fitting(obs_dim, action_dim))

    def instructed(self, texts: Sequence[str], specs: Sequence[TaskSpec]) -> tuple[Actor, list[Meaning]]:
        """Return an actor that has a row for each text as it is meant to the body of each task, and what each means."""
        pairs = zip(texts, specs, strict=True)
        meant = [self._known.understand(Told(None, one, s.action_dim), s.obs_dim, self._read) for one, s in pairs]
        names = [one.name for one in meant]
        table = self._known.with_instructions(meant, names, self._load_encoder(), self.model.config).table
        return build.make_actor(self.model, table, self.planner, self.actor.mode, self._adapters), meant

    def embed(self, spec: TaskSpec) -> TaskEmbeddings:
        """Return the vectors of a task's texts by this agent's own text encoder, which is loaded if need be."""
        phrasings = self.table.num_phrasings
        encoder = knowing(self._load_encoder(), [spec])
        return embed(encoder, [spec.name], [spec.training_texts()], phrasings, [spec.unseen_text()])

    def nearest_tasks(self, task: str, count: int) -> list[tuple[str, float]]:
        """Return the `count` other known tasks that read most like a known one, with the cosine of their vectors."""
        self._known.row(task)  # known, or refused with a hint
        cosines = self.embeddings.similarity(task, [name for name in self.tasks if name != task])
        return sorted(cosines.items(), key=lambda pair: -pair[1])[:count]

    @property
    def _known(self) -> KnownTasks:
        return KnownTasks(self.tasks, self.embeddings, self.table, self._num_trained)

    @property
    def _read(self) -> Read | None:
        """Say what words mean, by the head; None where there is none. The encoder is loaded once it is asked."""

        def read(text: str, names: Collection[str]) -> Understood:
            encoder = self._load_encoder()
            assert isinstance(encoder, HeadedEncoder)
            return encoder.understand(text, names)

        return None if self.embeddings.head is None else read

    @one_at_a_time
    def _load_encoder(self) -> TextEncoder:
        encoder = headed(self.embeddings.encoder, self.embeddings.head, self.encoder)
        self.embeddings.check_encoder(encoder)
        self.encoder = knowing(encoder, self.tasks.values())
        return self.encoder
