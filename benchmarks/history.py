"""What dynamics with history cost: plans with and without kept keys and values, and updates, against the MLP.

    python -m benchmarks.history                # size Q, the default of params.yaml
    python -m benchmarks.history --size B --context 16

The Transformer's width is the multiple of 8 at which its dynamics have as many parameters as the MLP's, or just fewer.
All sides run in one process on the same random numbers, turn by turn; a figure is the median, in milliseconds of this
process. Plans are compared before they are timed: those of one model must agree however its past is kept.

Ways to plan with the Transformer:
    kept      keys and values are kept, those of the past once per environment: what `pipeline.model.history` does
    copied    kept as well, but handed to torch's attention, which wants the past once per sample
    anew      nothing is kept: every step computes the whole sequence of every sample again
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from benchmarks.speed import Clock, model_size
from pipeline import config
from pipeline.model import history
from pipeline.model.compute import choose
from pipeline.model.history import ConditionedHistory, KeysValues
from pipeline.model.planner import PlanDraws, plan
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.run.provenance import commit, machine
from pipeline.shapes import Past, Plan
from pipeline.train.step import Learner

_PLANNER = config.Planner(
    horizon=3, iterations=3, num_samples=64, num_policy_samples=16, num_elites=16, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
_NUM_TASKS = 8


class Tokens(NamedTuple):
    """The memory of `Anew`: the latents and actions themselves, a column per sample of an environment."""

    z: Tensor  # (steps, N, Z) at first, then (steps, P N, Z)
    a: Tensor  # likewise
    length: Tensor  # (N,), how many steps of the past count
    steps: int


class Anew(ConditionedHistory):
    """The same Transformer, which keeps nothing but its inputs."""

    def remember(self, z: Tensor, a: Tensor, length: Tensor) -> Any:
        """Keep the past as it came."""
        return Tokens(z, a, length, 0)

    def step(self, z: Tensor, a: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Compute everything up to this step for every sample, and read the last token."""
        samples, num_envs = a.shape[:2]
        past_z, past_a, length = memory.z, memory.a, memory.length
        if memory.steps == 0:
            past_z, past_a = (part.repeat(1, samples, 1) for part in (past_z, past_a))
        z = z.expand(samples, num_envs, z.shape[-1])
        past_z, past_a = torch.cat([past_z, z.reshape(1, -1, z.shape[-1])]), torch.cat([past_a, a.flatten(0, 1)[None]])
        told = ConditionedHistory(*self).take(torch.arange(num_envs, device=z.device).repeat(samples))
        hidden, _ = told.whole(past_z, past_a, length.repeat(samples) + memory.steps + 1)
        out = self.head(hidden[-1], self.compute, None)
        return out.view(samples, num_envs, -1), Tokens(past_z, past_a, length, memory.steps + 1)


def attend_by_torch(
    q: Tensor, past: KeysValues, unseen: Tensor, own: tuple[KeysValues, ...], steps: int, distance: Tensor
) -> Tensor:
    """What `history._attend` computes, by torch's attention over the past copied once per sample."""
    num_past = past.keys.shape[2]
    gone = min(max(num_past + steps + 1 - distance.shape[1], 0), num_past)
    parts = []
    for kind, own_parts in zip(past, zip(*own, strict=True), strict=True):
        shared = kind[:, :, None, gone:].expand(-1, -1, q.shape[2], -1, -1)
        parts.append(torch.cat([shared, torch.stack(own_parts, dim=-2)], dim=-2))
    score = torch.cat(
        [distance[:, steps + 1 : steps + 1 + num_past - gone].flip(1), distance[:, : len(own)].flip(1)], 1
    )
    hidden = F.pad(unseen[:, gone:], (0, len(own)))[:, None, None, None]
    score = score[None, :, None, None].masked_fill(hidden, float("-inf"))
    # Torch's attention knows four dims: samples join the heads.
    score = score.expand(-1, -1, q.shape[2], -1, -1).flatten(1, 2)
    keys, values = (part.flatten(1, 2) for part in parts)
    return F.scaled_dot_product_attention(q.flatten(1, 2).unsqueeze(-2), keys, values, attn_mask=score).view(q.shape)


@contextmanager
def copied() -> Iterator[None]:
    """Let rollouts attend by `attend_by_torch`."""
    with mock.patch.object(history, "_attend", attend_by_torch):
        yield


def same_parameters(sizes: config.Model, settings: config.History) -> config.Model:
    """Return sizes with history, as wide as gives its dynamics no more parameters than the MLP has."""
    aim = num_parameters(make_model(sizes).dynamics)
    best = None
    for dim in range(8 * math.ceil(settings.heads / math.gcd(settings.heads, 8)), 4096, 8):
        if dim % settings.heads:
            continue
        wide = dataclasses.replace(sizes, history=dataclasses.replace(settings, dim=dim, mlp_dim=2 * dim))
        with torch.device("meta"):
            if num_parameters(WorldModel(wide).dynamics) > aim:
                break
        best = wide
    if best is None:
        raise SystemExit("even the narrowest Transformer has more parameters than the MLP: take fewer layers")
    return best


