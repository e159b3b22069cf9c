"""Count what a GPU would be given for one plan and one update: operations, and reads that the processor waits for.

    python -m benchmarks.operations

Nothing is timed and no GPU is needed: the counts follow from the form of the model (that of size L, six iterations of
planning, as published) and not from widths, so small ones are counted. A mode of torch sees every operation that is
dispatched; those that only look at memory in another way are not counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from benchmarks.speed import model_size, published_planner
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.model import device
from pipeline.model.actor import Actor

# What may be dispatched at most. A test counts anew and fails above it.
BUDGET = {"plan": 700, "update": 600}
READS = ("_local_scalar_dense", "nonzero", "_unique", "unique_", "masked_select", "is_nonzero", "equal")
# What the processor does: it looks at memory in another way, or draws which Q members are used.
_NOT_LAUNCHED = ("randperm", "_unsafe_view", "lift_fresh", "detach_", "squeeze_", "unsqueeze_")


class Operations(TorchDispatchMode):
    """Counts operations by name within the context.

    Attributes:
        counted: those that are launched, by name.
        reads: those that wait for what a device has computed, by name.
        made: tensors made of numbers in the processor's memory, which would have to be copied to a device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if masked or name.startswith(READS):
            self.reads[f"{name} by a mask" if masked else name] += 1
        self.made += name == "lift_fresh"
        if func.namespace not in ("profiler", "prim") and not func.is_view and name not in _NOT_LAUNCHED:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """How many were launched."""
        return sum(self.counted.values())


@contextmanager
def as_launched() -> Iterator[None]:
    """Compute on this CPU by the operations that a GPU is given."""
    device.pretend_to_launch(True)
    try:
        yield
    finally:
        device.pretend_to_launch(False)


def count(work: Callable[[], object]) -> Operations:
    """Return what one call dispatches, as on a GPU, after a call that is not counted."""
    with as_launched():
        work()
        with Operations() as found:
            work()
    return found


def an_update(mode: Mode = "online", **options: Any) -> Callable[[], object]:
    """Return an update of a model in the form of size L; of its learning all is as published."""
    sizes = dataclasses.replace(model_size("L"), enc_dim=16, mlp_dim=16, latent_dim=16, task_dim=8)
    table = make_table(sizes, 8)
    learner = Learner(make_model(sizes), table, dataclasses.replace(LEARNING, online_bc_coef=0.0), **options)
    batch = make_batch(table, sizes, 32)
    draws = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, torch.Generator().manual_seed(0))
    return lambda: learner.update(batch, mode, draws)


def a_plan(num_envs: int = 8, **options: Any) -> Callable[[], object]:
    """Return a step of acting in which all environments plan, as published, at the form of size L."""
    sizes = dataclasses.replace(model_size("L"), enc_dim=16, mlp_dim=16, latent_dim=16, task_dim=8)
    planner = dataclasses.replace(published_planner("L"), num_samples=32, num_policy_samples=4, num_elites=8)
    actor = Actor(make_model(sizes), make_table(sizes, 8), planner, **options)
    actor.reset(num_envs, seed=0)
    obs, rows = torch.randn(num_envs, sizes.obs_dim), torch.arange(num_envs) % 8
    plan, weight = torch.ones(num_envs, dtype=torch.bool), torch.ones(num_envs)
    return lambda: actor.act(obs, rows, plan, True, weight)


def main() -> None:
    """Print what is dispatched."""
    for name, work in {"plan": a_plan(), "update": an_update(), "pretraining update": an_update("pretrain")}.items():
        found = count(work)
        limit = f" of at most {BUDGET[name]}" if name in BUDGET else ""
        print(f"{name}: {found.total} operations{limit}, {sum(found.reads.values())} reads {dict(found.reads)}")
        print("   ", ", ".join(f"{number} {op}" for op, number in found.counted.most_common(40)))


if __name__ == "__main__":
    main()
