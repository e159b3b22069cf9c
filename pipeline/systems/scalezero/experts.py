"""Mixture of experts: routed SwiGLU feed-forwards, of which every row takes a few, and one shared by all rows.

Rows are sorted by expert and each layer of all experts is one grouped product, so that a row costs what its own experts
cost, however many there are and however unevenly they are used.

Source: ScaleZero (arXiv 2509.07945) for the experts and the router of the latent; MoW (arXiv 2602.01270) for the router
of the task; Switch Transformers (arXiv 2101.03961) for the balance of the former; SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.model.layers import MLP, Mish, SimNorm, TaskInput, effective_weight
from pipeline.model.products import derived, product, ready
from pipeline.model.world_model import PARTS, WorldModel


class Routing(NamedTuple):
    """Which experts the rows of one call went to."""

    probs: Tensor  # (rows, E) over all experts, with gradient; of a task router (texts, E), a row per text
    chosen: Tensor  # (rows, k) int64 in [0, E), the most probable first
    present: Tensor | None = None  # (texts,) of a task router, 1 where a row of the call has that text; None for all


class TaskRouting(NamedTuple):
    """Which experts a task router has chosen for n tasks. It is stale once the weights change."""

    probs: Tensor  # (texts, E), a row per text
    chosen: Tensor  # (n, k)
    weight: Tensor  # (n, k) probabilities of the chosen ones
    present: Tensor | None = None  # (texts,) 1 where one of the n tasks has that text; None for all

    def take(self, rows: Tensor) -> TaskRouting:
        """Repeat the tasks as `rows` (B,) says."""
        present = torch.zeros_like(self.probs[:, 0]).index_fill(0, rows, 1.0) if self.present is None else self.present
        return self._replace(
            chosen=self.chosen.index_select(0, rows), weight=self.weight.index_select(0, rows), present=present
        )


class ExpertLayer(nn.Module):
    """Routed experts, and a shared one that is always added: (N, D) to (N, D), without residual or normalisation.

    The output is sum_j p_j E_j(x) over the k most probable experts j, plus S(x). The probabilities p are a softmax over
    all experts and are not made to sum to 1 over the chosen ones: with k = 1 that would be the constant 1, and the
    router would never learn.

    Args:
        dim: D.
        hidden: W, width of each expert and of the shared one.
        experts: how many there are and how rows find theirs.
        task_dim: width of the task embedding, for a router that reads it.
    """

    def __init__(self, dim: int, hidden: int, experts: config.Experts, task_dim: int = 0):
        super().__init__()
        if dim % 8 or hidden % 8:
            raise ValueError(f"grouped products need widths that are multiples of 8: experts are {dim} and {hidden}")
        self.experts = experts
        self.calls: list[Routing] | None = None  # set by `record_routing`
        self.up = nn.Parameter(_init(torch.empty(experts.num, dim, 2 * hidden), dim))
        self.down = nn.Parameter(_init(torch.empty(experts.num, hidden, dim), hidden))
        self.shared_up = self.shared_down = None
        if experts.shared:
            self.shared_up = nn.Linear(dim, 2 * hidden, bias=False)
            self.shared_down = nn.Linear(hidden, dim, bias=False)
            _init(self.shared_up.weight, dim)
            _init(self.shared_down.weight, hidden)
        if experts.router == "latent":
            self.router: nn.Module = nn.Linear(dim, experts.num, bias=False)
        else:
            self.router = nn.Sequential(nn.Linear(task_dim, dim), nn.Mish(), nn.Linear(dim, experts.num))
        for layer in self.router.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)

    def condition(self, task_emb: Tensor) -> TaskRouting | None:
        """Choose the experts of n tasks by their embeddings (n, task_dim); None for a router that reads the rows."""
        if self.experts.router == "latent":
            return None
        probs = _probabilities(self.router(task_emb), self.experts.temperature)
        weight, chosen = probs.topk(self.experts.top_k)
        return TaskRouting(probs, chosen, weight)

    def forward(self, x: Tensor, tasks: TaskRouting | None = None) -> Tensor:
        """Map rows x (N, D) to (N, D).

        Args:
            x: (N, D)
            tasks: from `condition`, of n tasks; row i of x belongs to task i modulo n.
        """
        # Each matrix is read once: where adapters are added to it, reading it computes the sum.
        up = derived((id(self), "up"), lambda: _grouped(self.up))
        down = derived((id(self), "down"), lambda: _grouped(self.down))
        if tasks is None:
            router = self.router.get_parameter("weight").to(up.dtype)
            probs = _probabilities(F.linear(x.to(up.dtype), router), self.experts.temperature)
            weight, chosen = probs.topk(self.experts.top_k)
        else:
            times = len(x) // len(tasks.chosen)
            probs, chosen, weight = tasks.probs, tasks.chosen.repeat(times, 1), tasks.weight.repeat(times, 1)
        if self.calls is not None:
            self.calls.append(Routing(probs, chosen, None if tasks is None else tasks.present))
        y = _routed(x, chosen, weight, up, down)
        if self.shared_up is not None and self.shared_down is not None:
            hidden = _swiglu(product(x, effective_weight(self.shared_up), None))
            y = y + product(hidden, effective_weight(self.shared_down), None)
        return y.to(x.dtype)


class ExpertBlock(nn.Module):
    """Replaces a hidden block: x plus the experts' output, then LayerNorm and Mish.

    The experts are added to their input, as the feed-forward of a Transformer is: the gradient reaches the first layer
    also past the experts, whatever the router does.

    Args:
        dim: D, of the rows.
        experts: settings.
        task_dim: width of the task embedding.
    """

    def __init__(self, dim: int, experts: config.Experts, task_dim: int):
        super().__init__()
        self.experts = ExpertLayer(dim, experts.hidden, experts, task_dim)
        self.norm = nn.LayerNorm(dim)
        self.activation = Mish()

    def forward(self, x: Tensor, tasks: TaskRouting | None = None) -> Tensor:
        """Map rows x (N, D) to (N, D)."""
        return self.activation(self.norm(x + self.experts(x, tasks)))


class ExpertInput(NamedTuple):
    """What n tasks contribute to an MLP with experts. It is stale once the weights change."""

    first: TaskInput
    routing: TaskRouting | None  # of a task router

    def take(self, rows: Tensor) -> ExpertInput:
        """Repeat the tasks as `rows` (B,) says."""
        return ExpertInput(self.first.take(rows), None if self.routing is None else self.routing.take(rows))


class ExpertMLP(MLP):
    """An MLP whose last hidden block is an `ExpertBlock`: of three blocks the one in the middle.

    A router of the latent reads the hidden state behind the first block, LayerNorm and Mish included. The task
    embedding enters the first block alone, where its product is computed once per task as in every MLP.

    Args:
        x_dim, task_dim, a_dim, hidden_dims, out_dim, activation: as `MLP`; the last two of `hidden_dims` are equal.
        experts: settings.
    """

    def __init__(
        self,
        x_dim: int,
        task_dim: int,
        a_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: SimNorm | None = None,
        *,
        experts: config.Experts,
    ):
        super().__init__(x_dim, task_dim, a_dim, hidden_dims, out_dim, activation)
        self[-2] = ExpertBlock(hidden_dims[-1], experts, task_dim)

    def condition(self, task_emb: Tensor, columns: dict[str, Tensor] | None = None) -> ExpertInput:
        """Compute what n tasks contribute; a task router chooses their experts here."""
        block = cast("ExpertBlock", self[-2])
        return ExpertInput(super().condition(task_emb, columns), block.experts.condition(task_emb))

    def _whole(self, task: ExpertInput, x: Tensor, a: Tensor | None) -> Tensor:
        head, *rest = self.blocks
        h = self._first_product(task.first, x, a)
        shape, h = h.shape, h.flatten(0, -2)
        h = head.finish(h)
        for block in rest:
            h = block(h, task.routing) if isinstance(block, ExpertBlock) else block(h)
        return h.view(*shape[:-1], h.shape[-1])


@contextmanager
def record_routing(model: WorldModel) -> Iterator[dict[str, list[Routing]]]:
    """Record, within the context, which experts rows go to.

    Yields:
        by layer, the calls so far: "dynamics", "reward", "policy", "q.0", ... or, of a Transformer's layers,
        "dynamics.0", ...; target networks are left out.
    """
    layers = {
        name: layer
        for part, module in PARTS.items()
        for name, layer in _expert_layers(part, model.get_submodule(module))
    }
    calls: dict[str, list[Routing]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.calls = calls[name]
    try:
        yield calls
    finally:
        for layer in layers.values():
            layer.calls = None


def balance_loss(routings: Sequence[Routing], experts: config.Experts) -> Tensor:
    """How unevenly one layer's experts are used, over all calls of an update: () with gradient.

    A router of the latent: E sum_e f_e P_e, f the share of choices that fell on an expert, P its mean probability; 1
    when even, E when one expert takes all. A router of the task: || sum_k w_k - (K n / E) 1 ||^2 over the n texts, 0
    when even; w is taken as K p, since what was published does not say how its w sums up to K per task.

    Source: Switch Transformers (arXiv 2101.03961), equation 4; MoW (arXiv 2602.01270).
    """
    if experts.router == "task":
        probs, present = routings[0].probs, routings[0].present
        present = torch.ones_like(probs[:, 0]) if present is None else present
        return (experts.top_k * (present @ probs - present.sum() / experts.num)).square().sum()
    probs = torch.cat([routing.probs for routing in routings])
    share = _one_hot(torch.cat([routing.chosen for routing in routings]), experts.num).mean((0, 1))
    return experts.num * (share * probs.mean(0)).sum()


def _routed(x: Tensor, chosen: Tensor, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Send rows x (N, D) through their experts: the sum (N, D) of the chosen ones' outputs by weight (N, k)."""
    expert, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(len(up), device=x.device), right=True, out_int32=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    rows = _Dispatch.apply(x.to(up.dtype), order, back, chosen.shape[1])
    hidden = _swiglu(F.grouped_mm(rows, up, offs=ends))
    # Weighing the hidden units instead of the outputs is the same, and there are fewer of them.
    hidden = hidden * weight.flatten()[order].unsqueeze(1).to(hidden.dtype)
    y = _Collect.apply(F.grouped_mm(hidden, down, offs=ends), order, back)
    return y.view(*chosen.shape, -1).sum(1) if chosen.shape[1] > 1 else y


