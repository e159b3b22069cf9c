"""Measure what experts cost: an update and a plan of a model with routed experts against the plain model.

    python -m benchmarks.experts                  # size B, batch of 256, 8 experts, top-1

The plain model is that of the same sizes without experts, whose middle layers multiply a row by as many weights:
mlp_dim^2 against 3 (top_k + shared) hidden mlp_dim, with `hidden` rounded up to a multiple of 8. Both run in one
process, turn by turn, on process time; a figure is the median. It prints and writes nothing: `claims` is what others
write down.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch

from benchmarks import results
from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from benchmarks.speed import _PLANNER, model_size
from pipeline import config
from pipeline.model.compute import choose
from pipeline.model.planner import PlanDraws, plan
from pipeline.train.objective import UpdateDraws
from pipeline.train.step import Learner, Mode

_NUM_TASKS = 8
_TARGET = 1.5
_PARTS = ("dynamics", "reward", "policy", "q")


def with_experts(
    sizes: config.Model, num: int = 8, top_k: int = 1, shared: bool = True, router: Literal["latent", "task"] = "latent"
) -> config.Model:
    """Return sizes with experts in every part that may have them, as wide as to multiply a row by as many weights."""
    hidden = 8 * math.ceil(sizes.mlp_dim / (3 * (top_k + shared)) / 8)
    experts = config.Experts(_PARTS, num, top_k, hidden, shared, router, 1.0, 0.01)
    return dataclasses.replace(sizes, experts=experts)


def measure_update(size: str, batch_size: int, mode: Mode, repeats: int, **experts: Any) -> dict[str, float]:
    """Return the milliseconds of one whole update (losses, gradients, clipping, Adam, target Q), plain and routed."""
    dense = model_size(size)
    table = make_table(dense, _NUM_TASKS)
    batch = make_batch(table, dense, batch_size)
    draws = UpdateDraws.sample(batch, table.num_phrasings, dense.num_q, torch.Generator().manual_seed(0))
    compute = choose("auto", False, "cpu")
    functions: dict[str, Callable[[], Any]] = {}
    for name, sizes in {"plain": dense, "experts": with_experts(dense, **experts)}.items():
        learner = Learner(make_model(sizes, fill=False), table, LEARNING, compute=compute)
        functions[name] = partial(learner.update, batch, mode, draws)
    return _medians(functions, repeats)


def measure_plan(size: str, num_envs: int, repeats: int, **experts: Any) -> dict[str, float]:
    """Return the milliseconds of one plan with the published settings, plain and routed."""
    dense, compute = model_size(size), choose("auto", False, "cpu")
    table = make_table(dense, _NUM_TASKS)
    draw = torch.Generator().manual_seed(0)
    rows = torch.arange(num_envs) % _NUM_TASKS
    draws = PlanDraws.sample(_PLANNER, num_envs, dense.action_dim, dense.num_q, draw)
    obs, first = torch.randn(num_envs, dense.obs_dim, generator=draw), torch.zeros(num_envs, dtype=torch.bool)
    mean = torch.zeros(_PLANNER.horizon, num_envs, dense.action_dim)
    functions: dict[str, Callable[[], Any]] = {}
    for name, sizes in {"plain": dense, "experts": with_experts(dense, **experts)}.items():
        model = make_model(sizes, fill=False)
        with torch.no_grad():
            ctx = model.context(table.embeddings[rows, 0], compute, target_q=())
        rest = (obs, _PLANNER, mean, first, table.discount[rows], table.action_mask[rows], draws, 1.0)
        functions[name] = partial(plan, model, ctx, *rest)
    return _medians(functions, repeats)


def claims(repeats: int = 9) -> dict[str, dict[str, Any]]:
    """Measure what is promised of experts: an update of size B with a batch of 256, 8 experts, top-1."""
    ms = measure_update("B", 256, "online", repeats)
    return {"experts_update_ratio": results.claim(round(ms["experts"] / ms["plain"], 3), _TARGET, "below")}


def _medians(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.process_time()
            function()
            times[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B", choices=("Q", "S", "B", "L"), help="of the model")
    parser.add_argument("--batch", type=int, default=256, help="slices per update")
    parser.add_argument("--num", type=int, default=8, help="routed experts")
    parser.add_argument("--top-k", type=int, default=1)
    parser.add_argument("--router", default="latent", choices=("latent", "task"))
    parser.add_argument("--without-shared", action="store_true", help="no shared expert, twice as wide routed ones")
    parser.add_argument("--envs", type=int, default=8, help="environments planned for at once")
    parser.add_argument("--repeats", type=int, default=9, help="turns per figure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    of = {"num": options.num, "top_k": options.top_k, "shared": not options.without_shared, "router": options.router}
    sizes = with_experts(model_size(options.size), **of)
    weights = [sum(value.numel() for value in make_model(one, fill=False).parameters() if value.requires_grad)
               for one in (model_size(options.size), sizes)]  # fmt: skip
    assert sizes.experts is not None
    print(f"size {options.size}: {weights[0] / 1e6:.2f} M trained parameters, with experts {weights[1] / 1e6:.2f} M "
          f"({options.num} of width {sizes.experts.hidden})")  # fmt: skip
    measured = {
        f"update {mode}, batch {options.batch}": measure_update(
            options.size, options.batch, mode, options.repeats, **of
        )
        for mode in ("online", "pretrain")
    }
    measured[f"plan, {options.envs} environments"] = measure_plan(options.size, options.envs, options.repeats, **of)
    for name, ms in measured.items():
        ratio = ms["experts"] / ms["plain"]
        print(f"{name:28} plain {ms['plain']:9.1f} ms   experts {ms['experts']:9.1f} ms   {ratio:5.2f} x")


if __name__ == "__main__":
    main()
