"""Whole functions of tensors as one launch: CUDA graphs, captured from the code as it stands.

A captured function reads where its arguments lay when it was captured. So each form of call has buffers of its own:
arguments are copied in, the graph runs, and results are copied out. On a CPU all this is the same but that the function
itself runs on the buffers, every time: what a graph must not depend on shows there, in tests.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_WARM_UP = 2  # calls of a form that run as they are: kernels are chosen, and optimisers make their state
_KEPT = 8  # forms; of older ones the graphs are dropped, with their memory
_log = logging.getLogger(__name__)


class Graphs:
    """Runs functions by graphs, one for each form of call.

    Args:
        device: where all tensors are; nothing is captured on a CPU.

    Attributes:
        failed: why nothing is captured any more; None as long as it is.
    """

    def __init__(self, device: torch.device):
        self.device, self.failed = device, None
        self._forms: OrderedDict[Hashable, _Form] = OrderedDict()
        self._pool: Any = None

    def run(self, key: Hashable, function: Callable[..., Any], given: tuple, reads: Iterable[Tensor]) -> Any:
        """Return `function(*given)`; every call that the graph would not be right for makes another one.

        Args:
            key: what the function does beside its arguments, e.g. which adapter acts.
            function: of tensors; it may change tensors in `reads` in place, and reads no others but constants.
            given: its arguments: tensors on the device in tuples, lists and dicts, and None.
            reads: what it reads beside `given`, weights and the states of optimisers; where one lies elsewhere than
                before, as after a resume, the form is another one.
        """
        leaves, spec = pytree.tree_flatten(given)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        rest = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        form_key = key, repr(spec), rest, shapes, tuple(tensor.data_ptr() for tensor in reads)
        form = self._forms.pop(form_key, None) or _Form(tensors)
        self._forms[form_key] = form
        while len(self._forms) > _KEPT:
            self._forms.popitem(last=False)
        for buffer, tensor in zip(form.buffers, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        buffers = iter(form.buffers)
        arguments = pytree.tree_unflatten([next(buffers) if isinstance(x, Tensor) else x for x in leaves], spec)
        form.calls += 1
        if self.device.type != "cuda" or self.failed is not None:
            return _copied(function(*arguments))
        if form.calls <= _WARM_UP:
            return self._beside(function, arguments)
        graph = form.graph if form.graph is not None else self._capture(form, function, arguments)
        if graph is None:
            return _copied(function(*arguments))
        graph.replay()
        return _copied(form.results)

    def _beside(self, function: Callable[..., Any], arguments: Any) -> Any:
        """Run a function as it is, on a stream of its own, as what is captured will be."""
        stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            found = function(*arguments)
        current.wait_stream(stream)
        return _copied(found)

    def _capture(self, form: _Form, function: Callable[..., Any], arguments: Any) -> Any:
        """Capture a function; nothing runs meanwhile. Return the graph, or None where it could not be captured."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                form.results = function(*arguments)
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"
            _log.warning("CUDA graphs are off: this cannot be captured (%s). All goes on without, slower.", self.failed)
            torch.cuda.synchronize(self.device)
            return None
        form.graph = graph
        return graph


class _Form:
    """The buffers of one form of call, and its graph."""

    def __init__(self, tensors: list[Tensor]):
        self.buffers = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]
        self.calls = 0
        self.graph: Any = None
        self.results: Any = None


def _copied(found: Any) -> Any:
    """Copy results out of memory that the next call overwrites."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), found)
