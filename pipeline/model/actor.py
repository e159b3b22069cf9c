"""Acting in many environments at once: by planning or by the policy alone, each environment with its own task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline import config
from pipeline.config import near
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.density import policy_log_prob
from pipeline.model.planner import plan as make_plan
from pipeline.model.task_table import POLICY, TIED, TaskTable
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.systems.history.past import Past

_PAST_DIMS = (1, 1, 0)  # which dim of each part of a `Past` counts the environments


class Actor:
    """Holds what acting needs between steps: the last plans, whose episode begins, random numbers, the past.

    Call `reset` before the first step, `begin_episodes` after steps that ended episodes, and `refresh` whenever the
    model's weights have changed. A model that sees past steps is shown what `act` was given and has returned since an
    episode began: call it once per step.

    Args:
        model: the world model; several actors may share one.
        table: the tasks rows point into, on the model's device.
        planner: settings.
        compute: how the networks are to be computed.
    """

    def __init__(self, model: WorldModel, table: TaskTable, planner: config.Planner, compute: Compute = PLAIN):
        self.model, self.table, self.planner, self.compute = model, table, planner, compute
        self._generator = torch.Generator()
        self._prev_mean = torch.zeros(planner.horizon, 0, model.config.action_dim)
        self._is_first = torch.ones(0, dtype=torch.bool)
        self._past: Past | None = None  # normalised as the model sees it
        self._context: TaskContext | None = None
        self._context_rows: Tensor | None = None

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
        """Begin an episode in each of `num_envs` environments; what is drawn from here on follows from `seed`."""
        device = self.table.discount.device
        self._generator.manual_seed(seed)
        self._prev_mean = torch.zeros(self.planner.horizon, num_envs, self.model.config.action_dim, device=device)
        self._is_first = torch.ones(num_envs, dtype=torch.bool, device=device)
        sizes = self.model.config
        if sizes.history is not None:
            steps = sizes.history.context, num_envs
            obs, action = (torch.zeros(*steps, width, device=device) for width in (sizes.obs_dim, sizes.action_dim))
            self._past = Past(obs, action, torch.zeros(num_envs, dtype=torch.int64, device=device))

    def begin_episodes(self, which: Tensor) -> None:
        """Forget plans and past of the environments where `which` (N,) bool is true: their next step is their first."""
        self._is_first |= which.to(self._is_first.device)
        if self._past is not None:
            self._past.length.masked_fill_(which.to(self._past.length.device), 0)

    def refresh(self) -> None:
        """Drop what was computed from the weights: they have changed."""
        self._context = None

    def act(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        explore: bool = False,
        constraint_weight: float | Tensor | None = None,
        envs: Tensor | None = None,
    ) -> Tensor:
        """Choose one action per environment.

        Args:
            obs: (N, O)
            rows: (N,) rows of the task table.
            plan: by planning, else by the policy alone; for all, or (N,) bool.
            explore: with noise, as in training.
            constraint_weight: in [0, 1], how far a plan starts from the policy's own rollouts, for all or (N,); None
                plans under each task's constraint in the table, which may be the policy's own action.
            envs: (N,) which of the environments these are, where others rest and keep plans and past; None for all.

        Returns:
            (N, A) in [-1, 1], on the CPU.

        Raises:
            ValueError: not one observation per environment that was reset.
        """
        return self._choose(obs, rows, plan, explore, constraint_weight, envs, False)[0]

    def explore(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        constraint_weight: float | Tensor | None = None,
        envs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose one action per environment with noise, as `act` does, and say how likely each was.

        Returns:
            actions (N, A) and their log-probabilities (N,) under what chose them, plan or policy, on the CPU.
        """
        action, log_prob = self._choose(obs, rows, plan, True, constraint_weight, envs, True)
        assert log_prob is not None
        return action, log_prob

    @torch.no_grad()
    def _choose(
        self,
        obs: Tensor,
        rows: Tensor,
        plan: bool | Tensor,
        explore: bool,
        constraint_weight: float | Tensor | None,
        envs: Tensor | None,
        with_log_prob: bool,
    ) -> tuple[Tensor, Tensor | None]:
        expected = len(self._is_first) if envs is None else len(envs)
        if len(obs) != expected or len(rows) != len(obs):
            raise ValueError(
                f"{len(obs)} observations and {len(rows)} task rows came for {expected} environments: "
                "call `reset` with their number first"
            )
        device = self.table.discount.device
        envs = None if envs is None else envs.to(device)
        is_first, past = _take(self._is_first, 0, envs), self._past_of(envs)
        ctx = self._task_context(rows)
        tasks = rows.to(device)
        obs = self.table.normalize(obs.to(device), tasks)
        mask = self.table.action_mask[tasks]
        planned = torch.as_tensor(plan, device=device).expand(len(rows))
        if constraint_weight is None:
            constraint = self.table.constraint[tasks]
            planned, constraint_weight = planned & (constraint != POLICY), (constraint == TIED).float()
        action, log_prob = torch.zeros_like(mask), None
        if planned.any():
            made = make_plan(
                self.model,
                ctx,
                obs,
                self.planner,
                _take(self._prev_mean, 1, envs),
                is_first,
                self.table.discount[tasks],
                mask,
                self._generator,
                constraint_weight,
                explore,
                past,
                with_log_prob,
            )
            action, log_prob = made.action, made.log_prob
            self._prev_mean = _put(self._prev_mean, 1, envs, made.mean)
            self._is_first = _put(self._is_first, 0, envs, torch.zeros_like(is_first))
        if not planned.all():
            noise = torch.randn(mask.shape, generator=self._generator).to(device) if explore else None
            memory = self.model.remember(past, ctx) if self.model.shared else None
            policy = self.model.policy(self.model.state(obs, ctx, memory), ctx, mask, noise)
            action = torch.where(planned.unsqueeze(1), action, policy.action)
            if with_log_prob:
                own = policy_log_prob(policy, policy.action, mask)
                log_prob = own if log_prob is None else torch.where(planned, log_prob, own)
        self._keep(obs, action, envs)
        return action.cpu(), None if log_prob is None else log_prob.cpu()

    def _past_of(self, envs: Tensor | None) -> Past | None:
        """Return the past of these environments alone."""
        if self._past is None or envs is None:
            return self._past
        return Past(*(_take(part, dim, envs) for part, dim in zip(self._past, _PAST_DIMS, strict=True)))

    def _keep(self, obs: Tensor, action: Tensor, envs: Tensor | None) -> None:
        """Put what was observed (N, O) and done (N, A) at the end of the past of these environments."""
        past = self._past_of(envs)
        if self._past is None or past is None:
            return
        steps = torch.cat([past.obs[1:], obs[None]]), torch.cat([past.action[1:], action[None]])
        moved = Past(*steps, (past.length + 1).clamp(max=len(steps[0])))
        self._past = Past(
            *(_put(whole, dim, envs, part) for whole, dim, part in zip(self._past, _PAST_DIMS, moved, strict=True))
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the plans, the past and the random state, for a bit-for-bit resume."""
        state = {"prev_mean": self._prev_mean, "is_first": self._is_first, "generator": self._generator.get_state()}
        if self._past is not None:
            state |= {f"past_{name}": part for name, part in self._past._asdict().items()}
        return state

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        device = self.table.discount.device
        self._prev_mean, self._is_first = state["prev_mean"].to(device), state["is_first"].to(device)
        if self._past is not None:
            self._past = Past(*(state[f"past_{name}"].to(device, copy=True) for name in Past._fields))
        self._generator.set_state(state["generator"])

    def _task_context(self, rows: Tensor) -> TaskContext:
        if self._context is None or self._context_rows is None or not torch.equal(rows, self._context_rows):
            device = self.table.discount.device
            tasks, inverse = torch.unique(rows.to(device), return_inverse=True)
            told, cluster = self.table.embeddings[tasks, 0], self.table.cluster[tasks]
            self._context = self.model.context(told, self.compute, target_q=(), cluster=cluster).take(inverse)
            self._context_rows = rows.clone()
        return self._context


def _take(whole: Tensor, dim: int, envs: Tensor | None) -> Tensor:
    """Return what belongs to some environments, which `dim` counts; None for all."""
    return whole if envs is None else whole.index_select(dim, envs)


def _put(whole: Tensor, dim: int, envs: Tensor | None, part: Tensor) -> Tensor:
    """Return `whole` with what belongs to some environments replaced by `part`; it is left as it was."""
    return part if envs is None else whole.index_copy(dim, envs, part)