class _Dispatch(torch.autograd.Function):
    """Rows (N, D), each k times, in the order of their experts (N k, D). Its derivative adds nothing up row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.k = k
        return x.index_select(0, order // k if k > 1 else order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        grad = grad.index_select(0, back)
        return (grad.view(-1, ctx.k, grad.shape[1]).sum(1) if ctx.k > 1 else grad), None, None, None


class _Collect(torch.autograd.Function):
    """Rows in the order of their experts, back in their own."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return y.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits.float() / temperature).softmax(-1)


def _one_hot(chosen: Tensor, num: int) -> Tensor:
    return (chosen.unsqueeze(-1) == torch.arange(num, device=chosen.device)).float()


def _grouped(weight: Tensor) -> Tensor:
    """Return a stack of matrices in the precision of grouped products, which autocast does not set by itself."""
    device = weight.device.type
    return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ready(weight)


def _expert_layers(part: str, module: nn.Module) -> Iterator[tuple[str, ExpertLayer]]:
    """Yield the expert layers of a part, by its name and, where it has several, their numbers."""
    for path, layer in module.named_modules():
        if isinstance(layer, ExpertLayer):
            # `<block>.experts` of an MLP, `<member>.<block>.experts` of the Q ensemble, `layers.<i>.feed` of history.
            words = path.split(".")
            numbers = [word for word in (words[:-2] if words[-1] == "experts" else words) if word.isdigit()]
            yield ".".join([part, *numbers]), layer


def _init(weight: Tensor, fan_in: int) -> Tensor:
    """Draw weights that keep the size of what they multiply: no normalisation stands inside an expert."""
    return nn.init.trunc_normal_(weight, std=fan_in**-0.5)
