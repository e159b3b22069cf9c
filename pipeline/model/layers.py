"""The layers every network is made of: linear, LayerNorm and activation as siblings, and MLPs over [x; e; a].

The first layer of an MLP sees the task embedding e, which is the same for every sample of a task. Its part of the
product is therefore computed once per task (`MLP.condition`) and added to what the samples contribute:
W [x; e; a] + b = W_x x + W_a a + (W_e e + b). The parameters keep the plain layout of one `nn.Linear` over [x; e; a].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model import fused
from pipeline.model.device import launches
from pipeline.model.products import derived, product, ready

# Without gradients a CPU computes few enough rows at a time that a layer's output is still in the cache when the next
# layer reads it: the values are the same, and planning for many environments is 1.2 to 1.4 times as fast.
_CACHED_BYTES = 2**20  # of one hidden layer


# Activations are plain classes, and blocks are called by `forward`: the call of a torch module costs microseconds, and
# one plan makes hundreds.


class SimNorm:
    """Softmax over groups of `group` neighbouring features, so that each group lies on a simplex.

    Source: TD-MPC2 (arXiv 2310.16828), section 3.1.
    """

    def __init__(self, group: int):
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        """Map (..., Z) to (..., Z); Z must be a multiple of `group`."""
        assert x.shape[-1] % self.group == 0, f"a width of {x.shape[-1]} is no multiple of {self.group}"
        groups = x.unflatten(-1, (-1, self.group))
        if launches(x):
            return groups.softmax(-1).flatten(-2)
        # Transposed: a softmax over few adjacent values is slow, one over a strided dim is vectorised, copies included.
        return groups.transpose(-1, -2).softmax(-2).transpose(-1, -2).flatten(-2)


class Mish:
    """x tanh(softplus(x)), with one exponential: x - 2 x / (u^2 + 1), where u = e^x + 1.

    torch's own kernel takes 5 times as long on a CPU; on a GPU it is a single one and is used.

    Source: arXiv 1908.08681.
    """

    group = 0  # no groups: as `fused.norm_activation` takes it

    def __call__(self, x: Tensor) -> Tensor:
        """Map each element."""
        if launches(x):
            return F.mish(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _MishWithGradient.apply(x)
        # Where e^x overflows the quotient is 0, as it should be.
        return torch.addcdiv(x, x, x.exp().add_(1).square_().add_(1), value=-2)


class Block(nn.Module):
    """Linear, then LayerNorm and activation where there is one; without activation it is an output layer.

    The three are siblings, so that a low-rank adapter can replace `linear` alone, before the normalisation.
    """

    def __init__(self, in_dim: int, out_dim: int, activation: SimNorm | Mish | None):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.norm = None if activation is None else nn.LayerNorm(out_dim)
        self.activation = activation
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (rows, in_dim) to (rows, out_dim)."""
        linear: Any = self.linear
        if not isinstance(linear, nn.Linear) and torch.is_grad_enabled():
            return self.finish(linear(x))  # training an adapter, without building the full matrix
        return self.finish(product(x, effective_weight(linear), linear.bias))

    def finish(self, x: Tensor) -> Tensor:
        """Apply LayerNorm and activation to the product, in float32."""
        return normalised(x, None if self.norm is None else (self.norm.weight, self.norm.bias), self.activation)


def normalised(
    x: Tensor, norm: tuple[Tensor, Tensor] | None, activation: SimNorm | Mish | None, tasks: Tensor | None = None
) -> Tensor:
    """Apply LayerNorm and activation to a product x (rows, H), in float32 (`fused.norm_activation`: Mish in x's own).

    Args:
        x: the product; of M stacked networks (M, rows, H).
        norm: weight and bias (H,); of stacked networks (M, 1, H). None leaves x as it is, an output.
        activation: what follows.
        tasks: (n, H) or (M, n, H), what the tasks add before: row r is of task r modulo n.
    """
    if norm is not None and activation is not None and fused.usable(x):
        return fused.norm_activation(x, tasks, *norm, activation.group)
    if tasks is not None:
        x = (x.unflatten(-2, (-1, tasks.shape[-2])) + tasks.unsqueeze(-3).to(x.dtype)).view(x.shape)
    if norm is None or activation is None:
        return x.float() if x.dtype == torch.bfloat16 else x
    weight, bias = norm
    x, width = x.to(weight.dtype), weight.shape[-1:]
    if weight.ndim == 1:
        return activation(F.layer_norm(x, width, weight, bias))
    return activation(torch.addcmul(bias, F.layer_norm(x, width), weight))


