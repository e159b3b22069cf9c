"""What a user holds: a world model that acts on instructions.

agent = Agent.from_pretrained("owner/name")
agent.reset()
action = agent.act(obs, task="walker-walk")
"""

from __future__ import annotations

import copy
import dataclasses
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline import config, store
from pipeline.adapters import Adapters
from pipeline.known_tasks import KnownTasks, Said, told_each
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.language.encoder import TextEncoder, same_encoder
from pipeline.listener import Listener, one_at_a_time
from pipeline.model import products
from pipeline.model.actor import Actor
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.observing import check_device, check_obs, chosen_envs, whole_number
from pipeline.pixels.envs import observed_width
from pipeline.pixels.pixel_encoder import PixelEncoder, check_picture, load_pixel_encoder
from pipeline.run.cores import one_thread_by_default
from pipeline.systems import build
from pipeline.tasks.spec import TaskSpec


class Agent(Listener):
    """A world model, the tasks it knows, and the state of acting in N environments.

    It computes with one torch thread per process; what OMP_NUM_THREADS says before the first agent, or
    `torch.set_num_threads` after it, counts instead.

    Threads may share an agent: their calls take turns. They then share its episodes too; for episodes of its own, a
    thread acts by `agent.with_planner(agent.planner)`, which shares the model. A call that is refused changes nothing.

    Args:
        model: the world model; shared, not copied.
        specs: the n tasks it knows.
        embeddings: of the same tasks, in the same order.
        table: the same tasks as tensors.
        planner: how to plan.
        mode: how products are computed, e.g. in bfloat16; None chooses the library.
        vision: which images it observes beside or in place of the state; None for the state alone.

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
        mode: products.Mode | None = None,
        vision: config.Vision | None = None,
    ):
        names = tuple(spec.name for spec in specs)
        if names != embeddings.names or names != table.names:
            raise ValueError(
                f"an agent takes specs, embeddings and table of the same tasks in the same order; they came as "
                f"{names}, {embeddings.names} and {table.names}."
            )
        one_thread_by_default()
        self.model, self.embeddings, self.planner = model, embeddings, planner
        self.tasks = {spec.name: spec for spec in specs}
        self.device = next(model.parameters()).device
        self._lock, self._adapters = threading.RLock(), Adapters(model)
        mode = mode or products.choose("auto", self.device)
        self.actor = build.make_actor(model, table.to(self.device), planner, mode, self._adapters)
        self.base: str | None = None
        self.commit: str | None = None
        self.encoder: TextEncoder | None = None
        self.vision = None if vision is None or vision.observe == "state" else vision
        self._pixel_encoder: PixelEncoder | None = None
        self._picture_encoder: str | None = None  # id of the one it was trained with, where that is known
        self._num_trained = len(names)  # rows of the table; later ones have the columns of the nearest of these
        self._said: Said = {}  # what earlier instructions meant
        self.reset()

    def __repr__(self) -> str:
        sizes, known = self.model.config, shorten(", ".join(self.tasks), 80, placeholder=" ...")
        widths = f"obs_dim {sizes.obs_dim}, action_dim {sizes.action_dim}"
        adapters = f"; adapters: {', '.join(self.adapters)}" if self.adapters else ""
        return f"Agent({len(self.tasks)} tasks: {known}; {widths}{adapters}; {self.num_envs} envs on {self.device})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}  # which cannot be copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that were created or added, by the name of their task."""
        return self._adapters.names

    @property
    @one_at_a_time
    def pixel_encoder(self) -> PixelEncoder | None:
        """What turns images into observations, loaded when first asked for; None where states are all it observes.

        Raises:
            OSError, ValueError: it is not to be had, or not the one that the agent was trained with.
        """
        if self._pixel_encoder is None and self.vision is not None:
            found = load_pixel_encoder(self.vision, self.device)
            if found and not same_encoder(self._picture_encoder or found.encoder.id, found.encoder.id):
                raise ValueError(
                    f"this agent was trained with the image encoder {self._picture_encoder}, but "
                    f"{self.vision.encoder} is {found.encoder.id}: its vectors would mean something else."
                )
            if found:
                for name in self.table.names:
                    found.assign_nearest(name, self.embeddings.nearest)
            self._pixel_encoder = found
        return self._pixel_encoder

    # --- loading and saving ---------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        mode: products.Mode | None = None,
    ) -> Agent:
        """Load an agent from a folder or from the Hub.

        Args:
            source: a checkpoint's folder, or `owner/name` on the Hub.
            revision: commit, tag or branch on the Hub; None for the newest.
            device: where to compute.
            mode: how products are computed, e.g. in bfloat16; None chooses the library.

        Raises:
            OSError: it is not there, or the Hub could not be reached.
            ValueError: a file of it is damaged or does not fit the others; or torch sees no such device.
        """
        check_device(device)
        folder, commit = store.fetch(source, revision, store.CHECKPOINT_FILES)
        found = store.read_checkpoint(folder)
        model, table = found.model.to(device), found.task_table()
        agent = cls(model, found.specs, found.embeddings, table, found.planner, mode, found.vision)
        agent.base, agent.commit, agent._picture_encoder = found.base, commit, found.picture_encoder
        return agent

    @one_at_a_time
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the agent as a checkpoint into a folder; matrices in stages are written as plain ones.

        Files of the same names are replaced, nothing else in the folder changes. `tasks.json` comes last: without it
        the folder is no checkpoint, so a crash leaves none that is half old.

        Raises:
            ValueError: adapters are in; they are saved by `save_adapter`, beside the base they belong to. Or an adapter
                lies in the folder, of whose files some have the same names.
            OSError: the disk is full or not writable; what was there before is still there.
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
        images = (self.vision, self.pixel_encoder.encoder.id) if self.pixel_encoder else (None, None)
        constraint, columns = table.constraint[rows], {name: column[rows] for name, column in table.columns.items()}
        model = build.plain(self.model)
        content = store.Checkpoint(
            model, specs, discounts, embeddings, self.planner, "", mean, std, constraint, *images, columns=columns
        )
        self.base = store.write_checkpoint(folder, content)

    @one_at_a_time
    def with_planner(self, planner: config.Planner) -> Agent:
        """Return this agent with other planner settings; the model is shared."""
        agent = copy.copy(self)
        agent.planner, agent._said, agent._lock = planner, {}, self._lock
        agent.actor = build.make_actor(self.model, self.table, planner, self.actor.mode, self._adapters)
        agent.reset()
        return agent

    @one_at_a_time
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
        model = build.grown(self.model, obs_dim, action_dim)
        grown = copy.copy(self)  # with a lock of its own
        grown.model, grown._adapters, grown.base, grown.commit = model, Adapters(model), None, None
        grown._said = dict(self._said)
        wider = self.table.widened(obs_dim, action_dim)
        grown.actor = build.make_actor(model, wider, self.planner, self.actor.mode, grown._adapters)
        grown.reset()
        return grown

    def conditioned(self, phrasing: Literal["canonical", "unseen"]) -> Actor:
        """Return an actor that gets each task in its canonical words, or in those that training never draws."""
        if phrasing == "canonical":
            return self.actor
        unseen = torch.from_numpy(self.embeddings.unseen_vectors[:, None]).to(self.device)
        table = dataclasses.replace(self.table, embeddings=unseen)
        return build.make_actor(self.model, table, self.planner, self.actor.mode, self._adapters)

    # --- acting ---------------------------------------------------------------------------------------------------

    @one_at_a_time
    def reset(
        self, num_envs: int | None = None, seed: int | None = None, envs: Sequence[int] | np.ndarray | None = None
    ) -> None:
        """Begin episodes: in each of `num_envs` environments (None: one), or in some of those that there are.

        Args:
            num_envs: N, how many environments there are from now on.
            seed: makes what follows reproducible.
            envs: numbers of those whose next step is the first of an episode, or a mask (N,) bool, `done`; the others
                go on. It stands alone: number and seed stay what they are.

        Raises:
            ValueError: there is no such environment, or a number or seed is no whole number.
        """
        if envs is None:
            number = whole_number("num_envs", 1 if num_envs is None else num_envs, 1, 2**31)
            random = secrets.randbits(32) if seed is None else whole_number("seed", seed, -(2**63), 2**64 - 1)
            self.actor.reset(number, random)
            self.num_envs = number
            return
        if num_envs is not None or seed is not None:
            raise ValueError("`envs` begins episodes in some environments: number and seed stay, leave them out.")
        self.actor.begin_episodes(chosen_envs(envs, self.num_envs))

    @one_at_a_time
    def act(
        self,
        obs: np.ndarray,
        task: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] | None = None,
        action_dim: int | Sequence[int] | None = None,
        plan: bool = True,
        explore: bool = False,
        picture: np.ndarray | None = None,
        literal: bool = False,
    ) -> np.ndarray:
        """Choose an action, by the task's adapter where one was added or created, else by the bare model.

        Args:
            obs: (o,) or, for N environments, (N, o): as the task's environment gives it, or zero-padded to O; of
                several tasks zero-padded to the widest of them.
            task: name of a known task, or a list of N, with None where an instruction is given; or
            instruction: what to do, or a list of N. One of a known task's instructions, with or without its body, is
                that task (case and punctuation do not count). Other words are that task too if they are understood as
                one (`understand`), which is logged once. Else their own vector tells the model what to do; they are
                then best said as training texts are: `<body> <what to do>`. The last 64 are remembered.
            action_dim: width of the action, for an instruction that belongs to no known task. It may be left out where
                the known tasks that observe as many values all have one body: the instruction is then for that body.
            plan: with the planner, else with the policy alone.
            explore: with noise, as in training.
            picture: for an agent that sees (`vision` is not None), what is to be seen: (P, P, 3) or (N, P, P, 3)
                uint8 RGB, upright, P being `vision.size`. Draw it as `eft act` does: `make(..., render_size=P)`.
            literal: new words are told by their own vector, and not understood as a known task.

        Returns:
            (a,) or (N, a) float32 in [-1, 1], without padding; of several tasks zero-padded to the widest of them.

        Raises:
            ValueError: a task is unknown, the widths do not fit, or `reset` was for another number of environments.
        """
        obs = np.asarray(obs, dtype=np.float32)
        batch, widest = np.atleast_2d(obs), self.model.config.obs_dim
        told = told_each(task, instruction, action_dim, len(batch), literal)
        meant, said = self._known.meanings(told, batch.shape[-1], self._said, self._read)
        names = [one.name for one in meant]
        obs_dims = check_obs(obs, batch, [self.tasks.get(name) for name in names], widest, self.num_envs)
        images = check_picture(self.pixel_encoder, picture, len(batch), max(obs_dims), widest)
        if any(name not in self.table.names for name in names):
            remembered = [one.name for one in said.values()]
            self._learn_of(self._known.with_instructions(meant, remembered, self._load_encoder(), self.model.config))
        self._said = said
        padded = np.pad(batch, ((0, 0), (0, widest - batch.shape[1])))
        if images is not None and self.pixel_encoder is not None:
            for name in set(names):
                self.pixel_encoder.assign_nearest(name, self.embeddings.nearest)
            self.pixel_encoder.augment(padded, obs_dims, images, names)
        rows = self.actor.rows(names)
        action = self.actor.act_finite(torch.from_numpy(padded), rows, plan, explore).numpy()
        action = action[:, : int(self.table.action_mask[rows.to(self.device)].sum(1).max())]
        return action[0] if obs.ndim == 1 else action

    # --- tasks and adapters ---------------------------------------------------------------------------------------

    @one_at_a_time
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
        self._learn_of(self._with_task(spec, embeddings, discount, statistics))

    @one_at_a_time
    def create_adapter(self, task: str, parts: Sequence[str], rank: int, alpha: float) -> None:
        """Put in a new low-rank adapter for a known task, named after it, which acts on it from now on.

        It is then all that is trained. Where networks are copied per cluster, it changes those of the task's cluster.

        Args:
            task: name of the task.
            parts: networks it may change, keys of `world_model.PARTS`.
            rank: of the change of each weight matrix.
            alpha: the change is scaled by alpha / rank.

        Raises:
            ValueError: the task is unknown or has an adapter, or a part, rank or alpha is not one to use.
        """
        row = self._known.row(task)
        number = build.copy_of({name: int(column[row]) for name, column in self.table.columns.items()})
        self._adapters.create(task, parts, rank, alpha, number)
        self.actor.refresh()

    @one_at_a_time
    def save_adapter(self, folder: str | Path, task: str) -> None:
        """Write an adapter and what is to be known of its task into a folder.

        Files of the same names are replaced, nothing else in the folder changes. `adapter_config.json` comes last:
        without it the folder is no adapter.

        Raises:
            ValueError: the agent was not loaded from a checkpoint, it has no such adapter, or a checkpoint lies in the
                folder, of whose files some have the same names.
            OSError: the disk is full or not writable; what was there before is still there.
        """
        if self.base is None:
            raise ValueError("an adapter belongs to a saved base: load the agent from a checkpoint before adapting it.")
        row, table, embeddings = self._known.row(task), self.table.to("cpu"), self.embeddings.select([task])
        mean, std = (part if part is None else part[row : row + 1] for part in (table.obs_mean, table.obs_std))
        discount, constraint = float(table.discount[row]), int(table.constraint[row])
        about = store.AdapterTask(self.tasks[task], discount, embeddings, self.base, mean, std, constraint)
        store.write_adapter(folder, self._adapters, task, about)

    def add_adapter(
        self,
        source: str | Path,
        revision: str | None = None,
        subfolder: str = "",
        trainable: bool = False,
    ) -> str:
        """Load an adapter and make its task known. It acts on its own task; all others act as without it.

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
        if about.base != self.base:
            raise ValueError(
                f"the adapter in {source} was trained on the base weights {about.base[:16]}, this agent has "
                f"{(self.base or 'unsaved ones')[:16]}: it would not act as it was trained to. Load the agent it "
                "belongs to, or adapt anew."
            )
        self._put_in_adapter(folder, about, trainable)
        return about.spec.name

    # --- inside ---------------------------------------------------------------------------------------------------

    def _learn_of(self, known: KnownTasks) -> None:
        """Know these tasks and instructions from now on; whatever may be refused was checked before."""
        if self._pixel_encoder:
            self._pixel_encoder.forget(set(self.table.names) - set(known.table.names))
            for name in known.tasks:
                self._pixel_encoder.assign_nearest(name, known.embeddings.nearest)
        if known.tasks is not self.tasks:
            self._said = {}  # what was said may now mean the new task
        self.tasks, self.embeddings, self.actor.table, _ = known
        self.actor.refresh()  # a row may be another's now

    def _with_task(
        self, spec: TaskSpec, embeddings: TaskEmbeddings, discount: float, statistics: tuple[Tensor, Tensor] | None
    ) -> KnownTasks:
        width = observed_width(spec, self.pixel_encoder)
        return self._known.with_task(spec, width, embeddings, discount, statistics, self.model.config)

    @one_at_a_time
    def _put_in_adapter(self, folder: Path, about: store.AdapterTask, trainable: bool) -> None:
        """Put in the adapter that a folder holds, and its task unless that is known."""
        name, more = about.spec.name, None
        if name not in self.tasks:
            mean, std = about.obs_mean, about.obs_std
            statistics = None if mean is None or std is None else (mean, std)
            more = self._with_task(about.spec, about.embeddings, about.discount, statistics)
        self._adapters.load(folder, name, trainable)
        if more:
            self._learn_of(more)
        self.table.constraint[self._known.row(name)] = about.constraint
        self.actor.refresh()
