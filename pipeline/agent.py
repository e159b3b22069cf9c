"""What a user holds: a world model that acts on instructions.

agent = Agent.from_pretrained("owner/name")
agent.reset()
action = agent.act(obs, task="walker-walk")
"""

from __future__ import annotations

import copy
import dataclasses
import re
import secrets
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import config, store
from pipeline.config import near
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import TextEncoder, load_encoder
from pipeline.model.actor import Actor
from pipeline.model.adapters import Adapters
from pipeline.model.compute import Compute, choose
from pipeline.model.grow import grow
from pipeline.model.scaling import merged
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.observing import check_obs, look
from pipeline.tasks.spec import TaskSpec
from pipeline.vision.sight import Sight, load_sight


class Agent:
    """A world model, the tasks it knows, and the state of acting in N environments.

    Args:
        model: the world model; shared, not copied.
        specs: the n tasks it knows.
        embeddings: of the same tasks, in the same order.
        table: the same tasks as tensors.
        planner: how to plan.
        compute: how, e.g. in bfloat16 or compiled; None chooses the library and nothing else.
        vision: what it sees beside or in place of the state; None for the state alone.

    Attributes:
        tasks: name -> TaskSpec of every known task.
        actor: acts in many environments at once, by rows of the task table.
        base: SHA-256 of the weights file the model was loaded from, None for one that was not.
        commit: of the Hub's repo it was loaded from, None where it came from a folder.
        encoder: the text encoder for instructions that are new; None until one is needed.
    """

    def __init__(
        self,
        model: WorldModel,
        specs: Sequence[TaskSpec],
        embeddings: TaskEmbeddings,
        table: TaskTable,
        planner: config.Planner,
        compute: Compute | None = None,
        vision: config.Vision | None = None,
    ):
        names = tuple(spec.name for spec in specs)
        if names != embeddings.names or names != table.names:
            raise ValueError(
                f"an agent takes specs, embeddings and table of the same tasks in the same order; they came as "
                f"{names}, {embeddings.names} and {table.names}."
            )
        self.model, self.embeddings, self.planner = model, embeddings, planner
        self.tasks = {spec.name: spec for spec in specs}
        self.device = next(model.parameters()).device
        self.actor = Actor(model, table.to(self.device), planner, compute or choose("auto", False, self.device))
        self.base: str | None = None
        self.commit: str | None = None
        self.encoder: TextEncoder | None = None
        self.vision = None if vision is None or vision.observe == "state" else vision
        self._sight: Sight | None = None
        self._picture_encoder: str | None = None  # id of the one it was trained with, where that is known
        self._adapters = Adapters(model)
        self._num_trained = len(names)  # rows of the table whose cluster is known; later ones get the nearest one's
        self._rows: dict[tuple[str, int | None, int], int] = {}  # of instructions that were said before
        self.reset()

    @property
    def table(self) -> TaskTable:
        """The known tasks as tensors. Rows beyond `tasks` are instructions that were given."""
        return self.actor.table

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that were created or added, by the name of their task."""
        return self._adapters.names

    @property
    def sight(self) -> Sight | None:
        """What turns pictures into observations, loaded when first asked for; None where the state is all it observes.

        Raises:
            OSError, ValueError: the picture encoder is not to be had, or not the one that the agent was trained with.
        """
        if self._sight is None and self.vision is not None:
            sight = load_sight(self.vision, self.device)
            if sight and self._picture_encoder not in (None, sight.encoder.id):
                raise ValueError(
                    f"this agent was trained with the picture encoder {self._picture_encoder}, but "
                    f"{self.vision.encoder} is {sight.encoder.id}: its vectors would mean something else."
                )
            if sight:
                for name in self.table.names:
                    sight.adopt(name, self.embeddings.nearest)
            self._sight = sight
        return self._sight

    # --- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        compute: Compute | None = None,
    ) -> Agent:
        """Load an agent from a folder or from the Hub.

        Args:
            source: a checkpoint's folder, or `owner/name` on the Hub.
            revision: commit, tag or branch on the Hub; None for the newest.
            device: where to compute.
            compute: how, e.g. in bfloat16 or compiled; None chooses the library and nothing else.

        Raises:
            OSError: it is not there, or the Hub could not be reached.
            ValueError: a file of it is damaged or does not fit the others.
        """
        folder, commit = store.fetch(source, revision, store.CHECKPOINT_FILES)
        found = store.read_checkpoint(folder)
        mask = torch.zeros(len(found.specs), found.model.config.action_dim)
        for row, spec in zip(mask, found.specs, strict=True):
            row[: spec.action_dim] = 1
        vectors, discount = torch.from_numpy(found.embeddings.vectors), torch.tensor(found.discounts)
        statistics = found.obs_mean, found.obs_std
        cluster = torch.zeros(0) if found.cluster is None else found.cluster
        table = TaskTable(found.embeddings.names, vectors, mask, discount, *statistics, found.constraint, cluster)
        model = found.model.to(device)
        agent = cls(model, found.specs, found.embeddings, table, found.planner, compute, found.vision)
        agent.base, agent.commit, agent._picture_encoder = found.base, commit, found.picture_encoder
        return agent

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the agent as a checkpoint folder, whole or not at all; matrices in stages are written as plain ones.

        Raises:
            ValueError: adapters are in; they are saved by `save_adapter`, beside the base they belong to.
        """
        if self._adapters.names:
            raise ValueError(
                f"the adapters {', '.join(self._adapters.names)} are in this agent. Save each with `save_adapter`; "
                "the base it belongs to is the checkpoint it was made from."
            )
        names, specs = list(self.tasks), list(self.tasks.values())
        rows, table = self.actor.rows(names), self.table.to("cpu")
        discounts, embeddings = table.discount[rows].tolist(), self.embeddings.select(names)
        mean, std = (part if part is None else part[rows] for part in (table.obs_mean, table.obs_std))
        seen = (self.vision, self.sight.encoder.id) if self.sight else (None, None)
        constraint, cluster = table.constraint[rows], table.cluster[rows] if self.model.config.clusters else None
        model = merged(self.model)
        content = store.Checkpoint(
            model, specs, discounts, embeddings, self.planner, "", mean, std, constraint, *seen, cluster=cluster
        )
        self.base = store.write_checkpoint(folder, content)

    def with_planner(self, planner: config.Planner) -> Agent:
        """Return this agent with other planner settings; the model is shared."""
        agent = copy.copy(self)
        agent.tasks, agent.planner, agent._rows = dict(self.tasks), planner, {}
        agent.actor = Actor(self.model, self.table, planner, self.actor.compute)
        agent.reset()
        return agent

    def grown(self, obs_dim: int, action_dim: int) -> Agent:
        """Return a copy for wider observations and actions, whose policy acts as before on the known tasks.

        Plans are as good as before but not the same: wider actions draw other random numbers.

        Args:
            obs_dim: O, at least the present one.
            action_dim: A, at least the present one.

        Raises:
            ValueError: it would become narrower, or adapters are in.
        """
        if self._adapters.names:
            raise ValueError("adapters are in this agent: load it anew, grow it, and adapt the wider one.")
        model, table = grow(self.model, obs_dim, action_dim), self.table
        more_obs, more_actions = obs_dim - self.model.config.obs_dim, action_dim - self.model.config.action_dim
        wider = dataclasses.replace(
            table,
            action_mask=F.pad(table.action_mask, (0, more_actions)),
            obs_mean=None if table.obs_mean is None else F.pad(table.obs_mean, (0, more_obs)),
            obs_std=None if table.obs_std is None else F.pad(table.obs_std, (0, more_obs), value=1.0),
            constraint=table.constraint.clone(),
        )
        return Agent(model, list(self.tasks.values()), self.embeddings, wider, self.planner, self.actor.compute)

    def told(self, phrasing: Literal["canonical", "unseen"]) -> Actor:
        """Return an actor that is told each task in its canonical words, or in those that training never draws."""
        if phrasing == "canonical":
            return self.actor
        unseen = torch.from_numpy(self.embeddings.unseen_vectors[:, None]).to(self.device)
        return Actor(self.model, dataclasses.replace(self.table, embeddings=unseen), self.planner, self.actor.compute)

    # --- acting ---------------------------------------------------------------------------------------------------

    def reset(self, num_envs: int = 1, seed: int | None = None) -> None:
        """Begin an episode in each of `num_envs` environments; a seed makes what follows reproducible."""
        self.num_envs = num_envs
        self.actor.reset(num_envs, secrets.randbits(32) if seed is None else seed)

    def act(
        self,
        obs: np.ndarray,
        task: str | None = None,
        instruction: str | None = None,
        action_dim: int | None = None,
        plan: bool = True,
        explore: bool = False,
        picture: np.ndarray | None = None,
    ) -> np.ndarray:
        """Choose an action.

        Args:
            obs: (o,) or, for N environments, (N, o): as the task's environment gives it, or zero-padded to O.
            task: name of a known task; or
            instruction: what to do. One of a known task's instructions, with or without its body, is that task (case
                and punctuation do not count). A new one is best said as training texts are: `<body> <what to do>`.
            action_dim: width of the action, for an instruction that belongs to no known task. It may be left out where
                the known tasks that observe as many values all have one body: the instruction is then for that body.
            plan: with the planner, else with the policy alone.
            explore: with noise, as in training.
            picture: for an agent that sees (`vision` is not None), what is to be seen: (P, P, 3) or (N, P, P, 3)
                uint8 RGB, upright, P being `vision.size`. Draw it as `eft act` does: `make(..., render_size=P)`.

        Returns:
            (a,) or (N, a) float32 in [-1, 1], without padding.

        Raises:
            ValueError: the task is unknown, the widths do not fit, or `reset` was for another number of environments.
        """
        obs = np.asarray(obs, dtype=np.float32)
        batch = np.atleast_2d(obs)
        row = self._row(task, instruction, action_dim, batch.shape[-1])
        check_obs(obs, batch, self.tasks.get(self.table.names[row]), self.model.config.obs_dim, self.num_envs)
        padded = np.zeros((len(batch), self.model.config.obs_dim), dtype=np.float32)
        padded[:, : batch.shape[1]] = batch
        name = self.table.names[row]
        look(self.sight, padded, batch.shape[1], self.tasks.get(name), name, picture)
        rows = torch.full((len(batch),), row)
        action = self.actor.act(torch.from_numpy(padded), rows, plan, explore).numpy()
        action = action[:, : int(self.table.action_mask[row].sum())]
        return action[0] if obs.ndim == 1 else action

    # --- tasks and adapters ---------------------------------------------------------------------------------------

    def add_task(
        self,
        spec: TaskSpec,
        embeddings: TaskEmbeddings,
        discount: float,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Make a further task known, so that it can be acted on by name.

        Args:
            spec: the task.
            embeddings: holds this task, by the same encoder.
            discount: in (0, 1].
            statistics: mean and std (1, O) of its observations, used if this agent normalises them and knows no task
                with the same embodiment, whose statistics it then shares.

        Raises:
            ValueError: the name is taken, or the task does not fit the model.
        """
        if spec.name in self.table.names:
            raise ValueError(f"the task {spec.name!r} is known already.")
        width = max(spec.obs_dim, self.sight.width(spec.obs_dim) if self.sight else 0)
        if width > self.model.config.obs_dim:
            raise ValueError(
                f"{spec.name} has {width} observation dims, the model takes up to {self.model.config.obs_dim}. "
                f"`eft grow CHECKPOINT FOLDER --obs-dim {width}` makes it wider, acting as before on old tasks."
            )
        self._append(embeddings.select([spec.name]), spec.action_dim, discount, statistics)
        self.tasks[spec.name] = spec
        self._rows.clear()  # what was said may now mean this task

    def embed(self, spec: TaskSpec) -> TaskEmbeddings:
        """Return the vectors of a task's texts by this agent's own text encoder, which is loaded if need be."""
        phrasings = self.table.num_phrasings
        return embed(self._load_encoder(), [spec.name], [spec.training_texts()], phrasings, [spec.unseen_text()])

    def nearest_tasks(self, task: str, count: int) -> list[tuple[str, float]]:
        """Return the `count` other known tasks that read most like a known one, with the cosine of their vectors."""
        self._row_of(task)  # known, or refused with a hint
        cosines = self.embeddings.similarity(task, [name for name in self.tasks if name != task])
        return sorted(cosines.items(), key=lambda pair: -pair[1])[:count]

    def create_adapter(self, task: str, parts: Sequence[str], rank: int, alpha: float) -> None:
        """Put in a new low-rank adapter for a known task, named after it. It is then all that is trained.

        Where networks are copied per cluster, it changes those of the task's own cluster.

        Args:
            task: name of the task.
            parts: networks it may change, keys of `world_model.PARTS`.
            rank: of the change of each weight matrix.
            alpha: the change is scaled by alpha / rank.
        """
        cluster = int(self.table.cluster[self._row_of(task)])
        self._adapters.create(task, parts, rank, alpha, cluster)
        self.actor.refresh()

    def save_adapter(self, folder: str | Path, task: str) -> None:
        """Write an adapter and what is to be known of its task as one folder, whole or not at all."""
        if self.base is None:
            raise ValueError("an adapter belongs to a saved base: load the agent from a checkpoint before adapting it.")
        discount = float(self.table.discount[self._row_of(task)])
        row, table = self._row_of(task), self.table.to("cpu")
        mean, std = (part if part is None else part[row : row + 1] for part in (table.obs_mean, table.obs_std))
        about = store.AdapterTask(
            self.tasks[task],
            discount,
            self.embeddings.select([task]),
            self.base,
            mean,
            std,
            int(table.constraint[row]),
        )
        store.write_adapter(folder, self._adapters, task, about)

    def add_adapter(
        self,
        source: str | Path,
        revision: str | None = None,
        subfolder: str = "",
        trainable: bool = False,
    ) -> str:
        """Load an adapter, make its task known and let it act.

        Args:
            source: an adapter's folder, or `owner/name` on the Hub.
            revision: commit, tag or branch on the Hub.
            subfolder: where in the folder or repo the adapter lies, e.g. `adapters/walker-run`.
            trainable: go on training it.

        Returns:
            the task it is for, which is also the adapter's name.

        Raises:
            OSError: it is not there, or the Hub could not be reached.
            ValueError: it was trained on another base or another text encoder, or it is damaged.
        """
        folder = store.fetch(source, revision, store.ADAPTER_FILES, subfolder).folder
        about = store.read_adapter_task(folder)
        name = about.spec.name
        if about.base != self.base:
            raise ValueError(
                f"the adapter in {source} was trained on the base weights {about.base[:16]}, this agent has "
                f"{(self.base or 'unsaved ones')[:16]}: it would not act as it was trained to. Load the agent it "
                "belongs to, or adapt anew."
            )
        if name not in self.tasks:
            mean, std = about.obs_mean, about.obs_std
            statistics = None if mean is None or std is None else (mean, std)
            self.add_task(about.spec, about.embeddings, about.discount, statistics)
        self._adapters.load(folder, name, trainable)
        self.table.constraint[self._row_of(name)] = about.constraint
        self.actor.refresh()
        return name

    def set_adapter(self, name: str | None) -> None:
        """Let one of the adapters that were added act, or none. It ends the training of the others."""
        self._adapters.activate(name)
        self.actor.refresh()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _row_of(self, name: str) -> int:
        if name not in self.tasks:
            raise ValueError(
                f"this agent does not know the task {name!r}.{near(name, list(self.tasks))} It knows "
                f"{', '.join(self.tasks)}. For another one, give `instruction` and `action_dim`."
            )
        return self.table.names.index(name)

    def _row(self, task: str | None, instruction: str | None, action_dim: int | None, obs_dim: int) -> int:
        """Return the row of the task table for what `act` was told; a new instruction gets a new row."""
        if (task is None) == (instruction is None):
            raise ValueError(
                "say what to do with `task` (a known name) or with `instruction` (a text): one of the two."
            )
        if task is not None:
            row = self._row_of(task)
            if action_dim not in (None, self.tasks[task].action_dim):
                raise ValueError(f"{task} has {self.tasks[task].action_dim} action dims, not action_dim={action_dim}.")
            return row
        assert instruction is not None
        said = instruction, action_dim, obs_dim
        if said not in self._rows:
            self._rows[said] = self._row_said(*said)
        return self._rows[said]

    def _row_said(self, instruction: str, action_dim: int | None, obs_dim: int) -> int:
        if (known := self._named(instruction, action_dim)) is not None:
            return self.table.names.index(known)
        bodies = {(spec.embodiment, spec.action_dim) for spec in self.tasks.values() if spec.obs_dim == obs_dim}
        if action_dim is None and len(bodies) == 1:
            body, action_dim = bodies.pop()
            instruction = instruction if instruction.startswith(body) else f"{body} {instruction}"
        if action_dim is None:
            raise ValueError(
                f"the instruction {instruction!r} is the text of no known task, so `action_dim` is needed beside it. "
                f"The texts of known tasks read like {self.embeddings.texts[0][0]!r}."
            )
        name = f"{instruction} ({action_dim} action dims)"
        if name not in self.table.names:
            vectors = embed(self._load_encoder(), [name], [[instruction]], self.table.num_phrasings)
            self._append(vectors, action_dim, statistics.median(self.table.discount.tolist()))
        return self.table.names.index(name)

    def _named(self, instruction: str, action_dim: int | None) -> str | None:
        """Return the known task that an instruction is of; None if there is none, or several bodies share it."""
        said = _words(instruction)
        fitting = [spec for spec in self.tasks.values() if action_dim in (None, spec.action_dim)]
        for texts in (lambda spec: self.embeddings.select([spec.name]).texts[0], lambda spec: spec.instructions):
            names = [spec.name for spec in fitting if said in map(_words, texts(spec))]
            if len(names) == 1:
                return names[0]
        return None

    def _load_encoder(self) -> TextEncoder:
        expected = self.embeddings.encoder
        if self.encoder is None:
            self.encoder = load_encoder(expected.partition("@")[0])
        if self.encoder.id != expected:
            raise ValueError(
                f"this agent was trained with the text encoder {expected}, but {self.encoder.id} was loaded: its "
                "vectors would mean something else. Set `agent.encoder = load_encoder(...)` to the right one."
            )
        return self.encoder

    def _append(
        self,
        embeddings: TaskEmbeddings,
        action_dim: int,
        discount: float,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Put one more row into the task table."""
        if not 1 <= action_dim <= self.model.config.action_dim:
            raise ValueError(
                f"{embeddings.names[0]!r} has {action_dim} action dims, the model takes 1 to "
                f"{self.model.config.action_dim}. `eft grow CHECKPOINT FOLDER --action-dim {action_dim}` makes it "
                "wider, acting as before on old tasks."
            )
        self.embeddings = self.embeddings.join(embeddings)
        statistics_of_all = self._statistics(embeddings.texts[0][0], statistics)
        vectors = torch.from_numpy(self.embeddings.vectors).to(self.device)
        self.actor.table = self.table.extended(
            self.embeddings.names, vectors, action_dim, discount, *statistics_of_all, self._num_trained
        )
        if self._sight:
            self._sight.adopt(embeddings.names[0], self.embeddings.nearest)

    def _statistics(self, text: str, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the table's observation statistics with one more row, for a task whose text is `text`.

        They are those of a known task with the same body, whose sentence begins the text; else the given ones; else
        observations of this task are taken as they come.
        """
        mean, std = self.table.obs_mean, self.table.obs_std
        if mean is None or std is None:
            return None, None
        bodies = (name for name, spec in self.tasks.items() if text.startswith(spec.embodiment))
        if (known := next(bodies, None)) is not None:
            row = self.table.names.index(known)
            given = mean[row : row + 1], std[row : row + 1]
        elif given is None:
            given = torch.zeros_like(mean[:1]), torch.ones_like(std[:1])
        return torch.cat([mean, given[0].to(self.device)]), torch.cat([std, given[1].to(self.device)])


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
