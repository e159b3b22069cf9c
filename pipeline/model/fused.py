"""LayerNorm and what follows it as one operation, where operations are launched: on a GPU one pass over memory.

What is here is the reference in plain torch, its derivative, and the choice between it and the kernels in Triton
(`kernels.py`). Networks of one form may be stacked: M of them at once, each with its own weights.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import library as operators

from pipeline.model import device

_EPS = 1e-5  # of torch's LayerNorm
# Named after the package, so that two versions of it can be in one process.
_NAMESPACE = __name__.partition(".")[0]


def usable(x: Tensor) -> bool:
    """Whether these operations are used for a tensor: on a GPU with Triton."""
    return device.pretends() or (x.is_cuda and _has_triton())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def norm_activation(x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, group: int) -> Tensor:
    """Return act(LayerNorm(x + tasks)), computed in float32; of Mish in the dtype of x, which the next product reads.

    Args:
        x: (rows, H), or (M, rows, H) of M stacked networks; float32 or bfloat16.
        tasks: (n, H) or (M, n, H), added to the rows: row r is of task r modulo n. None for nothing.
        weight, bias: (H,) or (M, H), of the normalisation.
        group: of SimNorm, a softmax over groups of so many neighbours; 0 for Mish.
    """
    hidden = x.shape[-1]
    stacked = x.reshape(-1, *x.shape[-2:])
    each = tasks if tasks is None else tasks.reshape(-1, *tasks.shape[-2:])
    y, _, _ = _operation(stacked, each, weight.reshape(-1, hidden), bias.reshape(-1, hidden), group)
    return y.view(x.shape)


@operators.custom_op(f"{_NAMESPACE}::norm_activation", mutates_args=())
def _operation(
    x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    if x.is_cuda:
        from pipeline.model import kernels

        x, tasks, weight, bias = map(_dense, (x, tasks, weight, bias))
        return kernels.forward(x, tasks, weight, bias, group, _EPS)
    return plain_forward(x, tasks, weight, bias, group)


@operators.custom_op(f"{_NAMESPACE}::norm_activation_backward", mutates_args=())
def _derivative(
    grad: Tensor, x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    if x.is_cuda:
        from pipeline.model import kernels

        grad, x, tasks, weight, bias = map(_dense, (grad, x, tasks, weight, bias))
        return kernels.backward(grad, x, tasks, weight, bias, mean, rstd, group)
    return plain_backward(grad, x, tasks, weight, bias, mean, rstd, group)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, tasks, weight, bias, ctx.group = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, tasks, weight, bias, mean, rstd)
    ctx.set_materialize_grads(False)  # nothing follows from mean and rstd


def _apply_derivative(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing follows from the activations either
        return (None,) * 5
    x, tasks, weight, bias, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = _derivative(grad, x, tasks, weight, bias, mean, rstd, ctx.group)
    dtasks = None
    if tasks is not None and ctx.needs_input_grad[1]:
        dtasks = dx.view(len(x), -1, *tasks.shape[1:]).sum(1).to(tasks.dtype)
    return dx, dtasks, dweight, dbias, None


_operation.register_autograd(_apply_derivative, setup_context=_keep)


def plain_forward(
    x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `kernels.forward` does, in plain torch: activations of x (M, rows, H), mean and 1 / std of rows."""
    value = _with_tasks(x, tasks)
    variance, mean = torch.var_mean(value, -1, correction=0)
    rstd = (variance + _EPS).rsqrt()
    y = (value - mean.unsqueeze(-1)) * rstd.unsqueeze(-1) * weight.unsqueeze(1) + bias.unsqueeze(1)
    found = _activate(y, group)
    return found if group else found.to(x.dtype), mean.flatten(), rstd.flatten()


def plain_backward(
    grad: Tensor, x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `kernels.backward` does, in plain torch: the gradients of x (M, rows, H), weight and bias (M, H)."""
    rows, grad = x.shape[:2], grad.to(rstd.dtype)
    scale = rstd.view(*rows, 1)
    normal = (_with_tasks(x, tasks) - mean.view(*rows, 1)) * scale
    y = normal * weight.unsqueeze(1) + bias.unsqueeze(1)
    if group:
        shares, grads = (part.unflatten(-1, (-1, group)) for part in (_activate(y, group), grad))
        of_y = (shares * (grads - (shares * grads).sum(-1, keepdim=True))).flatten(-2)
    else:
        of_y = torch.ops.aten.mish_backward(grad, y)
    of_normal = of_y * weight.unsqueeze(1)
    along = of_normal.mean(-1, keepdim=True) + normal * (of_normal * normal).mean(-1, keepdim=True)
    return (scale * (of_normal - along)).to(x.dtype), (of_y * normal).sum(1), of_y.sum(1)


def _dense(part: Any) -> Any:
    return part if part is None else part.contiguous()


def _with_tasks(x: Tensor, tasks: Tensor | None) -> Tensor:
    x = x.to(torch.get_default_dtype()) if x.dtype == torch.bfloat16 else x.clone()
    if tasks is None:
        return x
    return (x.view(len(x), -1, *tasks.shape[1:]) + tasks.unsqueeze(1)).view(x.shape)


def _activate(y: Tensor, group: int) -> Tensor:
    return y.unflatten(-1, (-1, group)).softmax(-1).flatten(-2) if group else F.mish(y)
