"""Measure our model, planner, update and replay against the plain ones of `benchmarks.plain` and `.plain_replay`.

    python -m benchmarks.speed --quick          # size B alone, within 50 s
    python -m benchmarks.speed                  # sizes S, B and L; writes results/speed.json, on a GPU speed_gpu.json

Both sides run in one process on the same weights and random numbers, turn by turn, after a warm-up; a figure is the
median. On a CPU it is process time, so that other programs disturb less, on a GPU the time
between two CUDA events. Beside each time stands its share of what this machine reaches in a bare matrix product.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain, results
from benchmarks.plain_replay import PlainReplay
from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from pipeline import config
from pipeline.files import write_json
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.learn.replay import ReplayBuffer
from pipeline.model import products
from pipeline.model.planner import PlanDraws, plan
from pipeline.run.provenance import commit, machine

_WIDTHS = {  # enc_dim, mlp_dim, latent_dim, encoder layers, Q members; Q is the default of params.yaml
    "Q": (128, 192, 128, 2, 3),
    "S": (128, 256, 384, 2, 3),
    "B": (256, 512, 512, 2, 5),
    "L": (1024, 1024, 512, 3, 5),
}
_PLANNER = config.Planner(
    horizon=3, iterations=6, num_samples=512, num_policy_samples=24, num_elites=64, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
_SMALL_PLANNER = dataclasses.replace(_PLANNER, iterations=3, num_samples=64, num_policy_samples=16, num_elites=16)
_NUM_TASKS = 8
_QUICK_SECONDS = 25.0  # a quick run begins nothing after it: imports and the case under way come on top


def model_size(name: str) -> config.Model:
    """Return the parameters of a size: S, B or L with a text embedding of 512, or Q, the default of params.yaml."""
    enc_dim, mlp_dim, latent_dim, num_enc_layers, num_q = _WIDTHS[name]
    return config.Model(
        obs_dim=128, action_dim=16, task_dim=384 if name == "Q" else 512, latent_dim=latent_dim, enc_dim=enc_dim,
        num_enc_layers=num_enc_layers, mlp_dim=mlp_dim, num_q=num_q, num_bins=101, bin_min=-10.0, bin_max=10.0,
        simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
    )  # fmt: skip


def published_planner(size: str) -> config.Planner:
    """Return how the paper plans; for size Q, how params.yaml does."""
    return _SMALL_PLANNER if size == "Q" else _PLANNER


class Clock:
    """Times calls: CPU time of this process, or the time between two events on the GPU."""

    def __init__(self, device: torch.device):
        self.device = device

    def time(self, function: Callable[[], Any]) -> float:
        """Return the milliseconds of one call."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end)
        started = time.process_time()
        function()
        return 1000 * (time.process_time() - started)

    def medians(self, functions: Sequence[Callable[[], Any]], repeats: int, deadline: float) -> list[float]:
        """Time functions turn by turn, after calls of each that do not count; past the deadline once."""
        for function in functions:
            self.time(function)
        times: list[list[float]] = []
        while len(times) < repeats and (not times or time.monotonic() < deadline):
            times.append([self.time(function) for function in functions])
        return [statistics.median(column) for column in zip(*times, strict=True)]


