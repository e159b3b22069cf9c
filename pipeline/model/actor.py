"""Acting in many environments at once: by planning or by the policy alone, each environment with its own task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline import config
from pipeline.config import near
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.planner import plan as make_plan
from pipeline.model.task_table import POLICY, TIED, TaskTable
from pipeline.model.world_model import TaskContext, WorldModel


class Actor:
    """Holds what acting needs between steps: the last plans, whose episode begins, random numbers.

    Call `reset` before the first step, `begin_episodes` after steps that ended episodes, and `refresh` whenever the
    model's weights have changed.

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

    def begin_episodes(self, which: Tensor) -> None:
        """Forget the plans of the environments where `which` (N,) bool is true: their next step is their first."""
        self._is_first |= which.to(self._is_first.device)

    def refresh(self) -> None:
        """Drop what was computed from the weights: they have changed."""
        self._context = None

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
        """Choose one action per environment.

        Args:
            obs: (N, O)
            rows: (N,) rows of the task table.
            plan: by planning, else by the policy alone; for all, or (N,) bool.
            explore: with noise, as in training.
            constraint_weight: in [0, 1], how far a plan starts from the policy's own rollouts, for all or (N,); None
                plans under each task's constraint in the table, which may be the policy's own action.
            envs: (N,) which of the environments these are, where others rest and keep their plans; None for all.

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
        device = self.table.discount.device
        ctx = self._task_context(rows)
        tasks = rows.to(device)
        obs = self.table.normalize(obs.to(device), tasks)
        mask = self.table.action_mask[tasks]
        planned = torch.as_tensor(plan, device=device).expand(len(rows))
        if constraint_weight is None:
            constraint = self.table.constraint[tasks]
            planned, constraint_weight = planned & (constraint != POLICY), (constraint == TIED).float()
        action = torch.zeros_like(mask)
        if planned.any():
            made = make_plan(
                self.model,
                ctx,
                obs,
                self.planner,
                self._prev_mean if envs is None else self._prev_mean[:, envs],
                self._is_first if envs is None else self._is_first[envs],
                self.table.discount[tasks],
                mask,
                self._generator,
                constraint_weight,
                explore,
            )
            action = made.action
            if envs is None:
                self._prev_mean, self._is_first = made.mean, torch.zeros_like(self._is_first)
            else:
                self._prev_mean[:, envs], self._is_first[envs] = made.mean, False
        if not planned.all():
            noise = torch.randn(mask.shape, generator=self._generator).to(device) if explore else None
            own = self.model.policy(self.model.encode(obs, ctx), ctx, mask, noise).action
            action = torch.where(planned.unsqueeze(1), action, own)
        return action.cpu()

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the plans and the random state, for a bit-for-bit resume."""
        return {"prev_mean": self._prev_mean, "is_first": self._is_first, "generator": self._generator.get_state()}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned."""
        device = self.table.discount.device
        self._prev_mean, self._is_first = state["prev_mean"].to(device), state["is_first"].to(device)
        self._generator.set_state(state["generator"])

    def _task_context(self, rows: Tensor) -> TaskContext:
        if self._context is None or self._context_rows is None or not torch.equal(rows, self._context_rows):
            device = self.table.discount.device
            tasks, inverse = torch.unique(rows.to(device), return_inverse=True)
            self._context = self.model.context(self.table.embeddings[tasks, 0], self.compute, target_q=()).take(inverse)
            self._context_rows = rows.clone()
        return self._context
