"""What stands between two products, LayerNorm with Mish and LayerNorm with SimNorm: for torch, and for its compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.compute import Compute


def norm_mish(x: Tensor, weight: Tensor, bias: Tensor, compute: Compute) -> Tensor:
    """LayerNorm over the last dim, then Mish, of x (rows, width); weight and bias (width,)."""
    dtype = _result_type(x, weight, compute)
    if torch.compiler.is_compiling():
        return _norm_mish(x, weight, bias, dtype)
    return mish(F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias)).to(dtype)


def norm_simnorm(x: Tensor, weight: Tensor, bias: Tensor, group: int, compute: Compute) -> Tensor:
    """LayerNorm over the last dim, then SimNorm over groups of `group`, of x (rows, width)."""
    dtype = _result_type(x, weight, compute)
    if torch.compiler.is_compiling():
        return _norm_simnorm(x, weight, bias, group, dtype)
    return simnorm(F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias), group).to(dtype)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)), with one exponential: x - 2 x / (u^2 + 1), where u = e^x + 1.

    torch's own kernel takes 5 times as long on a CPU; on a GPU it is a single one and is used.

    Source: arXiv 1908.08681.
    """
    if x.is_cuda:
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _MishWithGradient.apply(x)
    # Where e^x overflows the quotient is 0, as it should be.
    return torch.addcdiv(x, x, x.exp().add_(1).square_().add_(1), value=-2)


def simnorm(x: Tensor, group: int) -> Tensor:
    """Softmax over groups of neighbouring features (..., Z), so that each group lies on a simplex.

    Source: TD-MPC2 (arXiv 2310.16828), section 3.1.
    """
    if x.shape[-1] % group:
        raise ValueError(f"SimNorm needs a width that is a multiple of {group}; it came {x.shape[-1]} wide")
    groups = x.unflatten(-1, (-1, group))
    # A softmax over so few neighbours is slow; over a stride it runs through whole vectors, copies included.
    return groups.transpose(-1, -2).softmax(-2).transpose(-1, -2).flatten(-2)


class _MishWithGradient(torch.autograd.Function):
    """Mish whose derivative is computed on the way forward, while its parts are at hand: 1 - 2 r + 4 x e u r^2.

    e stands for e^x, u for e + 1 and r for 1 / (u^2 + 1). What takes time is how often the memory is passed over.
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


# --- the same for the compiler, which fuses what it is given: no operation in place, no pass for its own sake -------


def _norm_mish(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    x = F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias)
    u = x.clamp(max=20).exp() + 1
    return torch.addcdiv(x, x, u * u + 1, value=-2).to(dtype)


def _norm_simnorm(x: Tensor, weight: Tensor, bias: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    x = F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias)
    # Maximum and sum over so few neighbours run member by member: a reduction over them would not be vectorised.
    groups = x.unflatten(-1, (-1, group))
    powers = (groups - _by_member(torch.maximum, groups)).exp()
    return (powers * _by_member(torch.add, powers).reciprocal()).flatten(-2).to(dtype)


def _by_member(combine: Callable[[Tensor, Tensor], Tensor], groups: Tensor) -> Tensor:
    """Combine (..., group) over its last dim, to (..., 1)."""
    return reduce(combine, groups.unbind(-1)).unsqueeze(-1)


def _result_type(x: Tensor, weight: Tensor, compute: Compute) -> torch.dtype:
    return x.dtype if compute.bfloat16 else weight.dtype
