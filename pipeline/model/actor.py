"""Acting in many environments at once: by planning or by the policy alone, each environment with its own task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.config import near
from pipeline.model import products
from pipeline.model.device import restore, to_device
from pipeline.model.graphs import Graphs
from pipeline.model.math import Policy
from pipeline.model.planner import Plan, PlanDraws
from pipeline.model.planner import plan as make_plan
from pipeline.model.task_table import POLICY, TIED, TaskTable
from pipeline.model.world_model import TaskContext, WorldModel

if TYPE_CHECKING:
    from pipeline.adapters import Adapters

_PLAN_DIMS = (0, 1, 1, 1, 1)  # the dim of environments in each part of a `Plan`


class _Given(NamedTuple):
    """What a plan is made from, beside the tasks; `planner.plan` says what each is."""

    obs: Tensor
    prev_mean: Tensor
    is_first: Tensor
    draws: PlanDraws
    weight: float | Tensor
    past: Any


class Actor:
    """Chooses actions; keeps the last plans (warm starts), which episodes have just begun, and the random state.

    Call `reset` before the first step, `begin_episodes` after steps that ended episodes, and `refresh` whenever the
    model's weights have changed.

    Args:
        model: the world model; several actors may share one.
        table: the task table, on the model's device.
        planner: settings.
        mode: library and precision of matrix products.
        adapters: low-rank adapters of the model; each is used for the task of its name, other tasks use none.
        graphs: runs whole plans, on a GPU by CUDA graphs; None runs them as they are.

    Attributes:
        columns: values (N,) of a subclass for each action of the last step, by name; the replay can store them.
        intended: (N, A) the actions of the last step without the noise of exploring.
    """

    # The state tensors with a row per environment, and which of their dims counts environments.
    ENV_DIMS: ClassVar[dict[str, int]] = {"is_first": 0, "prev_mean": 1}

    def __init__(
        self,
        model: WorldModel,
        table: TaskTable,
        planner: config.Planner,
        mode: products.Mode = "torch",
        adapters: Adapters | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.model, self.table, self.planner, self.adapters, self.graphs = model, table, planner, adapters, graphs
        self.mode: products.Mode = mode
        self.columns: dict[str, Tensor] = {}
        self.intended = torch.zeros(0, model.config.action_dim)
        # Noise is drawn where it is used; Q members by the processor, which has to know them.
        self._generator = torch.Generator(self.device)
        self._members = self._generator if self.device.type == "cpu" else torch.Generator()
        self._prev_mean = torch.zeros(planner.horizon, 0, model.config.action_dim)
        self._is_first = torch.ones(0, dtype=torch.bool)
        self._contexts: dict[
            str | None, tuple[tuple[int, ...], TaskContext]
        ] = {}  # by adapter: of which rows, and that

    @property
    def device(self) -> torch.device:
        """Where the tasks and the model are."""
        return self.table.discount.device

    def rows(self, names: Sequence[str]) -> Tensor:
        """Return the rows (N,) of the named tasks.

        Raises:
            ValueError: a task is not in the table.
        """
        for name in names:
            if name not in self.table.names:
                known = ", ".join(self.table.names)
                raise ValueError(
                    f"this checkpoint does not know the task {name!r}.{near(name, list(self.table.names))} "
                    f"It knows: {known}."
                )
        return torch.tensor([self.table.names.index(name) for name in names])

    def reset(self, num_envs: int, seed: int) -> None:
        """Begin an episode in each of `num_envs` environments, and seed the random numbers."""
        self._generator.manual_seed(seed)
        self._members.manual_seed(seed)
        shape = self.planner.horizon, num_envs, self.model.config.action_dim
        self._prev_mean = torch.zeros(shape, dtype=self.table.discount.dtype, device=self.device)
        self._is_first = torch.ones(num_envs, dtype=torch.bool, device=self.device)

    def begin_episodes(self, which: Tensor) -> None:
        """Forget the plans of the environments where `which` (N,) bool is true: their next step is their first."""
        self._is_first |= to_device(which, self.device)

    def refresh(self) -> None:
        """Drop what was computed from weights or tasks that have changed."""
        self._contexts = {}

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        explore: bool = False,
        constraint_weight: float | Tensor | None = None,
        envs: Tensor | None = None,
    ) -> Tensor:
        """Choose one action per environment. Those whose tasks have the same adapter, or none, are computed together.

        The latter act as if no adapter were there, to the bit, whichever are among the others.

        Args:
            obs: (N, O)
            rows: (N,) rows of the task table.
            plan: plan, else use the policy alone; for all, or (N,) bool.
            explore: with noise, as in training.
            constraint_weight: in [0, 1], weight of the policy rollouts in a plan's first mean and std, for all or
                (N,); None takes each task's constraint from the table, which may turn planning off.
            envs: (N,) indices of these environments, where others are paused and keep their plans; None for all.

        Returns:
            (N, A) in [-1, 1], on the CPU.

        Raises:
            ValueError: not one observation per environment that was reset.
        """
        expected = len(self._is_first) if envs is None else len(envs)
        if len(obs) != expected or len(rows) != len(obs):
            raise ValueError(
                f"{len(obs)} observations and {len(rows)} task rows came for {expected} environments: "
                "call `reset` with their number first"
            )
        groups = self._by_adapter(rows)
        if len(groups) == 1:
            return self._act_with(next(iter(groups)), obs, rows, plan, explore, constraint_weight, envs)
        every, generators = torch.arange(len(rows)) if envs is None else envs, (self._generator, self._members)
        action, columns = torch.zeros(len(rows), self.model.config.action_dim, dtype=self.table.discount.dtype), {}
        intended = torch.zeros_like(action)
        if (bare := groups.pop(None, None)) is not None:
            # The bare model acts in all of them: in its own it acts, to the bit, as if there were no adapters.
            before = self.state_tensors()
            action = self._act_with(None, obs, rows, plan, explore, constraint_weight, envs)
            intended, columns = self.intended.clone(), self.columns
            mask = torch.ones(len(rows), dtype=torch.bool).index_fill(0, bare, value=False)
            self._generator, self._members = self._take_back(before, every[mask.to(every.device)])
        try:
            for adapter, part in groups.items():
                planned, weight, these = _take(plan, part), _take(constraint_weight, part), _take(every, part)
                action[part] = self._act_with(adapter, obs[part], rows[part], planned, explore, weight, these)
                intended[part] = self.intended
                for name, values in self.columns.items():
                    columns.setdefault(name, values.new_zeros(len(rows)))[part] = values
        finally:
            self._generator, self._members = generators
        self.columns, self.intended = columns, intended
        return action

    def _take_back(self, before: dict[str, Tensor], envs: Tensor) -> tuple[torch.Generator, torch.Generator]:
        """Undo the step that was just made in these environments; return generators to make another one with.

        What they draw follows from the actor's own, which do not move.
        """
        after, envs = self.state_tensors(), envs.to(self.device)
        for name, dim in self.ENV_DIMS.items():
            after[name] = after[name].index_copy(dim, envs, before[name].index_select(dim, envs))
        self.load_state_tensors(after)
        generator = torch.Generator(self.device)
        generator.set_state(after["generator"])
        seed = int(torch.randint(2**62, (), generator=generator, device=self.device))
        generator.manual_seed(seed)
        return generator, generator if self._members is self._generator else torch.Generator().manual_seed(seed)

    def act_finite(self, obs: Tensor, rows: Tensor, plan: bool, explore: bool) -> Tensor:
        """Choose actions as `act` does; a step with numbers that are not finite is refused, and nothing of it kept.

        Raises:
            ValueError: the observations (N, O) are too large for the model, or its weights are not finite.
        """
        before = self.state_tensors()
        action = self.act(obs, rows, plan, explore)
        after = (action, *self.state_tensors().values())
        if not all(tensor.isfinite().all() for tensor in after if tensor.is_floating_point()):
            self.load_state_tensors(before)
            raise ValueError(
                f"the model computes numbers that are not finite from `obs`, whose values reach "
                f"{float(obs.abs().max()):.0e}. Give observations in the units of the task's environment; if they are, "
                "the weights of this model are no good."
            )
        return action

    def _act_with(
        self,
        adapter: str | None,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        explore: bool,
        constraint_weight: float | Tensor | None,
        envs: Tensor | None,
    ) -> Tensor:
        """Choose one action per environment, by one adapter or none; as `act`."""
        obs, envs = to_device(obs, self.device), None if envs is None else to_device(envs, self.device)
        with products.use(self.mode), self._acting(adapter):
            ctx = self._task_context(rows, adapter)
            # Who plans is decided in the processor's memory: a mask on a GPU would have to be waited for.
            planned = np.broadcast_to(torch.as_tensor(plan).cpu().numpy(), len(rows))
            if constraint_weight is None:
                constraint = self.table.constraint.numpy()[rows.cpu().numpy()]
                planned, constraint_weight = planned & (constraint != POLICY), torch.from_numpy(constraint == TIED)
            made, policy = None, None
            if planned.any():
                made = self._plan(ctx, obs, planned, constraint_weight, explore, envs, rows, adapter)
            if not planned.all():
                policy = self._policy(ctx, obs, explore, envs)
            which = to_device(torch.from_numpy(planned.copy()), self.device)
            action, intended = _chosen(which, made, policy)
            self.acted(obs, action, envs, ctx, which, made, policy, explore)
        action, self.intended = torch.stack([action, intended]).cpu().unbind()  # what is waited for, once
        return action

    def _by_adapter(self, rows: Tensor) -> dict[str | None, Tensor]:
        """Return the adapters of these tasks, None for none, and which of the rows each is for."""
        names = self.adapters.names if self.adapters else ()
        if not names:
            return {None: torch.arange(len(rows))}
        tasks = (self.table.names[row] for row in rows.tolist())
        needed = [task if task in names else None for task in tasks]
        which = {adapter: [one == adapter for one in needed] for adapter in needed or [None]}
        return {adapter: torch.tensor(mask).nonzero().flatten() for adapter, mask in which.items()}

    def _acting(self, adapter: str | None) -> AbstractContextManager[None]:
        """Activate an adapter, or none, within the context."""
        return self.adapters.acting(adapter) if self.adapters and self.adapters.names else nullcontext()

    def _plan(
        self,
        ctx: TaskContext,
        obs: Tensor,
        planned: np.ndarray,
        constraint_weight: float | Tensor,
        explore: bool,
        envs: Tensor | None,
        rows: Tensor,
        adapter: str | None,
    ) -> Plan:
        """Plan for those of these environments that do, from their last plans, and keep the new ones.

        In the plan that is returned, the others' actions and weights are 0.
        """
        if not planned.all():
            chosen = np.flatnonzero(planned)
            some = to_device(torch.from_numpy(chosen), self.device)
            weight = _take(constraint_weight, torch.from_numpy(chosen))
            these = some if envs is None else envs.index_select(0, some)
            part = ctx.take(some), obs.index_select(0, some), planned[chosen], weight
            made = self._plan(*part, explore, these, rows[torch.from_numpy(chosen)], adapter)
            parts = zip(made, _PLAN_DIMS, strict=True)
            return Plan(*(_spread(part, len(planned), some, dim) for part, dim in parts))
        prev_mean, is_first = take_envs(self._prev_mean, 1, envs), take_envs(self._is_first, 0, envs)
        if isinstance(constraint_weight, Tensor):
            constraint_weight = to_device(constraint_weight.to(prev_mean.dtype), self.device)
        sizes, past = self.model.config, self.past(envs)
        num = len(obs) if past is not None else self._rounded(len(obs))
        draws = PlanDraws.sample(self.planner, num, sizes.action_dim, sizes.num_q, self._generator, self._members)
        given = _Given(obs, prev_mean, is_first, draws.to(self.device), constraint_weight, past)
        made = self._by_graph(rows, adapter, explore, given) if self.graphs else self._made(ctx, explore, given)
        self._prev_mean = put_envs(self._prev_mean, 1, envs, made.mean)
        self._is_first = put_envs(self._is_first, 0, envs, torch.zeros_like(is_first))
        return made

    def _made(self, ctx: TaskContext, explore: bool, given: _Given) -> Plan:
        obs, prev_mean, is_first, draws, weight, past = given
        return make_plan(self.model, ctx, obs, self.planner, prev_mean, is_first, draws, weight, explore, past)

    def _by_graph(self, rows: Tensor, adapter: str | None, explore: bool, given: _Given) -> Plan:
        """Plan by a graph, which computes the context too: it reads the weights as they are when it runs."""
        assert self.graphs is not None
        obs, prev_mean, is_first, draws, weight, past = given
        weight = weight if isinstance(weight, Tensor) and weight.ndim else obs.new_full((len(obs),), float(weight))
        num, more = len(obs), draws.explore_noise.shape[0] - len(obs)  # those added are planned for in vain
        parts = (to_device(rows, self.device), obs, prev_mean, is_first, weight)
        rows, obs, prev_mean, is_first, weight = (
            (
                torch.cat([part, part.narrow(dim, 0, 1).expand(*part.shape[:dim], more, *part.shape[dim + 1 :])], dim)
                for part, dim in zip(parts, (0, 0, 1, 0, 0), strict=True)
            )
            if more
            else parts
        )

        def whole(rows: Tensor, *parts: Any) -> Plan:
            with torch.no_grad():
                return self._made(self.model.context(self.table, rows, target_q=()), explore, _Given(*parts))

        reads = (*self.model.parameters(), *self.model.buffers(), *self.table.network_inputs())
        padded = rows, obs, prev_mean, is_first, draws.indexed(), weight, past
        found = self.graphs.run((adapter, explore, self.mode), whole, padded, reads)
        return Plan(*(part.narrow(dim, 0, num) for part, dim in zip(found, _PLAN_DIMS, strict=True)))

    def _rounded(self, num: int) -> int:
        """Return for how many environments to plan where it is for `num`: by graphs, one of four sizes of batches."""
        quarter = -(-len(self._is_first) // 4)
        return num if self.graphs is None else -(-num // quarter) * quarter

    def _policy(self, ctx: TaskContext, obs: Tensor, explore: bool, envs: Tensor | None) -> Policy:
        noise, shape, kind = None, ctx.action_mask.shape, ctx.action_mask.dtype
        if explore:
            noise = torch.randn(shape, generator=self._generator, dtype=kind, device=self.device)
        return self.model.policy(self.policy_input(obs, ctx, envs), ctx, noise)

    def policy_input(self, obs: Tensor, ctx: TaskContext, envs: Tensor | None) -> Tensor:
        """Return z, the policy's input, at observations (N, O) of these environments."""
        return self.model.begin(obs, ctx, self.past(envs))[0]

    def past(self, envs: Tensor | None) -> Any:
        """Return the earlier steps of these episodes, for a model that reads them; here none."""
        return None

    def acted(
        self,
        obs: Tensor,
        action: Tensor,
        envs: Tensor | None,
        ctx: TaskContext,
        planned: Tensor,
        plan: Plan | None,
        policy: Policy | None,
        explore: bool,
    ) -> None:
        """Called after each step with observations, actions and the plan or policy they came from; for subclasses."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the plans and the random state, for a bit-for-bit resume."""
        own = {"prev_mean": self._prev_mean, "is_first": self._is_first, "generator": self._generator.get_state()}
        return own if self._members is self._generator else own | {"members": self._members.get_state()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        self._prev_mean, self._is_first = state["prev_mean"].to(self.device), state["is_first"].to(self.device)
        restore(self._generator, state["generator"])
        if self._members is not self._generator:
            restore(self._members, state.get("members", state["generator"]))

    def _task_context(self, rows: Tensor, adapter: str | None) -> TaskContext:
        wanted = tuple(rows.tolist())
        if adapter not in self._contexts or self._contexts[adapter][0] != wanted:
            made = self.model.context(self.table, to_device(rows, self.device), target_q=())
            self._contexts[adapter] = wanted, made
        return self._contexts[adapter][1]


def _take(value: float | Tensor | None, part: Tensor) -> Any:
    """Select environments of what is one value for all, or (N,)."""
    return value[part.to(value.device)] if isinstance(value, Tensor) and value.ndim else value


def take_envs(whole: Tensor, dim: int, envs: Tensor | None) -> Tensor:
    """Select environments `envs` along `dim`; None for all."""
    return whole if envs is None else whole.index_select(dim, envs)


def put_envs(whole: Tensor, dim: int, envs: Tensor | None, part: Tensor) -> Tensor:
    """Return a copy of `whole` with the values of environments `envs` along `dim` replaced by `part`."""
    return part if envs is None else whole.index_copy(dim, envs, part)


def _chosen(planned: Tensor, plan: Plan | None, policy: Policy | None) -> tuple[Tensor, Tensor]:
    """Return the action (N, A) of the plan where `planned` (N,), else the policy's; and the same without noise."""
    if policy is None:
        assert plan is not None  # each environment acts by one of them
        return plan.action, plan.mean[0]
    alone = policy.mean.tanh()
    if plan is None:
        return policy.action, alone
    which = planned.unsqueeze(1)
    return torch.where(which, plan.action, policy.action), torch.where(which, plan.mean[0], alone)


def _spread(part: Tensor, num: int, rows: Tensor, dim: int) -> Tensor:
    """Return a tensor with `num` environments along `dim`, those of `rows` taken from `part`, the others 0."""
    shape = list(part.shape)
    shape[dim] = num
    return part.new_zeros(shape).index_copy(dim, rows, part)
