"""LayerNorm with Mish or SimNorm in one pass over memory, forward and backward, for CUDA: kernels in Triton.

Imported only where they are used: torch for CPUs comes without Triton. `fused.py` has the same as plain torch.
"""

# pyright: reportIndexIssue=false, reportMissingImports=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 256  # of the backward pass, each of which sums up the gradients of some rows


@triton.jit
def _activated(y, group: tl.constexpr, width: tl.constexpr):
    """Mish where `group` is 0, else a softmax over groups of neighbours."""
    if group == 0:
        e = tl.exp(tl.minimum(y, 20.0))
        u = e * (e + 2.0)
        return tl.where(y > 20.0, y, y * u / (u + 2.0))
    groups = tl.reshape(y, (width // group, group))
    e = tl.exp(groups - tl.max(groups, axis=1)[:, None])
    return tl.reshape(e / tl.sum(e, axis=1)[:, None], (width,))


@triton.jit
def _derived(y, grad, group: tl.constexpr, width: tl.constexpr):
    """Return the gradient by y of what `_activated` gives."""
    if group == 0:
        e = tl.exp(tl.minimum(y, 20.0))
        u = e * (e + 2.0)
        t = u / (u + 2.0)
        slope = t + y * (1.0 - t * t) * e / (e + 1.0)
        return grad * tl.where(y > 20.0, 1.0, slope)
    groups, grads = tl.reshape(y, (width // group, group)), tl.reshape(grad, (width // group, group))
    e = tl.exp(groups - tl.max(groups, axis=1)[:, None])
    p = e / tl.sum(e, axis=1)[:, None]
    return tl.reshape(p * (grads - tl.sum(p * grads, axis=1)[:, None]), (width,))


@triton.jit
def _forward(
    x, tasks, weight, bias, y, mean, rstd, rows, num_tasks, hidden, eps,
    has_tasks: tl.constexpr, group: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """One row per program; `rows` of each network, whose weights they share."""
    row = tl.program_id(0).to(tl.int64)
    network = row // rows
    column = tl.arange(0, width)
    inside = column < hidden
    value = tl.load(x + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
    if has_tasks:
        task = network * num_tasks + (row % rows) % num_tasks
        value += tl.load(tasks + task * hidden + column, mask=inside, other=0.0).to(tl.float32)
    center = tl.sum(value, axis=0) / hidden
    off = tl.where(inside, value - center, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(off * off, axis=0) / hidden + eps)
    w = tl.load(weight + network * hidden + column, mask=inside, other=0.0)
    b = tl.load(bias + network * hidden + column, mask=inside, other=0.0)
    found = _activated(off * scale * w + b, group, width)
    tl.store(y + row * hidden + column, found, mask=inside)
    tl.store(mean + row, center)
    tl.store(rstd + row, scale)


@triton.jit
def _backward(
    grad, x, tasks, weight, bias, mean, rstd, dx, dweight, dbias, rows, num_tasks, hidden,
    has_tasks: tl.constexpr, group: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Every `num_programs(1)`-th row of a network per program, and the sums of what they give its weight and bias."""
    network, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, width)
    inside = column < hidden
    w = tl.load(weight + network * hidden + column, mask=inside, other=0.0)
    b = tl.load(bias + network * hidden + column, mask=inside, other=0.0)
    of_weight = tl.zeros((width,), dtype=tl.float32)
    of_bias = tl.zeros((width,), dtype=tl.float32)
    for number in range(part, rows, parts):
        row = network * rows + number
        value = tl.load(x + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
        if has_tasks:
            task = network * num_tasks + number % num_tasks
            value += tl.load(tasks + task * hidden + column, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        normal = tl.where(inside, (value - tl.load(mean + row)) * scale, 0.0)
        given = tl.load(grad + row * hidden + column, mask=inside, other=0.0).to(tl.float32)
        of_y = tl.where(inside, _derived(normal * w + b, given, group, width), 0.0)
        of_weight += of_y * normal
        of_bias += of_y
        of_normal = of_y * w
        first = tl.sum(of_normal, axis=0) / hidden
        second = tl.sum(of_normal * normal, axis=0) / hidden
        tl.store(dx + row * hidden + column, scale * (of_normal - first - normal * second), mask=inside)
    place = (network * parts + part) * hidden + column
    tl.store(dweight + place, of_weight, mask=inside)
    tl.store(dbias + place, of_bias, mask=inside)


def forward(
    x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the activations of x (M, rows, H), and mean and 1 / std of each row; `fused.py` says what the rest is."""
    networks, rows, hidden = x.shape
    width = triton.next_power_of_2(hidden)
    y = torch.empty(x.shape, dtype=torch.float32 if group else x.dtype, device=x.device)
    mean, rstd = torch.empty(2, networks * rows, dtype=torch.float32, device=x.device)
    if networks * rows:
        _forward[(networks * rows,)](
            x, x if tasks is None else tasks, weight, bias, y, mean, rstd, rows,
            1 if tasks is None else tasks.shape[1], hidden, eps, tasks is not None, group, width,
            num_warps=_warps(width),
        )  # fmt: skip
    return y, mean, rstd


def backward(
    grad: Tensor, x: Tensor, tasks: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (M, rows, H), weight and bias (M, H)."""
    networks, rows, hidden = x.shape
    width, programs = triton.next_power_of_2(hidden), min(max(rows, 1), _PROGRAMS)
    dx = torch.empty_like(x)
    sums = torch.empty(2, networks, programs, hidden, dtype=torch.float32, device=x.device)
    _backward[(networks, programs)](
        grad, x, x if tasks is None else tasks, weight, bias, mean, rstd, dx, sums[0], sums[1], rows,
        1 if tasks is None else tasks.shape[1], hidden, tasks is not None, group, width,
        num_warps=_warps(width),
    )  # fmt: skip
    dweight, dbias = sums.sum(2)
    return dx, dweight, dbias


def _warps(width: int) -> int:
    return min(max(width // 256, 1), 8)
