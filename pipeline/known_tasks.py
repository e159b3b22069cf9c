"""What an agent knows of tasks: which row of the task table a text means, and how one more row is added."""

from __future__ import annotations

import logging
import re
import statistics
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline import config
from pipeline.config import near
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import TextEncoder
from pipeline.language.head import Understood
from pipeline.model.task_table import TaskTable
from pipeline.tasks.spec import TaskSpec

MAX_SAID = 64  # instructions that an agent remembers beside its tasks; more, if one call gives more
_log = logging.getLogger(__name__)

Read = Callable[[str, Collection[str]], Understood]  # which of some known tasks a text means


class Told(NamedTuple):
    """What the agent is told to do in one environment."""

    task: str | None
    instruction: str | None
    action_dim: int | None
    literal: bool = False  # an instruction is not to be understood as a known task


class Meaning(NamedTuple):
    """A row of the task table, which may not be there yet."""

    name: str  # of the row
    text: str | None = None  # that is new; None for a known task
    action_dim: int = 0  # for a new text
    understood: Understood | None = None  # where a head was asked


Said = dict[tuple[Told, int], Meaning]  # by what was told and how wide the observations were


class KnownTasks(NamedTuple):
    """Tasks and instructions by row. It never changes: what may be refused gives another one, or an error."""

    tasks: dict[str, TaskSpec]
    embeddings: TaskEmbeddings  # of all rows
    table: TaskTable  # rows beyond `tasks` are instructions
    num_trained: int  # rows, from the first on, that the model was trained on

    def row(self, name: str) -> int:
        """Return the row of a known task.

        Raises:
            ValueError: it is unknown; names those that are known.
        """
        if name not in self.tasks:
            raise ValueError(
                f"this agent does not know the task {name!r}.{near(name, list(self.tasks))} It knows "
                f"{', '.join(self.tasks)}. For another one, give `instruction` and `action_dim`."
            )
        return self.table.names.index(name)

    def understand(self, told: Told, obs_dim: int, read: Read | None = None) -> Meaning:
        """Find the known task that is meant, or make an instruction a text that begins with its body, as those read.

        Args:
            told: a task's name, or an instruction in anyone's words; beside it how wide the actions are to be, None
                where the task or the body says so.
            obs_dim: how wide the observations are that come with it.
            read: says what words mean that are not a known task's own; None where there is no head.

        Raises:
            ValueError: the task is unknown or has other actions; or the instruction is of no known task, and no body or
                several may be meant.
        """
        task, instruction, action_dim, literal = told
        if task is not None:
            self.row(task)
            if action_dim not in (None, self.tasks[task].action_dim):
                raise ValueError(f"{task} has {self.tasks[task].action_dim} action dims, not action_dim={action_dim}.")
            return Meaning(task)
        assert instruction is not None
        if (known := self._task_of(instruction, action_dim)) is not None:
            return Meaning(known)
        understood = None
        if read is not None and not literal:
            understood = read(instruction, self.fitting(obs_dim, action_dim))
            if understood.task is not None:
                return Meaning(understood.task, understood=understood)
        bodies = {(spec.embodiment, spec.action_dim) for spec in self.tasks.values() if spec.obs_dim == obs_dim}
        if action_dim is None and len(bodies) == 1:
            body, action_dim = bodies.pop()
            instruction = instruction if instruction.startswith(body) else f"{body} {instruction}"
        if action_dim is None:
            raise ValueError(
                f"the instruction {instruction!r} is the text of no known task, so `action_dim` is needed beside it. "
                f"The texts of known tasks read like {self.embeddings.texts[0][0]!r}."
            )
        return Meaning(f"{instruction} ({action_dim} action dims)", instruction, action_dim, understood)

    def fitting(self, obs_dim: int | None = None, action_dim: int | None = None) -> list[str]:
        """Return the known tasks with actions of this width and observations of that, or of any if none has that."""
        names = [name for name, spec in self.tasks.items() if action_dim in (None, spec.action_dim)]
        return [name for name in names if self.tasks[name].obs_dim == obs_dim] or names

    def meanings(self, told: Sequence[Told], obs_dim: int, said: Said, read: Read | None) -> tuple[list[Meaning], Said]:
        """Return which row of the task table each environment is to use, maybe a new one, and what `said` is then."""
        found, said = dict[Told, Meaning](), dict(said)
        for one in dict.fromkeys(told):
            before = said.pop((one, obs_dim), None)
            found[one] = before or self.understand(one, obs_dim, read)
            if before is None and (understood := found[one].understood) is not None:
                _log.warning("%s%s", understood, "" if understood.task else "; its own vector is used")
            if one.task is None:
                said[one, obs_dim] = found[one]  # the latest stands last
        for old in list(said)[: -max(MAX_SAID, len(found))]:
            del said[old]
        return [found[one] for one in told], said

    def with_task(
        self,
        spec: TaskSpec,
        width: int,
        embeddings: TaskEmbeddings,
        discount: float,
        statistics: tuple[Tensor, Tensor] | None,
        sizes: config.Model,
    ) -> KnownTasks:
        """Return what is known with one more task.

        Args:
            spec: the task.
            width: how many values are observed of it.
            embeddings: holds this task, by the same encoder.
            discount: in (0, 1].
            statistics: mean and std (1, O) of its observations, for a body that is unknown.
            sizes: of the model that is to act on it.

        Raises:
            ValueError: the name is taken, or the task does not fit the model.
        """
        if spec.name in self.table.names:
            raise ValueError(f"the task {spec.name!r} is known already.")
        if width > sizes.obs_dim:
            raise ValueError(
                f"{spec.name} has {width} observation dims, the model takes up to {sizes.obs_dim}. "
                f"`eft grow CHECKPOINT FOLDER --obs-dim {width}` makes it wider, acting as before on old tasks."
            )
        more = self.with_row(embeddings.select([spec.name]), spec.action_dim, discount, statistics, sizes)
        return more._replace(tasks={**self.tasks, spec.name: spec})

    def with_row(
        self,
        embeddings: TaskEmbeddings,
        action_dim: int,
        discount: float,
        statistics: tuple[Tensor, Tensor] | None,
        sizes: config.Model,
    ) -> KnownTasks:
        """Return what is known with one more row, for a task or an instruction; `with_task` says what it is made of."""
        if not 1 <= action_dim <= sizes.action_dim:
            raise ValueError(
                f"{embeddings.names[0]!r} has {action_dim} action dims, the model takes 1 to {sizes.action_dim}. "
                f"`eft grow CHECKPOINT FOLDER --action-dim {action_dim}` makes it wider, acting as before on old tasks."
            )
        joined = self.embeddings.join(embeddings)
        mean, std = self._statistics(embeddings.texts[0][0], statistics)
        vectors = torch.from_numpy(joined.vectors).to(self.table.embeddings.device)
        table = self.table.extended(joined.names, vectors, action_dim, discount, mean, std, self.num_trained)
        return self._replace(embeddings=joined, table=table)

    def with_instructions(
        self, meant: Sequence[Meaning], remembered: Collection[str], encoder: TextEncoder, sizes: config.Model
    ) -> KnownTasks:
        """Return what is known with rows for what is meant, in the place of instructions that are not remembered.

        Args:
            meant: some of it may have a row already.
            remembered: names of the instructions that keep or get theirs.
            encoder: the one that the tasks' texts went through.
            sizes: of the model that is to act on it.

        Raises:
            ValueError: an instruction has too many action dims for the model.
        """
        kept = [row for row, name in enumerate(self.table.names) if name in self.tasks or name in remembered]
        names = [self.table.names[row] for row in kept]
        known = self._replace(embeddings=self.embeddings.select(names), table=self.table.select(kept))
        discount = statistics.median(self.table.discount.tolist())
        for new in {one.name: one for one in meant if one.name not in names}.values():
            assert new.text is not None
            vectors = embed(encoder, [new.name], [[new.text]], self.table.num_phrasings)
            known = known.with_row(vectors, new.action_dim, discount, None, sizes)
        return known

    def _task_of(self, instruction: str, action_dim: int | None) -> str | None:
        """Return the known task that an instruction is of; None if there is none, or several bodies share it."""
        said = _words(instruction)
        fitting = [spec for spec in self.tasks.values() if action_dim in (None, spec.action_dim)]
        for texts in (lambda spec: self.embeddings.select([spec.name]).texts[0], lambda spec: spec.instructions):
            names = [spec.name for spec in fitting if said in map(_words, texts(spec))]
            if len(names) == 1:
                return names[0]
        return None

    def _statistics(self, text: str, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the table's observation statistics with one more row, for a task whose text is `text`.

        They are those of a known task with the same body, whose sentence begins the text; else the given ones; else
        observations of this task are taken as they come.
        """
        mean, std = self.table.obs_mean, self.table.obs_std
        if mean is None or std is None:
            return None, None
        if (known := same_body(self.tasks, text)) is not None:
            row = self.table.names.index(known)
            given = mean[row : row + 1], std[row : row + 1]
        elif given is None:
            given = torch.zeros_like(mean[:1]), torch.ones_like(std[:1])
        if any(part.shape != mean[:1].shape or not part.isfinite().all() for part in given):
            raise ValueError(f"`statistics` must be a mean and a std of {mean.shape[1]} finite numbers, (1, O) each.")
        return torch.cat([mean, given[0].to(mean.device)]), torch.cat([std, given[1].to(std.device)])


def same_body(tasks: Mapping[str, TaskSpec], text: str) -> str | None:
    """Return the first task with the body whose sentence begins a text; None if there is none."""
    return next((name for name, spec in tasks.items() if text.startswith(spec.embodiment)), None)


def told_each(
    task: str | Sequence[str] | None,
    instruction: str | Sequence[str] | None,
    action_dim: int | Sequence[int] | None,
    num_envs: int,
    literal: bool = False,
) -> list[Told]:
    """Return what is said of each of `num_envs` environments, where each argument is for all of them or one for each.

    Raises:
        ValueError: both task and instruction were given, or neither, or a list has another length.
    """
    columns = []
    for name, value in (("task", task), ("instruction", instruction), ("action_dim", action_dim)):
        each = [value] * num_envs if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
        if len(each) != num_envs:
            raise ValueError(f"`{name}` has {len(each)} entries for {num_envs} environments: give one for each or all.")
        columns.append(each)
    told = [Told(*one, literal=literal) for one in zip(*columns, strict=True)]
    for row, one in enumerate(told):
        if (one.task is None) == (one.instruction is None):
            where = f" for environment {row}" if num_envs > 1 else ""
            raise ValueError(
                f"say what to do with `task` (a known name) or with `instruction` (a text): one of the two{where}."
            )
    return told


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))  # ö is one letter or two
