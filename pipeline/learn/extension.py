"""What another system may add to learning: one protocol of hooks, and the list of extensions of a run.

Newt is the core and uses none: its list is empty. Every hook is optional and does nothing by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.learn.learner import Learner
    from pipeline.learn.replay import ReplayBuffer
    from pipeline.shapes import Batch

Metrics = dict[str, Tensor]


class Described(NamedTuple):
    """What to log and show of averaged metrics that are vectors or matrices."""

    metrics: Mapping[str, float]
    tables: Mapping[str, Any]  # by name, numbers by row name
    lines: Sequence[str]


class Extension:
    """One system's part in learning.

    Attributes:
        name: prefix of the tensors it saves.
        acts_on_policy: the policy is trained by `phase` and not in the update, and updates are made after a phase.
        plans: whether episodes are collected by planning; else by the policy alone.
        pauses: it may let tasks rest.
        weighs: it weighs slices in `weigh`, so the model's losses are computed per slice.
    """

    name = ""
    acts_on_policy = False
    plans = True
    pauses = False
    weighs = False

    # --- one update ---------------------------------------------------------------------------------------------------

    def attach(self, learner: Learner) -> None:
        """Called once, when the learner is made."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameters of its own, as groups of the model's optimiser with their `lr_scale`."""
        return []

    def named_parameters(self) -> dict[str, Any]:
        """Return the same parameters by name: they are saved with the learner."""
        return {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which a loss is computed: networks may record something there that the loss hooks then read."""
        yield

    def weigh(self, per_slice: Tensor, batch: Batch) -> Tensor | None:
        """Reduce the model's losses per slice (B,) to one number; None takes their mean."""
        return None

    def model_loss(self, z: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor | None, Metrics]:
        """Return a loss that is added to the model's, and metrics.

        Args:
            z: (T, B, Z) latents that the dynamics predict after each step, with gradient.
            batch: slices.
            weights: (T,) rho^t, normalised.
        """
        return None, {}

    def policy_loss(self, batch: Any) -> tuple[Tensor | None, Metrics]:
        """Return a loss that is added to the policy's, and metrics; `batch.task` (B,) has the task of each row."""
        return None, {}

    def after_update(self) -> list[str]:
        """Called after each update; returns lines to be shown."""
        return []

    def before_update(self, batch_size: int) -> list[str]:
        """Called before each update on demonstrations alone, with this rank's slices; returns lines to be shown."""
        return []

    # --- a run --------------------------------------------------------------------------------------------------------

    def start(self, generator: torch.Generator) -> None:
        """Called once, when a run is made; draw random numbers from its generator, which is saved."""

    def summary(self) -> dict[str, Any]:
        """Return what it adds to summary.json at the end of a run."""
        return {}

    def phase(self, replay: ReplayBuffer, before: int, now: int, total: int) -> bool:
        """Called after each environment step where `acts_on_policy`; return whether the policy was trained."""
        return False

    def on_evaluation(self, scores: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Called with the scores by task, equal on every rank; returns metrics and lines to be shown."""
        return {}, []

    def plays(self, task: str) -> bool:
        """Whether a task is played; one that is not keeps its environments in the middle of their episodes."""
        return True

    def metrics(self) -> dict[str, float]:
        """Return what is logged with the averages."""
        return {}

    def describe(self, averages: Mapping[str, Any], names: Sequence[str]) -> Described:
        """Turn its metrics that are vectors or matrices, averaged, into what is logged; called on rank 0.

        Args:
            averages: arrays by name, of all extensions.
            names: of the task table.
        """
        return Described({}, {}, [])

    def read_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Called once on rank 0 with the rows logged before a resume; there are none in a new run."""

    # --- saving -------------------------------------------------------------------------------------------------------

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state that is equal on all ranks and needed to resume bit for bit."""
        return {}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; called before the weights are loaded."""

    def rank_state_tensors(self) -> dict[str, Tensor]:
        """Return the state that differs between ranks."""
        return {}

    def load_rank_state_tensors(self, state: dict[str, Tensor] | None, replay: ReplayBuffer) -> None:
        """Take over what `rank_state_tensors` returned; None if the number of ranks has changed."""


class Extensions(list[Extension]):
    """The extensions of a run; each method calls that hook of all of them and joins the results."""

    @property
    def acts_on_policy(self) -> bool:
        """Whether one of them trains the policy."""
        return any(one.acts_on_policy for one in self)

    @property
    def plans(self) -> bool:
        """Whether episodes are collected by planning."""
        return all(one.plans for one in self)

    @property
    def pauses(self) -> bool:
        """Whether one of them may let tasks rest."""
        return any(one.pauses for one in self)

    def phase(self, replay: ReplayBuffer, before: int, now: int, total: int) -> bool:
        """Let each train the policy if it is time for that; return whether one did."""
        trained = [one.phase(replay, before, now, total) for one in self]
        return any(trained)

    @property
    def weighs(self) -> bool:
        """Whether one of them weighs slices."""
        return any(one.weighs for one in self)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Enter `recording` of all of them."""
        with ExitStack() as stack:
            for one in self:
                stack.enter_context(one.recording())
            yield

    def weigh(self, per_slice: Tensor, batch: Batch) -> Tensor:
        """Reduce losses per slice (B,) to one number: by the first extension that weighs, else their mean."""
        weighed = (one.weigh(per_slice, batch) for one in self)
        return next((total for total in weighed if total is not None), per_slice.mean())

    def losses(self, total: Tensor, found: Iterator[tuple[Tensor | None, Metrics]]) -> tuple[Tensor, Metrics]:
        """Add the extensions' losses to `total`, and collect their metrics."""
        metrics: Metrics = {}
        for loss, more in found:
            total, metrics = total if loss is None else total + loss, metrics | more
        return total, metrics

    def plays(self, task: str) -> bool:
        """Whether a task is played: no extension pauses it."""
        return all(one.plays(task) for one in self)

    def lines(self, hook: str, *args: Any) -> list[str]:
        """Call a hook that returns lines to be shown on all of them."""
        return [line for one in self for line in getattr(one, hook)(*args)]

    def on_evaluation(self, scores: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Pass on the scores of an evaluation."""
        found = [one.on_evaluation(scores) for one in self]
        return {k: v for more, _ in found for k, v in more.items()}, [line for _, lines in found for line in lines]

    def metrics(self) -> dict[str, float]:
        """Return what is logged with the averages."""
        return {name: value for one in self for name, value in one.metrics().items()}

    def describe(self, averages: Mapping[str, Any], names: Sequence[str]) -> Described:
        """Collect what is to be logged of averages that are no single numbers."""
        parts = [one.describe(averages, names) for one in self]
        metrics = {name: value for part in parts for name, value in part.metrics.items()}
        tables = {name: table for part in parts for name, table in part.tables.items()}
        return Described(metrics, tables, [line for part in parts for line in part.lines])

    def read_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show what was logged before."""
        for one in self:
            one.read_log(rows)

    def state_tensors(self, of_rank: bool = False) -> dict[str, Tensor]:
        """Return the state of all of them, their names in front."""
        return {
            f"{one.name}.{key}": value
            for one in self
            for key, value in (one.rank_state_tensors() if of_rank else one.state_tensors()).items()
        }

    def own(self, one: Extension, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of a saved state that belongs to one of them."""
        prefix = f"{one.name}."
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
