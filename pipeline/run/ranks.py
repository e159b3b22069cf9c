"""The processes of one run: who does what, and what they tell each other beside gradients.

One process is a run of one rank; every method then returns what it was given, without a message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
RANK_SEEDS = 1_000_003  # apart, so that no rank draws what another one, or another use of the seed, draws


class PeerLost(RuntimeError):
    """Another process of the run has ended, so that this one cannot go on."""


class Ranks:
    """This process among those of the run.

    Flags, numbers and saves travel over gloo on the CPU, whatever carries the gradients: they need no device.

    Args:
        accelerator: names rank, count and device; None stands for one process on the CPU.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1
        self.device = accelerator.device if accelerator else torch.device("cpu")
        self._group: Any = None
        if self.count > 1:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    @property
    def is_first_of_machine(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.accelerator is None or self.accelerator.is_local_main_process

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Return this rank's part of a list: every `count`-th item, so that neighbours go to different ranks."""
        return list(items[self.rank :: self.count])

    def shares(self, total: int, weights: Sequence[float]) -> list[int]:
        """Split `total` among all ranks in proportion to `weights`, whole numbers that add up to `total`."""
        exact = total * np.asarray(weights, dtype=np.float64) / sum(weights)
        parts = np.floor(exact).astype(int)
        # What is left over goes to the largest remainders, the lower rank first where they are equal.
        order = np.argsort(-(exact - parts), kind="stable")
        parts[order[: total - parts.sum()]] += 1
        return parts.tolist()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank, in one message."""
        if self.count == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.uint8)
        with _peers():
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in found.tolist())

    def collect(self, value: Any) -> list[Any]:
        """Return every rank's value (plain Python or small arrays), rank after rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _peers():
            dist.all_gather_object(found, value, group=self._group)
        return found

    def from_main(self, value: Item | None) -> Item:
        """Return rank 0's value on every rank; what the others give is ignored."""
        found = [value]
        if self.count > 1:
            with _peers():
                dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.count > 1:
            with _peers():
                dist.barrier(group=self._group)

    def check_same(self, what: str, value: Any) -> None:
        """Refuse to go on where ranks that must agree do not.

        Raises:
            RuntimeError: a rank has another value than rank 0; the message says `what`.
        """
        values = self.collect(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RuntimeError(
                    f"{what} differ between rank 0 ({values[0]}) and rank {rank} ({other}). Do all machines see the "
                    "same folder, and run the same versions?"
                )

    def weighted_mean(self, values: Tensor, weight: int) -> Tensor:
        """Average a tensor over ranks, each weighing `weight`; on the device the gradients live on."""
        if self.accelerator is None or self.count == 1:
            return values
        message = torch.cat([values * weight, values.new_tensor([weight])])
        with _peers():
            message = self.accelerator.reduce(message, reduction="sum")
        return message[:-1] / message[-1]  # type: ignore[index]

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, weight: int) -> Tensor:
        """Average gradients and the loss over ranks, each weighing `weight`, in one message; returns the loss.

        A parameter without a gradient gets zeros: what this rank's batch did not reach, that of another may have. The
        loss travels along so that all ranks stop where one has a loss that is not finite. With several ranks, `grad` of
        each parameter is a part of one buffer from then on: what came back is copied nowhere.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return loss
        gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*gradients, loss.reshape(1), loss.new_ones(1)]).mul_(weight)
        with _peers():
            dist.all_reduce(flat)
        flat.div_(flat[-1].clone())
        *pieces, mean, _ = flat.split([*(gradient.numel() for gradient in gradients), 1, 1])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        return mean.reshape(())

    def autocast(self) -> Any:
        """Return the context of losses: bfloat16 products where runtime.precision asks for them."""
        return self.accelerator.autocast() if self.accelerator else nullcontext()

    def gather(self, values: Tensor) -> Tensor:
        """Return a one-dimensional tensor of any length joined over ranks, with NaNs where a rank has fewer values."""
        if self.count == 1:
            return values
        longest = torch.tensor([len(values)])  # on the CPU, as every number that decides a shape
        with _peers():
            dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=self._group)
            padded = F.pad(values, (0, int(longest) - len(values)), value=float("nan"))
            found = [torch.empty_like(padded) for _ in range(self.count)]
            dist.all_gather(found, padded)
        return torch.cat(found)

    def to_main(self, tensors: dict[str, Tensor]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """On rank 0 yield each rank and its tensors, one rank at a time; on the others send, and yield nothing.

        Rank 0 must exhaust the iterator.
        """
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if self.is_main:
            yield 0, own
            for rank in range(1, self.count):
                yield rank, self._receive(rank)
        else:
            with _peers():
                heads = [(name, tensor.dtype, tensor.shape) for name, tensor in own.items()]
                dist.send_object_list([heads], dst=0, group=self._group)
                for tensor in own.values():
                    if tensor.numel():
                        dist.send(_raw(tensor), dst=0, group=self._group)

    def _receive(self, rank: int) -> dict[str, Tensor]:
        heads: list[Any] = [None]
        with _peers():
            dist.recv_object_list(heads, src=rank, group=self._group)
            tensors = {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in heads[0]}
            for tensor in tensors.values():
                if tensor.numel():
                    dist.recv(_raw(tensor), src=rank, group=self._group)
        return tensors


def launched_processes() -> int:
    """Return how many processes the launcher (torchrun, accelerate) started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"another process of this run has ended; its own message says why ({error})") from error


def _raw(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as bytes, which every backend can send."""
    # Not by `reshape`: a single value may have any stride and counts as contiguous, but is no bytes then.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
