"""One update: losses, gradients (averaged over processes), clipping, Adam, target Q, value scale."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.config import Clusters, Learning
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.q_ensemble import polyak_update
from pipeline.model.scale import RunningScale
from pipeline.model.scaling import Stages
from pipeline.model.task_table import TaskTable
from pipeline.model.task_terms import TaskTerms
from pipeline.model.world_model import WorldModel
from pipeline.run.ranks import Ranks
from pipeline.shapes import Batch
from pipeline.train import schedules
from pipeline.train.expert_use import PREFIX, count_use
from pipeline.train.objective import UpdateDraws, model_losses, policy_losses

Mode = Literal["pretrain", "online"]

_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_TERMS = "tasks."  # before the names of what is learned of the tasks, in a saved state


class Learner:
    """Owns what learning changes: the model, both optimisers, the value scale, the count of updates.

    Parameters with `requires_grad` are trained, all others stay as they are: with low-rank adapters injected and the
    base frozen, the adapters alone move. Put adapters in (and call `model.sync_target()`) before making a learner.

    Args:
        model: the world model, on its device.
        table: the tasks that batches point into, on the same device.
        learning: coefficients and optimiser settings.
        warmup_updates: linear warm-up of the learning rates.
        ranks: the processes that gradients are averaged over; None for one.
        compute: how the losses are to be computed.
        accumulate: pieces that a batch is computed in, one after the other, for one update: the same update in less
            memory.
        clusters: what `split` will give each cluster of tasks; None where all share everything, or are split already.
        stages: of the model, where capacity grows as it learns; `enter_stage` moves on.

    Raises:
        ValueError: the table does not fit the model, or no parameter is trainable.
    """

    def __init__(
        self,
        model: WorldModel,
        table: TaskTable,
        learning: Learning,
        warmup_updates: int = 0,
        ranks: Ranks | None = None,
        compute: Compute = PLAIN,
        accumulate: int = 1,
        clusters: Clusters | None = None,
        stages: Stages | None = None,
    ):
        sizes = (table.embeddings.shape[2], table.action_mask.shape[1])
        if sizes != (model.config.task_dim, model.config.action_dim):
            raise ValueError(
                f"the task table is for task_dim {sizes[0]} and action_dim {sizes[1]}, the model for "
                f"{model.config.task_dim} and {model.config.action_dim}: run `dvc repro embed`, or set model.task_dim "
                "to the encoder's width and model.action_dim to the widest action"
            )
        self.model, self.table, self.learning = model, table, learning
        self.warmup_updates, self.compute = warmup_updates, compute
        self._ranks, self._accumulate = ranks or Ranks(), accumulate
        self.clusters, self.stages = clusters, stages
        self.updates = 0
        self.climb: Tensor | None = None  # (n,) weight of the value in each task's policy loss; None is 1 for all
        self.lr_scale = 1.0  # of both optimisers, for a phase that learns more slowly
        self.scale = RunningScale(learning.tau, model.bins.device)
        self.terms = TaskTerms(len(table.names), model.config.latent_dim, learning).to(model.bins.device)
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        """Make optimisers of the parameters that have `requires_grad` now."""
        model, learning = self.model, self.learning
        heads = [model.dynamics, model.reward_head, model.q_heads]
        heads += [] if model.termination_head is None else [model.termination_head]
        encoder, policy = _trainable(model.encoder), _trainable(model.policy_head)
        world = [parameter for head in heads for parameter in _trainable(head)]
        self._trained = {"pretrain": encoder + world + policy, "online": encoder + world}
        self._policy = policy
        if not self._trained["pretrain"]:
            raise ValueError("no parameter of the model has requires_grad: nothing would be learned")
        # The policy is among the model's parameters because pretraining trains it as part of the model's loss; in
        # online learning it gets no gradient there, and its own optimiser moves it.
        groups = [
            {"params": encoder, "lr_scale": learning.encoder_lr_scale},
            {"params": world + policy, "lr_scale": 1.0},
        ]
        # What is learned of the tasks moves with the model, in both modes.
        groups += self.terms.groups()
        terms = list(self.terms.parameters())
        self._trained = {mode: parameters + terms for mode, parameters in self._trained.items()}
        self._model_optimizer = torch.optim.Adam(groups, lr=learning.lr, fused=True)
        self._policy_optimizer = torch.optim.Adam(
            [{"params": policy, "lr_scale": 1.0}], lr=learning.lr, eps=1e-5, fused=True
        )

    def split(self, cluster: Tensor, num: int) -> None:
        """Give every cluster of tasks its own copy of the networks `clusters` names, Adam's moments included.

        Args:
            cluster: (n,) int64 in [0, num), of the table's tasks. It is written into the table, which actors share.
            num: clusters.
        """
        assert self.clusters is not None
        moments = self._model_optimizer.state, self._policy_optimizer.state
        origins = self.model.split(replace(self.clusters, num=num))
        self._make_optimizers()
        for before, optimizer in zip(moments, (self._model_optimizer, self._policy_optimizer), strict=True):
            parameters: list[nn.Parameter] = [one for group in optimizer.param_groups for one in group["params"]]
            for parameter in parameters:
                found = before.get(origins.get(parameter, parameter), {})  # none where it had not been moved yet
                if found:
                    optimizer.state[parameter] = {part: value.clone() for part, value in found.items()}
        self.table.cluster.copy_(cluster)

    def gradient(self, batch: Batch, draws: UpdateDraws, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Return the gradient of pretraining's loss, averaged over processes; nothing is changed.

        Args:
            batch: slices, on the model's device; this process's share of the whole batch.
            draws: random numbers.
            parameters: what it is taken by.
        """
        batch = batch._replace(obs=self.table.normalize(batch.obs, batch.task))
        with self._precision():
            loss = model_losses(
                self.model, self.table, batch, draws, self.learning, self.learning.bc_coef, self.compute
            ).total
        found = torch.autograd.grad(loss, list(parameters), materialize_grads=True)
        mean = self._ranks.weighted_mean(torch.cat([part.flatten() for part in found]), len(batch.task))
        pieces = mean.split([parameter.numel() for parameter in parameters])
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]

    def update(self, batch: Batch, mode: Mode, draws: UpdateDraws | torch.Generator) -> dict[str, Tensor]:
        """Learn from one batch of slices.

        Args:
            batch: slices, on the model's device; this process's share of the whole batch.
            mode: "pretrain" imitates the expert within the model's loss; "online" trains the policy on its own, unless
                `learning.clipped` leaves it to `improve_policy`.
            draws: the update's random numbers, or the generator to draw them from.

        Returns:
            metrics, as detached tensors of one element: turning them into numbers is left to whoever logs. For a
            model with experts also `experts/<layer>`, what `count_use` returns.

        Raises:
            ValueError: `batch.task` points outside the table.
            FloatingPointError: a loss or gradient is not finite; nothing was changed.
        """
        self.table.check(batch.task)
        batch = self._prepare(batch)
        if isinstance(draws, torch.Generator):
            draws = UpdateDraws.sample(batch, self.table.num_phrasings, self.model.config.num_q, draws)
        bc_coef = self.learning.bc_coef if mode == "pretrain" else self.learning.online_bc_coef
        pieces = _split(batch, draws, self._accumulate)
        zs: list[Tensor] = []

        def model_loss(piece: int) -> tuple[Tensor, dict[str, Tensor]]:
            found = model_losses(
                self.model, self.table, *pieces[piece], self.learning, bc_coef, self.compute, self.terms
            )
            zs.append(found.z)
            shown = ("total", "consistency", "reward", "value")
            metrics = {f"{part}_loss": getattr(found, part).detach() for part in shown}
            if found.termination is not None:
                metrics["termination_loss"] = found.termination.detach()
            if found.task_id is not None and found.task_id_accuracy is not None:
                metrics |= {"task_id_loss": found.task_id.detach(), "task_id_accuracy": found.task_id_accuracy}
            if found.balance is not None:
                metrics |= {"balance_loss": found.balance.detach()} | self._count_use(found.chosen, pieces[piece][0])
            if found.bc is not None and found.imitation is not None:
                metrics |= {"bc_loss": found.bc.detach(), "imitation_error": found.imitation.detach()}
            return found.total, metrics

        batches = [piece for piece, _ in pieces]
        metrics, norm = self._descend(self._model_optimizer, self._trained[mode], model_loss, batches)
        metrics["grad_norm"] = norm
        polyak_update(self.model.target_q_heads, self.model.q_heads, self.learning.tau, self.stages is not None)
        if mode == "online" and self._policy and self.learning.clipped is None:
            metrics |= self._update_policy(pieces, zs)
        self.updates += 1
        return metrics

    def enter_stage(self, stage: int) -> None:
        """Let the model's stage begin: what goes on being trained keeps its moments, what is frozen loses them.

        Raises:
            ValueError: the model has no stages, or not this one.
        """
        if self.stages is None:
            raise ValueError("this model has no stages: see finetune.scaling")
        self.stages.enter(stage)
        for optimizer in (self._model_optimizer, self._policy_optimizer):
            optimizer.zero_grad(set_to_none=True)  # of what is frozen, nobody else would
        before = [dict(self._model_optimizer.state), dict(self._policy_optimizer.state)]
        self._make_optimizers()
        for optimizer, moments in zip((self._model_optimizer, self._policy_optimizer), before, strict=True):
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            optimizer.state.update({parameter: moments[parameter] for parameter in trained if parameter in moments})

    def _prepare(self, batch: Batch) -> Batch:
        """Normalise what was observed; refuse slices without the past that the model is to see."""
        obs, past = self.table.normalize(batch.obs, batch.task), batch.past
        if self.model.config.history is None:
            return batch._replace(obs=obs)
        if past is None:
            raise ValueError(
                "the model sees past steps (model.history), but the batch holds none: sample it from a replay made "
                "with `context` set to model.history.context"
            )
        return batch._replace(obs=obs, past=past._replace(obs=self.table.normalize(past.obs, batch.task)))

    def _update_policy(self, pieces: list[tuple[Batch, UpdateDraws]], zs: list[Tensor]) -> dict[str, Tensor]:
        values: list[Tensor] = []

        def policy_loss(piece: int) -> tuple[Tensor, dict[str, Tensor]]:
            batch, draws = pieces[piece]
            own = self.model, self.table, batch, zs[piece], draws, self.learning, self.scale.value, self.compute
            loss = policy_losses(*own, None if self.climb is None else self.climb[batch.task])
            values.append(loss.q)
            use = self._count_use(loss.chosen, batch)
            if loss.balance is not None:
                use["policy_balance_loss"] = loss.balance.detach()
            return loss.total, use | {
                "policy_loss": loss.total.detach(),
                "imitation_error": loss.imitation.detach(),
                "policy_entropy": loss.entropy,
                "policy_q": loss.q.mean(),
            }

        batches = [piece for piece, _ in pieces]
        metrics, norm = self._descend(self._policy_optimizer, self._policy, policy_loss, batches)
        self.scale.update(self._ranks.gather(torch.cat(values)))
        return metrics | {"policy_grad_norm": norm, "value_scale": self.scale.value.clone()}

    @property
    def trains_policy(self) -> bool:
        """Whether anything of the policy can be trained."""
        return bool(self._policy)

    def improve_policy(
        self, loss_of: Callable[[], tuple[Tensor, dict[str, Tensor]]], task: Tensor
    ) -> dict[str, Tensor]:
        """Take one step of the policy alone on a loss of the caller's.

        Args:
            loss_of: computes the loss, a mean over steps, and its metrics.
            task: (n,) rows of the table of this rank's steps, n weighing its gradient among the ranks; may be empty.

        Returns:
            the metrics, and the gradient norm before clipping.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; nothing was changed.
        """
        metrics, norm = self._descend(self._policy_optimizer, self._policy, lambda piece: loss_of(), [task])
        return metrics | {"policy_grad_norm": norm}

    def _count_use(self, chosen: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        experts = self.model.config.experts
        return {} if experts is None else count_use(chosen, batch.task, len(self.table.names), experts.num)

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        loss_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]],
        pieces: Sequence[Batch] | Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take one step on exactly `parameters`.

        Args:
            optimizer: of the parameters.
            parameters: those that move.
            loss_of: computes the loss of one piece of the batch, and its metrics.
            pieces: of this process's batch, or the tasks of what else is learned from.

        Returns:
            the metrics, averaged over pieces, and the gradient norm before clipping.
        """
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            share = schedules.warmup(self.updates, self.warmup_updates)
            group["lr"] = self.learning.lr * self.lr_scale * group["lr_scale"] * share
        tasks = [piece.task if isinstance(piece, Batch) else piece for piece in pieces]
        size = sum(len(task) for task in tasks)
        metrics: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.model.bins.device)
        for piece, task in enumerate(tasks):
            with self._precision(), self._only(parameters):
                loss, found = loss_of(piece)
            part = len(task) / max(size, 1)
            total = total + part * loss.detach()
            metrics = {name: metrics.get(name, 0) + part * value for name, value in found.items()}
            if parameters:  # there are none with, e.g., adapters on the policy alone, in online learning
                (part * loss).backward()
        if not parameters:
            return metrics, torch.zeros_like(total)
        if self.model.config.clusters is not None:
            # Of a cluster that is not in the batch: what one process does not meet another one may.
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        total = self._average_gradients(parameters, total, size)
        norm = nn.utils.clip_grad_norm_(parameters, self.learning.grad_clip_norm, foreach=True)
        if not torch.isfinite(total + norm):
            batches = [piece for piece in pieces if isinstance(piece, Batch)]
            raise FloatingPointError(self._describe_non_finite(batches, torch.cat(tasks), metrics, norm))
        optimizer.step()
        return metrics, norm

    @contextmanager
    def _only(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Compute a loss whose gradient reaches `parameters` alone, sparing those of e.g. Q in the policy's step.

        `backward(inputs=...)` would not do: our own products and compiled code then compute the others all the same.
        """
        moving = set(parameters)
        others = [parameter for parameter in self._trained["pretrain"] if parameter not in moving]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _average_gradients(self, parameters: list[nn.Parameter], loss: Tensor, size: int) -> Tensor:
        """Average gradients and the loss over processes by how many slices each had, in one message.

        All processes must have gradients of the same parameters. The loss travels along so that all of them stop where
        one has a loss that is not finite.
        """
        if self._ranks.count == 1:
            return loss
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)])
        mean, *pieces = self._ranks.weighted_mean(flat, size).split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        return mean.reshape(())

    def _precision(self) -> Any:
        """Return the context losses are computed in: bfloat16 products where runtime.precision asks for them."""
        return self._ranks.accelerator.autocast() if self._ranks.accelerator else nullcontext()

    def _describe_non_finite(
        self, batches: list[Batch], tasks: Tensor, metrics: dict[str, Tensor], norm: Tensor
    ) -> str:
        metrics = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
        faulty = not all(bool(value.isfinite()) for value in metrics.values())
        found = self._ranks.collect((faulty, self._describe_own(batches, tasks, metrics, norm)))
        if self._ranks.count == 1:
            return found[0][1]
        # Where every loss was finite, a gradient overflowed, and nobody can say whose.
        told = [f"rank {rank}: {text}" for rank, (bad, text) in enumerate(found) if bad or not any(b for b, _ in found)]
        return "all ranks stopped before the optimiser's step; " + "; ".join(told)

    def _describe_own(self, batches: list[Batch], tasks: Tensor, metrics: dict[str, Tensor], norm: Tensor) -> str:
        values = {"grad_norm": norm} | metrics
        listed = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        told = f"update {self.updates} is not finite ({listed}); the weights were left as they were."
        for batch in batches:
            for part in ("obs", "action", "expert_action", "reward", "terminated"):
                value = getattr(batch, part)
                bad = ~torch.isfinite(value).reshape(value.shape[0], value.shape[1], -1).all(-1).all(0)
                if bad.any():
                    return (
                        f"{told} The batch holds {part} values that are not finite, of {self._names(batch.task[bad])}."
                    )
        return (
            f"{told} The batch itself is finite; its tasks are {self._names(tasks)}. Lower learning.lr, or look "
            "at the scale of these tasks' rewards."
        )

    def _names(self, task: Tensor) -> str:
        return ", ".join(self.table.names[row] for row in task.unique().tolist())

    def task_scales(self) -> dict[str, float]:
        """Return the learned scale of each task's loss, by name; nothing where all tasks count alike."""
        scales = self.terms.scales()
        return {} if scales is None else dict(zip(self.table.names, scales.tolist(), strict=True))

    def state_tensors(self) -> dict[str, Tensor]:
        """Return everything needed to continue bit for bit, as tensors that safetensors can hold.

        The tensors are the live ones: save or clone them before the next update.
        """
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"{_TERMS}{name}": value for name, value in self.terms.state_dict().items()}
        for prefix, optimizer, name, parameter in self._optimized():
            for part, value in optimizer.state.get(parameter, {}).items():
                state[f"{prefix}.{name}.{part}"] = value
        if self.stages is not None:
            state["stage"] = torch.tensor([self.stages.stage])
        if self.model.config.clusters is not None:
            state["cluster"] = self.table.cluster
        return state | {"scale": self.scale.value, "updates": torch.tensor([self.updates])}

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` of a learner of the same model returned; the tensors are copied.

        Raises:
            ValueError: the state is of another model; missing and unknown entries and other shapes are named.
        """
        if "cluster" in state and self.clusters is not None and self.model.config.clusters is None:
            self.split(state["cluster"], int(state["cluster"].max()) + 1)
        odd: list[str] = []
        parts: list[tuple[nn.Module, dict[str, Tensor]]] = []
        for module, prefix in ((self.model, "model."), (self.terms, _TERMS)):
            own = module.state_dict()
            saved = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            odd += sorted(own.keys() ^ saved.keys())
            odd += [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
            parts.append((module, saved))
        if odd or "scale" not in state or "updates" not in state:
            raise ValueError(
                f"the saved state is of another model: {', '.join(odd[:5]) or 'scale or updates'} "
                f"{'and others ' if len(odd) > 5 else ''}do not match. Was a size, the set of adapters or of tasks, "
                "or an option of learning changed?"
            )
        for module, saved in parts:
            module.load_state_dict(saved)
        if self.stages is not None:
            self.enter_stage(int(state["stage"]))
        for prefix, optimizer, name, parameter in self._optimized():
            keys = {part: f"{prefix}.{name}.{part}" for part in _ADAM_STATE}
            if all(key in state for key in keys.values()):
                optimizer.state[parameter] = {
                    part: state[key].to(parameter.device, copy=True) for part, key in keys.items()
                }
            else:  # this parameter had not been moved yet
                optimizer.state.pop(parameter, None)
        with torch.no_grad():
            self.scale.value.copy_(state["scale"])
        self.updates = int(state["updates"])

    def _optimized(self) -> list[tuple[str, torch.optim.Optimizer, str, nn.Parameter]]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        names |= {parameter: f"{_TERMS}{name}" for name, parameter in self.terms.named_parameters()}
        return [
            (prefix, optimizer, names[parameter], parameter)
            for prefix, optimizer in (("model_adam", self._model_optimizer), ("policy_adam", self._policy_optimizer))
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _split(batch: Batch, draws: UpdateDraws, count: int) -> list[tuple[Batch, UpdateDraws]]:
    """Split a batch and its draws into `count` pieces of as equal sizes as possible."""
    if count == 1:
        return [(batch, draws)]
    sizes = [len(part) for part in batch.task.tensor_split(min(count, len(batch.task)))]
    ends = list(itertools.accumulate(sizes))
    spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return list(zip(map(batch.take, spans), draws.split(sizes), strict=True))