def num_parameters(module: torch.nn.Module) -> int:
    """Count the weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def plans(sizes: dict[str, config.Model], num_envs: int, context: int) -> dict[str, Callable[[], Plan]]:
    """Return a call per way of planning, all on the same observations and random numbers."""
    plain = sizes["MLP"]
    table, draw = make_table(plain, _NUM_TASKS), torch.Generator().manual_seed(0)
    rows = torch.arange(num_envs) % _NUM_TASKS
    obs, mean = torch.randn(num_envs, plain.obs_dim, generator=draw), torch.zeros(3, num_envs, plain.action_dim)
    draws = PlanDraws.sample(_PLANNER, num_envs, plain.action_dim, plain.num_q, draw)
    seen = torch.randn(context, num_envs, plain.obs_dim, generator=draw)
    done = 2 * torch.rand(context, num_envs, plain.action_dim, generator=draw) - 1
    past = Past(seen, done * table.action_mask[rows], torch.arange(num_envs) % (context + 1))
    how = choose("auto", False, "cpu")

    def call(model: WorldModel, ctx: TaskContext, past: Past | None) -> Plan:
        first = torch.ones(num_envs, dtype=torch.bool)
        mask, discount = table.action_mask[rows], table.discount[rows]
        return plan(model, ctx, obs, _PLANNER, mean, first, discount, mask, draws, past=past)

    made: dict[str, Callable[[], Plan]] = {}
    for name, size in sizes.items():
        model = make_model(size)
        with torch.no_grad():
            ctx = model.context(table.embeddings[:, 0], how).take(rows)
        if not isinstance(ctx.dynamics, ConditionedHistory):
            made[name] = partial(call, model, ctx, None)
            continue
        made[f"{name}, kept"] = kept = partial(call, model, ctx, past)
        if size.history is not None and size.history.backbone == "dynamics":
            made[f"{name}, copied"] = partial(_within_copied, kept)
            made[f"{name}, anew"] = partial(call, model, ctx._replace(dynamics=Anew(*ctx.dynamics)), past)
    return made


def _within_copied(call: Callable[[], Plan]) -> Plan:
    with copied():
        return call()


def updates(sizes: dict[str, config.Model], batch_size: int, context: int) -> dict[str, Callable[[], Any]]:
    """Return a call per model that makes one online update."""
    made: dict[str, Callable[[], Any]] = {}
    for name, size in sizes.items():
        table, draw = make_table(size, _NUM_TASKS), torch.Generator().manual_seed(0)
        batch = make_batch(table, size, batch_size)
        if size.history is not None:
            seen = torch.randn(context, batch_size, size.obs_dim, generator=draw)
            done = 2 * torch.rand(context, batch_size, size.action_dim, generator=draw) - 1
            batch = batch._replace(past=Past(seen, done, torch.full((batch_size,), context)))
        learner = Learner(make_model(size, fill=False), table, LEARNING, compute=choose("auto", False, "cpu"))
        made[name] = partial(learner.update, batch, "online", draw)
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="Q", help="of the world model: Q, S, B or L")
    parser.add_argument("--context", type=int, default=8)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120, help="after which no further turn is begun")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = model_size(options.size)
    settings = config.History(options.context, options.layers, options.heads, 8 * options.heads, 8, "dynamics")
    wide = same_parameters(plain, settings)
    assert wide.history is not None
    sizes = {"MLP": plain, "Transformer": wide}
    sizes["shared backbone"] = dataclasses.replace(wide, history=dataclasses.replace(wide.history, backbone="shared"))
    print(f"{machine()}, commit {commit()}, 1 thread; size {options.size}, context {options.context}, {options.layers} "
          f"layers of width {wide.history.dim}, {options.envs} environments, batch {options.batch}")  # fmt: skip
    for name, size in sizes.items():
        model = make_model(size)
        print(f"{name:24} parameters: dynamics {num_parameters(model.dynamics):9,}   all {num_parameters(model):10,}")
    made = plans(sizes, options.envs, options.context)
    usual = made["Transformer, kept"]()
    for name, call in made.items():
        if name.startswith("Transformer"):
            error = float((call().mean - usual.mean).abs().max())
            print(f"{name:24} the plan differs from `kept` by at most {error:.1e}")
            if error > 1e-3:
                raise SystemExit("the ways do not compute the same: nothing was timed")
    clock, deadline = Clock(torch.device("cpu")), time.monotonic() + options.seconds
    for title, calls in (("plan", made), ("online update", updates(sizes, options.batch, options.context))):
        ms = clock.medians(list(calls.values()), options.repeats, deadline)
        for name, median in zip(calls, ms, strict=True):
            print(f"{title:14} {name:24} {median:9.1f} ms   {median / ms[0]:5.2f} x MLP")


if __name__ == "__main__":
    main()
