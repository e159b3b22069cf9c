"""The layers every network is made of: Linear, LayerNorm and activation as siblings, and MLPs over [x; e; a].

The first layer of an MLP sees the task embedding e, which is the same for every sample of a task. Its part of the
product, W_e e + b, is therefore computed once per task (`MLP.condition`) and added to what the samples contribute:
W [x; e; a] + b = W_x x + W_a a + (W_e e + b). The parameters keep the plain layout of one `nn.Linear` over [x; e; a].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SimNorm(nn.Module):
    """Softmax over groups of `group` neighbouring features, so that each group lies on a simplex.

    Source: TD-MPC2 (arXiv 2310.16828), section 3.1.
    """

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., Z) to (..., Z); Z must be a multiple of `group`."""
        if x.shape[-1] % self.group:
            raise ValueError(f"SimNorm needs a width that is a multiple of {self.group}; it came {x.shape[-1]} wide")
        groups = x.unflatten(-1, (-1, self.group))
        # A softmax over so few neighbours is slow; over a stride it runs through whole vectors, copies included.
        return groups.transpose(-1, -2).softmax(-2).transpose(-1, -2).flatten(-2)


class Mish(nn.Module):
    """x tanh(softplus(x)), with one exponential: x - 2 x / (u^2 + 1), where u = e^x + 1.

    torch's own kernel takes 5 times as long on a CPU; on a GPU it is a single one and is used.

    Source: arXiv 1908.08681.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map each element."""
        if x.is_cuda:
            return F.mish(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _MishWithGradient.apply(x)
        # Where e^x overflows the quotient is 0, as it should be.
        return torch.addcdiv(x, x, x.exp().add_(1).square_().add_(1), value=-2)


class _MishWithGradient(torch.autograd.Function):
    """Mish whose derivative is computed on the way forward, while its parts are at hand: 1 - 2 r + 4 x u (u - 1) r^2.

    r stands for 1 / (u^2 + 1).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        u = x.clamp(max=20).exp_().add_(1)  # beyond 20 nothing changes in float32, and u^4 must not overflow
        square = u.square()
        slope = torch.sub(square, u).mul_(x)
        r = square.add_(1).reciprocal_()
        slope.mul_(r).mul_(2).sub_(1).mul_(r).mul_(2).add_(1)
        ctx.save_for_backward(slope)
        return torch.addcmul(x, x, r, value=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


class Block(nn.Module):
    """Linear, then LayerNorm and activation where there is one; without activation it is an output layer.

    The three are siblings: an adapter that replaces `linear` acts before the normalisation, as a merged one does.
    """

    def __init__(self, in_dim: int, out_dim: int, activation: nn.Module | None):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = None if activation is None else nn.LayerNorm(out_dim)
        self.activation = activation
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        return self.finish(self.linear(x))

    def finish(self, x: Tensor) -> Tensor:
        """Apply what follows the linear layer."""
        return x if self.norm is None or self.activation is None else self.activation(self.norm(x))


class FirstLayer(NamedTuple):
    """The first layer of an MLP with the task already applied."""

    weight_x: Tensor  # (H, X)
    weight_a: Tensor  # (H, A), of no columns for an MLP without action
    bias: Tensor  # (n, H): W_e e + b, one row per task

    def __call__(self, x: Tensor, a: Tensor | None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, H); x may have fewer dims in front than a."""
        out = _add_product(self.bias, x, self.weight_x)
        return out if a is None else _add_product(out, a, self.weight_a)

    def take(self, rows: Tensor) -> FirstLayer:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(bias=self.bias.index_select(0, rows))


def _add_product(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return base + x W^T for x (..., X), W (H, X) and a base that broadcasts to (..., H)."""
    if torch.is_autocast_enabled(x.device.type):  # which leaves in-place products alone
        return base + nn.functional.linear(x, weight)
    shape = (*x.shape[:-1], len(weight))
    out = base.expand(shape).clone(memory_format=torch.contiguous_format)
    # The product is accumulated in place: one pass over the result less than adding it.
    return out.view(-1, len(weight)).addmm_(x.reshape(-1, x.shape[-1]), weight.T).view(shape)


class MLP(nn.Sequential):
    """Hidden blocks with Mish and an output block, over the concatenation [x; e; a].

    Args:
        x_dim: X, width of the first input.
        task_dim: E, width of the task embedding.
        a_dim: A, width of the action; 0 for none.
        hidden_dims: width of each hidden block, at least one.
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
        activation: nn.Module | None = None,
    ):
        widths = [x_dim + task_dim + a_dim, *hidden_dims]
        hidden = [Block(i, o, Mish()) for i, o in itertools.pairwise(widths)]
        super().__init__(*hidden, Block(widths[-1], out_dim, activation))
        self.widths = (x_dim, task_dim, a_dim)

    def condition(self, task_emb: Tensor) -> FirstLayer:
        """Apply the first layer to task embeddings (n, E)."""
        linear = self.blocks[0].linear
        weight_x, weight_e, weight_a = effective_weight(linear).split(self.widths, dim=1)
        return FirstLayer(weight_x, weight_a, F.linear(task_emb, weight_e, linear.bias))

    def forward(self, first: FirstLayer, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); `first` comes from `condition`."""
        head, *rest = self.blocks
        h = head.finish(first(x, a))
        for block in rest:
            h = block(h)
        return h

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return cast("list[Block]", list(self))


def effective_weight(linear: Any) -> Tensor:
    """Return the matrix a linear layer multiplies by, low-rank adapters included; gradients reach them.

    Args:
        linear: an `nn.Linear`, or one that PEFT has wrapped with LoRA (no dropout, no variant).

    Raises:
        TypeError: it is something else, whose forward pass may not be a product with one matrix.
    """
    if type(linear) is nn.Linear:
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
