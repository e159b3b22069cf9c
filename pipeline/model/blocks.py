"""The layers every network is made of: Linear, LayerNorm and activation as siblings, and MLPs over [x; e; a].

The first layer of an MLP sees the task embedding e, which is the same for every sample of a task. Its part of the
product, W_e e + b, is therefore computed once per task (`MLP.condition`) and added to what the samples contribute:
W [x; e; a] + b = W_x x + W_a a + (W_e e + b). The parameters keep the plain layout of one `nn.Linear` over [x; e; a].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.compute import PLAIN, Compute, product, ready
from pipeline.model.kernels import mish, norm_mish, norm_simnorm, simnorm

# Without gradients a CPU computes so many rows at a time that what one layer leaves is still in the cache when the next
# one reads it: the values are the same, and planning for many environments is 1.2 to 1.4 times as fast.
_CACHED_BYTES = 2**20  # of one hidden layer


class SimNorm(nn.Module):
    """Softmax over groups of `group` neighbouring features, so that each group lies on a simplex."""

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., Z) to (..., Z); Z must be a multiple of `group`."""
        return simnorm(x, self.group)


class Mish(nn.Module):
    """x tanh(softplus(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Map each element."""
        return mish(x)


class Block(nn.Module):
    """Linear, then LayerNorm and activation where there is one; without activation it is an output layer.

    The three are siblings: an adapter that replaces `linear` acts before the normalisation, as a merged one does.
    """

    def __init__(self, in_dim: int, out_dim: int, activation: SimNorm | Mish | None):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = None if activation is None else nn.LayerNorm(out_dim)
        self.activation = activation
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        x = self.linear(x)
        return x if self.norm is None or self.activation is None else self.activation(self.norm(x))

    def ready(self, _task_emb: Tensor, compute: Compute) -> Layer:
        """Make the weights ready to be computed as `compute` says."""
        linear: Any = self.linear
        if not isinstance(linear, nn.Linear) and torch.is_grad_enabled():
            return Layer(linear.get_base_layer().weight, linear.bias, linear, self.finish())
        bias = linear.bias.to(torch.bfloat16) if compute.bfloat16 else linear.bias
        return Layer(ready(effective_weight(linear), compute), bias, None, self.finish())

    def finish(self) -> Finish:
        """What follows the product."""
        if self.norm is None:
            return Finish(None, None, 0)
        return Finish(self.norm.weight, self.norm.bias, getattr(self.activation, "group", 0))


class Finish(NamedTuple):
    """What follows the product of a block; no weight means nothing does."""

    weight: Tensor | None  # (out,) of the LayerNorm
    bias: Tensor | None  # (out,)
    group: int  # of SimNorm; 0 for Mish

    def __call__(self, x: Tensor, compute: Compute) -> Tensor:
        """Map x (rows, out); without a LayerNorm to float32."""
        if self.weight is None or self.bias is None:
            return x.float() if x.dtype == torch.bfloat16 else x
        if self.group:
            return norm_simnorm(x, self.weight, self.bias, self.group, compute)
        return norm_mish(x, self.weight, self.bias, compute)


