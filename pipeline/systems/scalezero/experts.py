"""Mixture of experts: routed SwiGLU feed-forwards, of which every row takes a few, and one shared by all rows.

Rows are sorted by expert and each layer of all experts is one grouped product, so that a row costs what its own experts
cost, however many there are and however unevenly they are used.

Source: ScaleZero (arXiv 2509.07945) for the experts and the router of the latent; MoW (arXiv 2602.01270) for the router
of the task; Switch Transformers (arXiv 2101.03961) for the balance of the former; SwiGLU (arXiv 2002.05202).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.model.blocks import MLP, Conditioned, Finish, SimNorm
from pipeline.model.compute import PLAIN, Compute, product, ready


class Routing(NamedTuple):
    """Which experts the rows of one call went to."""

    probs: Tensor  # (rows, E) over all experts, with gradient; of a task router (texts, E), a row per text
    chosen: Tensor  # (rows, k) int64 in [0, E), the most probable first


class ReadyExperts(NamedTuple):
    """A layer of experts whose weights are ready for use. It is stale once they change."""

    up: Tensor  # (E, D, 2 W), the gates first
    down: Tensor  # (E, W, D)
    shared: tuple[Tensor, Tensor] | None  # (2 W, D) and (D, W)
    router: Tensor | None  # (E, D) of a router that reads the rows
    probs: Tensor | None  # (texts, E) of a router that reads the task ...
    chosen: Tensor | None  # ... (n, k) its choice for each row of the context ...
    weight: Tensor | None  # ... and (n, k) the probabilities of these
    top_k: int
    temperature: float
    compute: Compute

    def __call__(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Map rows (N, D) to (N, D); with a task router row i belongs to row i modulo n of the context."""
        if self.router is None:
            assert self.probs is not None
            assert self.chosen is not None
            assert self.weight is not None
            times = len(x) // len(self.chosen)
            probs, chosen, weight = self.probs, self.chosen.repeat(times, 1), self.weight.repeat(times, 1)
        else:
            probs = _probabilities(F.linear(x, self.router), self.temperature)
            weight, chosen = probs.topk(self.top_k)
        y = _routed(x, chosen, weight, self.up, self.down)
        if self.shared is not None:
            up, down = self.shared
            y = y + product(_swiglu(product(x, up, None, self.compute)), down, None, self.compute)
        return y, Routing(probs, chosen)

    def take(self, rows: Tensor) -> ReadyExperts:
        """Repeat the tasks as `rows` (B,) says."""
        if self.chosen is None or self.weight is None:
            return self
        return self._replace(chosen=self.chosen.index_select(0, rows), weight=self.weight.index_select(0, rows))


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

    def ready(self, task_emb: Tensor | None = None, compute: Compute = PLAIN) -> ReadyExperts:
        """Make the weights ready to be computed as `compute` says; a task router chooses for its tasks (n, E) here."""
        experts, up, down = self.experts, self.up, self.down  # each read once: a scaled one is computed by reading it
        dtype = _dtype(up, compute)
        router = probs = chosen = weight = None
        if experts.router == "latent":
            router = self.router.get_parameter("weight").to(dtype)
        else:
            assert task_emb is not None
            probs = _probabilities(self.router(task_emb), experts.temperature)
            weight, chosen = probs.topk(experts.top_k)
        shared = None
        if self.shared_up is not None and self.shared_down is not None:
            shared = ready(self.shared_up.weight, compute), ready(self.shared_down.weight, compute)
        up, down = up.to(dtype), down.to(dtype)
        return ReadyExperts(
            up, down, shared, router, probs, chosen, weight, experts.top_k, experts.temperature, compute
        )

    def forward(self, x: Tensor, task_emb: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Map rows x (N, D) to (N, D); a task router wants their task embeddings (N, task_dim)."""
        return self.ready(task_emb)(x)


class ReadyBlock(NamedTuple):
    """A block of experts whose weights are ready for use."""

    experts: ReadyExperts
    finish: Finish

    def __call__(self, x: Tensor, compute: Compute, notes: list[Routing] | None) -> Tensor:
        """Map x (rows, D) to (rows, D), and note where the rows went if there are notes."""
        y, routing = self.experts(x)
        if notes is not None:
            notes.append(routing)
        return self.finish(x + y, compute)

    def take(self, rows: Tensor) -> ReadyBlock:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(experts=self.experts.take(rows))


class ExpertBlock(nn.Module):
    """What stands in the place of a hidden block: x plus the experts' output, then LayerNorm and Mish.

    The layers are siblings of those of `blocks.Block`; the experts stand where its `linear` does. They are added to
    their input, as the feed-forward of a Transformer's block is: a row whose experts have little to say goes on as it
    is, and the gradient reaches the first layer past whatever the router does.

    Args:
        dim: D, of the rows.
        experts: settings.
        task_dim: width of the task embedding.
    """

    def __init__(self, dim: int, experts: config.Experts, task_dim: int):
        super().__init__()
        self.experts = ExpertLayer(dim, experts.hidden, experts, task_dim)
        self.norm = nn.LayerNorm(dim)

    def ready(self, task_emb: Tensor, compute: Compute) -> ReadyBlock:
        """Make the weights ready to be computed as `compute` says; a task router chooses for its tasks (n, E) here."""
        return ReadyBlock(self.experts.ready(task_emb, compute), Finish(self.norm.weight, self.norm.bias, 0))


class ExpertMLP(MLP):
    """An MLP whose last hidden block is an `ExpertBlock`: of three blocks the one in the middle.

    What a router of the latent reads is the hidden state behind the first block, LayerNorm and Mish included. The
    task embedding goes into that block alone, where its product is computed once per task as in every MLP.

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
        self[len(hidden_dims) - 1] = ExpertBlock(hidden_dims[-1], experts, task_dim)


def has_experts(told: Conditioned) -> bool:
    """Whether an MLP that was told its tasks has experts."""
    return any(isinstance(layer, ReadyBlock) for layer in told.layers)


def balance_loss(routings: Sequence[Routing], experts: config.Experts) -> Tensor:
    """How unevenly one layer's experts are used, over all calls of an update: () with gradient.

    A router of the latent: E sum_e f_e P_e, f the share of choices that fell on an expert, P its mean probability; 1
    when even, E when one expert takes all. A router of the task: || sum_k w_k - (K n / E) 1 ||^2 over the n texts, 0
    when even; w is taken as K p, since what was published does not say how its w sums up to K per task.

    Source: Switch Transformers (arXiv 2101.03961), equation 4; MoW (arXiv 2602.01270).
    """
    if experts.router == "task":
        probs = routings[0].probs
        return (experts.top_k * (probs.sum(0) - len(probs) / experts.num)).square().sum()
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


def _dtype(weight: Tensor, compute: Compute) -> torch.dtype:
    """What grouped products are computed in: autocast leaves them alone, so it is asked."""
    if compute.bfloat16:
        return torch.bfloat16
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _init(weight: Tensor, fan_in: int) -> Tensor:
    """Draw weights that keep the size of what they multiply: no normalisation stands inside an expert."""
    return nn.init.trunc_normal_(weight, std=fan_in**-0.5)