class Bench:
    """One run: what is measured, on which device, how often.

    Args:
        device: where everything lies.
        repeats: turns per figure.
        deadline: `time.monotonic()` after which no further case is begun.
    """

    def __init__(self, device: torch.device, repeats: int, deadline: float):
        self.device, self.repeats, self.deadline, self.clock = device, repeats, deadline, Clock(device)
        self.matmul = products.choose("auto", device)
        self.ways: dict[str, products.Mode] = {"fp32": self.matmul, "bf16": "bfloat16"}
        if self.matmul != "torch":
            self.ways["fp32_torch"] = "torch"  # the same matrix library on both sides
        self.gflops = {"fp32": self._rate(False), "bf16": self._rate(True)}
        self.ratios: dict[str, float] = {}
        self.ms: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        print(f"float32 products: {self.matmul}. This machine reaches {self.gflops['fp32']:.0f} GFLOP/s in float32 "
              f"and {self.gflops['bf16']:.0f} in bfloat16.", flush=True)  # fmt: skip

    def plan(self, size: str, num_envs: int, ways: Sequence[str]) -> None:
        """Measure one plan for `num_envs` environments, planning as the paper does (Q: as params.yaml does)."""
        sizes, planner = model_size(size), published_planner(size)
        model, table = make_model(sizes, fill=False).to(self.device), make_table(sizes, _NUM_TASKS).to(self.device)
        draw = torch.Generator().manual_seed(0)
        rows = (torch.arange(num_envs) % _NUM_TASKS).to(self.device)
        draws = PlanDraws.sample(planner, num_envs, sizes.action_dim, sizes.num_q, draw).to(self.device)
        obs = torch.randn(num_envs, sizes.obs_dim, generator=draw).to(self.device)
        emb = table.embeddings[rows, 0]
        mean = torch.zeros(planner.horizon, num_envs, sizes.action_dim, device=self.device)
        first = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        given = obs, planner, mean, first
        rest = (*given, table.discount[rows], table.action_mask[rows], draws, 1.0)
        work = plan_flop(sizes, planner, num_envs)
        functions: dict[str, Callable[[], Any]] = {"plain": partial(plain.plan, model, emb, *rest)}
        for way in ways:
            with torch.no_grad(), products.use(self.ways[way]):
                ctx = model.context(table, rows, target_q=())
            functions[way] = self._in_mode(way, partial(plan, model, ctx, *given, draws, 1.0))
        self._measure(f"plan_{size}_{num_envs}", functions, work)

    def update(self, size: str, batch_size: int, mode: Mode, ways: Sequence[str]) -> None:
        """Measure one full update, "online" (the model's and the policy's step) or "pretrain"."""
        sizes = model_size(size)
        table = make_table(sizes, _NUM_TASKS).to(self.device)
        batch = make_batch(table.to("cpu"), sizes, batch_size).to(self.device)
        draws = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, torch.Generator().manual_seed(0))
        make = partial(make_model, sizes, fill=False)
        reference = plain.PlainLearner(make().to(self.device), table, LEARNING)
        functions: dict[str, Callable[[], Any]] = {
            "plain": partial(reference.update, batch, mode == "pretrain", draws)
        }  # fmt: skip
        for way in ways:
            learner = Learner(make().to(self.device), table, LEARNING, mode=self.ways[way])
            functions[way] = partial(learner.update, batch, mode, draws)
        counted = Learner(make().to(self.device), table, LEARNING)
        with FlopCounterMode(display=False) as counter:
            counted.update(batch, mode, draws)
        self._measure(f"update_{size}_{batch_size}_{mode}", functions, counter.get_total_flops())

    def sample(self, num_transitions: int, batch_size: int) -> None:
        """Measure drawing slices of 4 observations from a replay of `num_transitions`."""
        length, obs_dim, action_dim = 500, 128, 16
        num_episodes = num_transitions // length
        capacity = num_episodes * (length + 1)
        fast, slow = (kind(capacity, obs_dim, action_dim, 3) for kind in (ReplayBuffer, PlainReplay))
        obs, action, reward = torch.randn(length + 1, obs_dim), torch.zeros(length, action_dim), torch.zeros(length)
        for episode in range(num_episodes):
            for replay in (fast, slow):
                replay.add(obs, action, reward, False, episode % _NUM_TASKS)
        draw = torch.Generator().manual_seed(0)
        functions = {"plain": partial(slow.sample, batch_size, draw), "ours": partial(fast.sample, batch_size, draw)}
        repeats, self.repeats = self.repeats, 25
        self._measure(f"sample_{batch_size}_from_{num_transitions}", functions, None)
        self.repeats = repeats

    def in_time(self) -> bool:
        """Whether a further case may begin."""
        return time.monotonic() < self.deadline

    def _measure(self, case: str, functions: dict[str, Callable[[], Any]], flop: float | None) -> None:
        medians = dict(
            zip(functions, self.clock.medians(list(functions.values()), self.repeats, self.deadline), strict=True)
        )
        for way, ms in medians.items():
            name = f"{case}_{way}"
            self.ms[name] = round(ms, 4)
            shown = ""
            if way != "plain":
                self.ratios[name] = round(medians["plain"] / ms, 3)
                shown = f"{self.ratios[name]:6.2f} x"
            if flop is not None and way != "plain":
                rate = self.gflops["bf16" if way.startswith("bf16") else "fp32"]
                self.shares[name] = round(flop / ms / 1e6 / rate, 3)
                shown += f"  {self.shares[name]:4.0%} of the machine's product rate"
            print(f"{name:44} {ms:10.2f} ms {shown}", flush=True)

    def _in_mode(self, way: str, function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with products.use(self.ways[way]):
                return function()

        return run

    def _rate(self, bfloat16: bool) -> float:
        """The GFLOP/s of a bare product of large matrices: by the library that is the faster one here."""
        rows, width = (512, 1024) if self.device.type == "cpu" else (16384, 4096)
        x, weight = torch.randn(2, max(rows, width), width, device=self.device)[:, :, :].unbind(0)
        x = x[:rows]
        modes: list[products.Mode] = ["bfloat16"] if bfloat16 else ["torch"]
        if not bfloat16 and self.device.type == "cpu" and torch.backends.mkldnn.is_available():
            modes.append("onednn")
        found = []
        for mode in modes:
            with torch.no_grad(), products.use(mode):
                function = partial(products.product, x, products.ready(weight[:width]), None)
                found += self.clock.medians([function], 9, self.deadline)
        return 2 * rows * width * width / min(found) / 1e6


def plan_flop(sizes: config.Model, planner: config.Planner, num_envs: int) -> float:
    """Return the floating-point operations that our plan spends on products of samples."""
    hidden, latent, a, bins = sizes.mlp_dim, sizes.latent_dim, sizes.action_dim, sizes.num_bins
    dynamics, reward = hidden * (a + hidden + latent), hidden * (a + hidden + bins)
    step = dynamics + reward + 2 * latent * hidden
    value = hidden * (latent + hidden + 2 * a) + 2 * hidden * (latent + a + hidden + bins)
    own, horizon = planner.num_policy_samples, planner.horizon
    # The latent of the first step is the same for all samples of an environment: its products are left out.
    searched = horizon * step - 2 * latent * hidden
    policy = horizon * (step + hidden * (latent + hidden + 2 * a))
    each = (planner.num_samples - own) * searched + planner.num_samples * value
    return 2.0 * num_envs * (planner.iterations * each + own * policy)


def cases(bench: Bench, quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what is to be measured by name, the most wanted first."""
    fp32, every = [way for way in bench.ways if way.startswith("fp32")], list(bench.ways)

    def plans(size: str, *numbers: int) -> Iterator[tuple[str, Callable[[], None]]]:
        for number in numbers:
            yield f"plan_{size}_{number}", partial(bench.plan, size, number, ["fp32", "bf16"] if quick else every)

    def updates(size: str, batch_size: int, *modes: Mode) -> Iterator[tuple[str, Callable[[], None]]]:
        for mode in modes:
            ways = ["fp32"] if quick else fp32
            yield f"update_{size}_{batch_size}_{mode}", partial(bench.update, size, batch_size, mode, ways)

    if bench.device.type == "cuda" and not quick:  # what a GPU is for: one environment of every task
        yield from plans("L", 200)
        yield from updates("L", 1024, "online")
    for stored in [50_000] if quick else [500_000, 50_000, 5_000_000]:
        yield f"sample_{stored}", partial(bench.sample, stored, 256)
    yield from plans("B", 1)
    yield from updates("B", 256, "online")
    if quick:
        yield from plans("Q", 8)
        return
    yield from updates("S", 256, "online")
    yield from plans("B", 8)
    yield from plans("L", 1)
    yield from plans("Q", 1, 8)
    yield from updates("Q", 128, "online", "pretrain")
    yield from plans("S", 1, 8, 32)
    yield from updates("B", 1024, "online")
    yield from updates("S", 1024, "online")
    yield from updates("L", 256, "online")
    yield from plans("B", 32)
    if bench.device.type == "cpu":
        yield from updates("L", 1024, "online")
    yield from plans("L", 8, 32)


def claims(bench: Bench) -> dict[str, dict[str, Any]]:
    """Return the promised figures beside the measured ones."""

    def ratio(case: str, way: str) -> float | None:
        return bench.ratios.get(f"{case}_{way}")

    def same_library(case: str) -> float | None:
        return ratio(case, "fp32_torch" if "fp32_torch" in bench.ways else "fp32")

    above = partial(results.claim, better="above")
    share = max((bench.shares[name] for name in bench.shares if name.startswith("plan_L_1_fp32")), default=None)
    return {
        "plan B, 1 environment, float32: x faster": above(ratio("plan_B_1", "fp32"), 5.0),
        "plan B, 1 environment, bfloat16: x faster": above(ratio("plan_B_1", "bf16"), 7.5),
        "plan B, 8 environments, float32: x faster": above(ratio("plan_B_8", "fp32"), 5.0),
        "plan B, 8 environments, bfloat16: x faster": above(ratio("plan_B_8", "bf16"), 8.0),
        "plan B, 1 environment, same matrix library: x faster": above(same_library("plan_B_1"), 2.2),
        "update B, batch 256: x faster": above(ratio("update_B_256_online", "fp32"), 2.6),
        "update S, batch 256: x faster": above(ratio("update_S_256_online", "fp32"), 2.1),
        "update B, batch 256, same matrix library: x faster": above(same_library("update_B_256_online"), 1.7),
        "sample 256 slices from 500k: x faster": above(bench.ratios.get("sample_256_from_500000_ours"), 5.0),
        "plan L, 1 environment, float32: share of the machine's product rate": above(share, 0.5),
    }


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases, within 50 s; results/ stays as it is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write machine, commit, ratios and ms there")
    parser.add_argument("--threads", type=int, default=1, help="torch CPU threads (1: what others do disturbs least)")
    parser.add_argument("--repeats", type=int, default=5, help="turns per figure, of which the median is taken")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no further case after this long")
    parser.add_argument("--only", default="", metavar="START", help="only cases whose names begin so, e.g. plan_B")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started, device = time.monotonic(), torch.device(options.device)
    seconds = _QUICK_SECONDS if options.quick else 60 * options.minutes
    repeats = 3 if options.quick else options.repeats
    bench = Bench(device, repeats, started + seconds)
    print(f"{options.threads} thread(s), {device}; medians of {repeats}, turn by turn", flush=True)
    chosen = [case for name, case in cases(bench, options.quick) if name.startswith(options.only)]
    for case in chosen:
        if not bench.in_time():
            print("out of time: the remaining cases are left out", flush=True)
            break
        case()
    report = _report(bench, options.threads)
    if options.json:
        write_json(options.json, report)
    if not options.quick and not options.only:
        more = {key: value for key, value in report.items() if key not in ("machine", "commit")}
        given = {f"--{name}": getattr(options, name) for name in ("minutes", "repeats", "threads", "device")}
        words = [f" {name} {value}" for name, value in given.items() if value != parser.get_default(name[2:])]
        command = "python -m benchmarks.speed" + "".join(words)
        # What is promised is promised of two CPU cores.
        name, promised = ("speed_gpu", {}) if device.type == "cuda" else ("speed", claims(bench))
        results.write(name, command, time.monotonic() - started, promised, **more)
    print(json.dumps(report["ratios"]))
    return 0


def _report(bench: Bench, threads: int) -> dict[str, Any]:
    short = {
        "plan_fp32": "plan_B_1_fp32",
        "plan_bf16": "plan_B_1_bf16",
        "update_fp32": "update_B_256_online_fp32",
    }
    samples = [name for name in bench.ratios if name.startswith("sample_256")]
    ratios = {key: bench.ratios.get(name) for key, name in short.items()}
    ratios["sample"] = bench.ratios[samples[0]] if samples else None
    return {
        "machine": machine(),
        "commit": commit(),
        "threads": threads,
        "device": str(bench.device),
        "matmul": bench.matmul,
        "product_gflops": {key: round(value, 1) for key, value in bench.gflops.items()},
        "ratios": ratios,
        "all_ratios": bench.ratios,
        "share_of_product_rate": bench.shares,
        "ms": bench.ms,
    }


if __name__ == "__main__":
    sys.exit(main())
