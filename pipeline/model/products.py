"""Matrix products: by which library, in which precision. One switch for a whole plan or update.

    with products.use("onednn"):
        ...

The mathematics is the same in every mode; what changes is the rounding, and the time.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# torch: torch's own. onednn: float32 by oneDNN. bfloat16: products in bfloat16, everything else in float32.
Mode = Literal["torch", "onednn", "bfloat16"]

# A call of oneDNN costs some 15 us, and small matrices are slower in it than in MKL: below this many multiplications,
# models of the default size were 3 to 10 % slower with it.
_MIN_ONEDNN_WORK = 2**26

_mode: ContextVar[Mode] = ContextVar("products", default="torch")
_derived: ContextVar[dict[Any, Tensor] | None] = ContextVar("derived weights", default=None)


@contextmanager
def use(mode: Mode) -> Iterator[None]:
    """Compute products in this mode within the context."""
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Cache what is derived from weights; the caller promises that no weight changes within the context.

    Derived are the sum of a matrix and its low-rank adapter, and copies in bfloat16.
    """
    token = _derived.set({})
    try:
        yield
    finally:
        _derived.reset(token)


def choose(matmul: Literal["auto", "torch", "onednn"], device: torch.device | str) -> Mode:
    """Return the mode for float32 products on a device.

    Args:
        matmul: "auto" takes oneDNN where it is the faster one: on an AMD processor with AVX-512, which torch's MKL
            drives as if it had AVX2 only. The rule reads what the processor is and measures nothing, so that a resumed
            run computes the same bits. On a GPU "auto" multiplies float32 in TF32, and "torch" in full.
        device: where the model is.

    Raises:
        ValueError: `matmul` is "onednn", and this torch was built without it.
    """
    if matmul == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError("runtime.matmul is `onednn`, but this torch was built without it. Set it to `auto`.")
    if torch.device(device).type == "cuda":
        # TF32, as published; torch knows this for a whole process alone. What must not be rounded so, sums of bins
        # and of weights over time, are no products of matrices (`math.decode`).
        torch.set_float32_matmul_precision("highest" if matmul == "torch" else "high")
    if torch.device(device).type != "cpu" or matmul == "torch":
        return "torch"
    faster = torch.backends.mkldnn.is_available() and _mkl_lacks_avx512()
    return "onednn" if matmul == "onednn" or faster else "torch"


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b for x (rows, in) and W (out, in); with oneDNN, W must be contiguous (see `ready`)."""
    mode = _mode.get()
    if mode == "bfloat16":
        weight, bias = _bfloat16(weight), None if bias is None else _bfloat16(bias)
        return F.linear(x.to(torch.bfloat16), weight, bias)
    work = x.shape[0] * weight.numel() if mode == "onednn" else 0
    if work < _MIN_ONEDNN_WORK or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNN.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def ready(weight: Tensor) -> Tensor:
    """Return a slice of a matrix in the memory layout and dtype that `product` needs.

    oneDNN is a thousand times slower with a slice of a larger matrix, and a contiguous copy costs less than one
    hundredth of a product. torch's own product takes slices as they are.
    """
    mode = _mode.get()
    if mode == "bfloat16":
        return weight.to(torch.bfloat16, memory_format=torch.contiguous_format)
    return weight.contiguous() if mode == "onednn" else weight


def lowered(weights: Tensor) -> Tensor:
    """Return weights in the precision of products."""
    return weights.to(torch.bfloat16) if _mode.get() == "bfloat16" else weights


def derived(key: object, compute: Any) -> Tensor:
    """Return `compute()`, once per `key` within `fixed_weights`."""
    known = _derived.get()
    if known is None:
        return compute()
    if key not in known:
        known[key] = compute()
    return known[key]


def _bfloat16(weight: Tensor) -> Tensor:
    if weight.dtype == torch.bfloat16:
        return weight
    return derived((id(weight), "bfloat16"), lambda: weight.to(torch.bfloat16))


@cache
def _mkl_lacks_avx512() -> bool:
    """Whether this is an AMD processor with AVX-512, which MKL does not use there."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDNN(torch.autograd.Function):
    """A product by oneDNN and its derivatives. That of the weight stays with torch: both operands lie transposed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            _onednn(grad, weight.t(), None) if of_x else None,
            grad.t() @ x if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
