"""How a model is computed: by which library its products, in which precision, compiled or not.

The mathematics is the same in every way; what changes is the rounding, and the time.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, library

Matmul = Literal["torch", "onednn"]
Result = TypeVar("Result")

# oneDNN spends some 15 us before it starts and reads matrices less well than MKL until they are large: with fewer
# multiplications than this, models of the default size came out 3 to 10 % slower with it.
_MIN_ONEDNN_WORK = 2**26


class Compute(NamedTuple):
    """What computes a model. Of one process, it is made by `choose`; by itself it is the plainest way."""

    matmul: Matmul = "torch"  # library of float32 products on a CPU
    compile: bool = False  # planning and losses
    bfloat16: bool = False  # products in bfloat16, everything else in float32


PLAIN = Compute()


def choose(matmul: Literal["auto", "torch", "onednn"], compile: bool, device: torch.device | str) -> Compute:
    """Return how to compute on a device.

    Args:
        matmul: "auto" takes oneDNN where it is the faster one: on an AMD processor with AVX-512, which torch's MKL
            drives as if it had AVX2 only. The rule reads what the processor is and measures nothing, so that a resumed
            run computes the same bits.
        compile: planning and losses, by torch.compile.
        device: where the model lies.

    Raises:
        ValueError: compiling needs a C++ compiler and there is none, or oneDNN is asked for where it is absent.
    """
    device = torch.device(device)
    if compile and device.type == "cpu":
        _require_compiler()
    if matmul == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError("runtime.matmul is `onednn`, but this torch was built without it. Set it to `auto`.")
    if device.type != "cpu":
        return Compute("torch", compile)
    if matmul == "auto":
        matmul = "onednn" if torch.backends.mkldnn.is_available() and _mkl_is_held_back() else "torch"
    return Compute(matmul, compile)


@cache
def compiled_whole(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return a function compiled in one piece; what cannot be is an error, and never left to Python in silence."""
    return torch.compile(function, fullgraph=True)


def let_vary(tensors: Iterable[Tensor], dim: int) -> None:
    """Tell the compiler that this dim of tensors differs from call to call, so that it compiles once for all sizes.

    A size of 1 is compiled for itself.
    """
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)


def _require_compiler() -> None:
    from torch._inductor import config as inductor

    wanted = [name for name in inductor.cpp.cxx if name] if isinstance(inductor.cpp.cxx, tuple) else [inductor.cpp.cxx]
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"runtime.compile needs a C++ compiler and none of {', '.join(wanted)} was found. Install one (on Debian "
            "and Ubuntu: `apt install g++`), name one in the environment variable CXX, or set runtime.compile to "
            "false, which needs none."
        )


@cache
def _mkl_is_held_back() -> bool:
    """Whether this is an AMD processor with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in vendor


def ready(weight: Tensor, compute: Compute) -> Tensor:
    """Return a matrix (out, in) in the form its products want: contiguous for oneDNN, or in bfloat16.

    A slice of a larger matrix is what oneDNN multiplies by a thousand times slower; copying it once costs less than
    the hundredth part of one product. torch's own product takes slices as they are.
    """
    if compute.bfloat16:
        return weight.to(torch.bfloat16, memory_format=torch.contiguous_format)
    return weight.contiguous() if compute.matmul == "onednn" else weight


def product(x: Tensor, weight: Tensor, bias: Tensor | None, compute: Compute) -> Tensor:
    """Return x W^T + b for x (rows, in) and W (out, in) from `ready`."""
    if compute.bfloat16:
        return F.linear(x.to(weight.dtype), weight, bias)
    work = x.shape[0] * weight.numel() if compute.matmul == "onednn" else 0
    if work < _MIN_ONEDNN_WORK or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNN.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return _onednn_in_graph(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@library.custom_op("eft::onednn", mutates_args=())
def _onednn_in_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same for compiled code: torch's compiler takes its own operator with constant weights alone."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_onednn_in_graph.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


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