class Layer(NamedTuple):
    """A block whose weights are ready for use."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    adapted: nn.Module | None  # the layer itself where its adapter is being trained: it never builds the whole matrix
    finish: Finish

    def __call__(self, x: Tensor, compute: Compute, _notes: list[Any] | None) -> Tensor:
        """Map x (rows, in) to (rows, out)."""
        x = product(x, self.weight, self.bias, compute) if self.adapted is None else self.adapted(x)
        return self.finish(x, compute)

    def take(self, _rows: Tensor) -> Layer:
        """Nothing here depends on the task."""
        return self


class ReadyLayer(Protocol):
    """What follows the first layer: a `Layer`, or one whose rows are shared out among experts."""

    def __call__(self, x: Tensor, compute: Compute, notes: list[Any] | None, /) -> Tensor:
        """Map x (rows, in) to (rows, out), and note where the rows went if there are notes."""
        ...

    def take(self, rows: Tensor, /) -> ReadyLayer:
        """Repeat the tasks as `rows` (B,) says."""
        ...


class Conditioned(NamedTuple):
    """An MLP that has been told n tasks, with its weights ready for use. It is stale once they change."""

    weight_x: Tensor  # (H, X) of the first layer
    weight_a: Tensor  # (H, A), of no columns for an MLP without action
    bias: Tensor  # (n, H): W_e e + b, one row per task
    finish: Finish  # of the first layer
    layers: tuple[ReadyLayer, ...]  # the others
    compute: Compute
    notes: list[Any] | None = None  # where its calls note which rows went to which expert; None: nowhere

    def __call__(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); x may have fewer dims in front than a."""
        shape = (x if a is None else a).shape[:-1]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu" or len(shape) == 1:
            return self._whole(x, a)
        each = max(_CACHED_BYTES // (shape[1:].numel() * self.bias.shape[-1] * self.bias.element_size()), 1)
        if each >= shape[0]:
            return self._whole(x, a)
        pieces = range(0, shape[0], each)
        xs = x.split(each) if x.shape[:-1] == shape else [x] * len(pieces)
        actions = [None] * len(pieces) if a is None else a.split(each)
        return torch.cat([self._whole(*piece) for piece in zip(xs, actions, strict=True)])

    def _whole(self, x: Tensor, a: Tensor | None) -> Tensor:
        h = self._first(x, a)
        shape, h = h.shape, h.flatten(0, -2)
        h = self.finish(h, self.compute)
        for layer in self.layers:
            h = layer(h, self.compute, self.notes)
        return h.view(*shape[:-1], h.shape[-1])

    def take(self, rows: Tensor) -> Conditioned:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(
            bias=self.bias.index_select(0, rows), layers=tuple(layer.take(rows) for layer in self.layers)
        )

    def _first(self, x: Tensor, a: Tensor | None) -> Tensor:
        """The products of the first layer, (..., n, H)."""
        out = product(x.flatten(0, -2), self.weight_x, None, self.compute).view(*x.shape[:-1], -1) + self.bias
        if a is None:
            return out
        if out.shape[:-1] != a.shape[:-1]:
            out = out.expand(*a.shape[:-1], -1).clone(memory_format=torch.contiguous_format)
        # The product is accumulated in place: one pass over the result less than adding it.
        weight_a = self.weight_a.t().to(
            out.dtype
        )  # autocast may have made `out` bfloat16, and leaves this product alone
        out.view(-1, out.shape[-1]).addmm_(a.flatten(0, -2).to(out.dtype), weight_a)
        return out


class MLP(nn.Sequential):
    """Hidden blocks with Mish and an output block, over the concatenation [x; e; a].

    Args:
        x_dim: X, width of the first input.
        task_dim: E, width of the task embedding.
        a_dim: A, width of the action; 0 for none.
        hidden_dims: width of each hidden block; none makes it a single layer.
        out_dim: width of the output.
        activation: of the output block; None makes it a plain linear layer.
    """

    def __init__(
        self,
        x_dim: int,
        task_dim: int,
        a_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: SimNorm | None = None,
    ):
        widths = [x_dim + task_dim + a_dim, *hidden_dims]
        hidden = [Block(i, o, Mish()) for i, o in itertools.pairwise(widths)]
        super().__init__(*hidden, Block(widths[-1], out_dim, activation))
        self.widths = (x_dim, task_dim, a_dim)

    def condition(self, task_emb: Tensor, compute: Compute = PLAIN) -> Conditioned:
        """Tell the MLP its tasks (n, E), and make its weights ready to be computed as `compute` says."""
        head, *rest = self.blocks
        weight_x, weight_e, weight_a = effective_weight(head.linear).split(self.widths, dim=1)
        bias = F.linear(task_emb, weight_e, head.linear.bias)
        return Conditioned(
            ready(weight_x, compute),
            weight_a.to(torch.bfloat16) if compute.bfloat16 else weight_a,
            bias.to(torch.bfloat16) if compute.bfloat16 else bias,
            head.finish(),
            tuple(block.ready(task_emb, compute) for block in rest),
            compute,
        )

    def forward(self, told: Conditioned, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); `told` comes from `condition`."""
        return told(x, a)

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return cast("list[Block]", list(self))


def effective_weight(linear: Any) -> Tensor:
    """Return the matrix a linear layer multiplies by, low-rank adapters included; gradients reach them.

    Args:
        linear: an `nn.Linear`, whose matrix may be scaled (`pipeline/model/scaling.py`), or one that PEFT has wrapped
            with LoRA (no dropout, no variant).

    Raises:
        TypeError: it is something else, whose forward pass may not be a product with one matrix.
    """
    if isinstance(linear, nn.Linear):
        return linear.weight
    if not hasattr(linear, "get_delta_weight"):
        raise TypeError(f"the first layer of an MLP must be nn.Linear or a PEFT LoRA layer, not {type(linear)}")
    if linear.disable_adapters and linear.merged:
        linear.unmerge()  # as PEFT's own forward does
    weight = linear.get_base_layer().weight
    if linear.disable_adapters or linear.merged:
        return weight
    for adapter in linear.active_adapters:
        if adapter in linear.lora_A:
            weight = weight + linear.get_delta_weight(adapter)
    return weight