class TaskInput(NamedTuple):
    """The first layer of an MLP, split by its inputs, with the part of n tasks already computed.

    It is stale once the weights change.
    """

    weight_x: Tensor | None  # (H, X); None where x is worked into the bias (`MLP.given`)
    weight_a: Tensor  # (H, A), of no columns for an MLP without action
    bias: Tensor  # (n, H): W_e e + b, one row per task

    def take(self, rows: Tensor) -> TaskInput:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(bias=self.bias.index_select(0, rows))


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
        self._first_dim = [*hidden_dims, out_dim][0]

    def condition(self, task_emb: Tensor, columns: dict[str, Tensor] | None = None) -> Any:
        """Compute what n tasks contribute to the first layer.

        Args:
            task_emb: (n, E)
            columns: further indices of these tasks (`TaskTable.columns`); a plain MLP reads none.
        """
        linear = self.blocks[0].linear
        weight_x, weight_e, weight_a = effective_weight(linear).split(self.widths, dim=1)
        return TaskInput(ready(weight_x), weight_a, F.linear(task_emb, weight_e, linear.bias))

    def given(self, task: TaskInput, x: Tensor) -> TaskInput:
        """Return what n tasks and a first input x (n, X) contribute, for many actions at this x."""
        return task._replace(weight_x=None, bias=self._first_product(task, x, None))

    def forward(self, task: Any, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Map x (..., n, X) and a (..., n, A) to (..., n, out_dim); x may have fewer dims in front than a.

        Args:
            task: from `condition`, of n rows.
            x: first input.
            a: action, for an MLP that has one.
        """
        shape = (x if a is None else a).shape[:-1]
        if torch.is_grad_enabled() or launches(x) or len(shape) == 1:
            return self._whole(task, x, a)
        each = max(_CACHED_BYTES // (shape[1:].numel() * self._first_dim * 4), 1)
        if each >= shape[0]:
            return self._whole(task, x, a)
        pieces = range(0, shape[0], each)
        xs = x.split(each) if x.shape[:-1] == shape else [x] * len(pieces)
        actions = [None] * len(pieces) if a is None else a.split(each)
        return torch.cat([self._whole(task, *piece) for piece in zip(xs, actions, strict=True)])

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return cast("list[Block]", list(self._modules.values()))

    def _whole(self, task: Any, x: Tensor, a: Tensor | None) -> Tensor:
        head, *rest = self.blocks
        shape = (x if a is None else a).shape[:-1]
        if head.norm is not None and fused.usable(x):
            h = normalised(*self._apart(task, x, a, (head.norm.weight, head.norm.bias), head.activation))
        else:
            h = head.finish(self._first_product(task, x, a).flatten(0, -2))
        for block in rest:
            h = block.forward(h)
        return h.view(*shape, h.shape[-1])

    @staticmethod
    def _apart(task: TaskInput, x: Tensor, a: Tensor | None, norm: Any, activation: Any) -> tuple[Any, ...]:
        """Return the arguments of `normalised` for the first layer: what the samples add, and apart what the tasks do.

        A first input that all samples share belongs to the tasks' part.
        """
        if task.weight_x is None:
            assert a is not None
            return a.flatten(0, -2) @ task.weight_a.t(), norm, activation, task.bias
        out = product(x.flatten(0, -2), task.weight_x, None)
        if a is None:
            return out, norm, activation, task.bias
        act, weight = a.flatten(0, -2).to(out.dtype), task.weight_a.t().to(out.dtype)
        if x.ndim < a.ndim:
            return act @ weight, norm, activation, task.bias + out
        return torch.addmm(out, act, weight), norm, activation, task.bias

    @staticmethod
    def _first_product(task: TaskInput, x: Tensor, a: Tensor | None) -> Tensor:
        """Return W_x x + W_a a + (W_e e + b), (..., n, H)."""
        if task.weight_x is None:
            out = task.bias
        else:
            out = product(x.flatten(0, -2), task.weight_x, None).view(*x.shape[:-1], -1)
            out = out + task.bias.to(out.dtype)
        if a is None:
            return out
        if out.shape[:-1] != a.shape[:-1]:
            out = out.expand(*a.shape[:-1], -1).clone(memory_format=torch.contiguous_format)
        rows, act, weight = out.view(-1, out.shape[-1]), a.flatten(0, -2).to(out.dtype), task.weight_a.t().to(out.dtype)
        if torch.is_grad_enabled():
            return torch.addmm(rows, act, weight).view(out.shape)  # in place, the derivative would take copies
        rows.addmm_(act, weight)  # in place, which saves a pass over memory
        return out


def effective_weight(linear: Any) -> Tensor:
    """Return the matrix a linear layer multiplies by, low-rank adapters included; gradients reach them.

    Args:
        linear: an `nn.Linear`, or one that PEFT has wrapped with LoRA (no dropout, no variant).
    """
    if type(linear) is nn.Linear:
        return linear.weight
    if isinstance(linear, nn.Linear):
        return derived(id(linear), lambda: linear.weight)  # which torch's parametrizations compute when it is read
    assert hasattr(linear, "get_delta_weight"), f"expected nn.Linear or a PEFT LoRA layer, not {type(linear)}"
    if linear.disable_adapters and linear.merged:
        linear.unmerge()  # as PEFT's own forward does
    weight = linear.get_base_layer().weight
    active = [adapter for adapter in linear.active_adapters if adapter in linear.lora_A]
    if linear.disable_adapters or linear.merged or not active:
        return weight
    return derived(id(linear), lambda: weight + sum(linear.get_delta_weight(adapter) for adapter in active))


class _MishWithGradient(torch.autograd.Function):
    """Mish that computes its derivative in the forward pass, which shares its terms: 1 - 2 r + 4 x e u r^2.

    e stands for e^x, u for e + 1 and r for 1 / (u^2 + 1). Passes over memory take the time, so there are few.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        e = x.clamp(max=20).exp_()  # beyond 20 nothing changes in float32, and u^4 must not overflow
        u = e + 1
        slope = e.mul_(u).mul_(x)
        one = x.new_ones(())
        r = torch.addcmul(one, u, u, out=u).reciprocal_()
        torch.addcmul(-one, slope, r, value=2, out=slope)
        ctx.save_for_backward(torch.addcmul(one, slope, r, value=2, out=slope))
        return torch.addcmul(x, x, r, value=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope
