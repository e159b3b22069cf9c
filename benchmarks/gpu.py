"""Decide in a few minutes on a GPU what was built and tested on a CPU by counts and equality.

    python -m benchmarks.gpu --minutes 5     size L, 200 environments, batches of 1,024; writes results/gpu.json
    python -m benchmarks.gpu --dry           the same script on any machine, tiny and on the CPU; writes nothing

In this order, so that what is most wanted is there if the time runs out: a plan and an update by CUDA graphs, with what
capturing took, and as they are; whether both give the same; the two in the plainest way; the loop on real simulators;
where the time of a plan and of an update goes. All in one process, medians of the wall time until the GPU is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import loop, plain, results
from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from benchmarks.speed import model_size, published_planner
from pipeline import config
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.setup import product_modes
from pipeline.model import math
from pipeline.model.actor import Actor
from pipeline.model.graphs import Graphs
from pipeline.model.planner import PlanDraws
from pipeline.tasks import registry
from pipeline.tasks.vector import VectorEnv

_NUM_TASKS = 200
_CALLS = 20  # of each kind, the median of which counts
_SHOWN = 15  # kernels of a profile


@dataclasses.dataclass
class Case:
    """What is measured, and how far it has come."""

    device: torch.device
    size: str
    num_envs: int
    batch: int
    workers: int
    deadline: float
    began: float
    runtime: config.Runtime
    learning: config.Learning
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def dry(self) -> bool:
        """Whether this only walks through the script."""
        return self.device.type == "cpu"

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def note(self, name: str, value: Any) -> None:
        """Keep a figure and show it."""
        self.figures[name] = value
        print(f"{time.monotonic() - self.began:6.1f} s  {name}: {value}", flush=True)

    def milliseconds(self, work: Callable[[], Any], calls: int = _CALLS) -> float:
        """Return the median wall time of a call until the device is done."""
        found = []
        for _ in range(2 if self.dry else calls):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            found.append(1000 * (time.perf_counter() - started))
        return round(statistics.median(found), 3)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def acting(case: Case, graphs: Graphs | None) -> Callable[[], torch.Tensor]:
    """Return one step of acting in which all environments plan."""
    sizes, planner = model_size(case.size), published_planner(case.size)
    _, mode = product_modes(case.runtime, case.device)
    table = make_table(sizes, _NUM_TASKS).to(case.device)
    actor = Actor(make_model(sizes).to(case.device), table, planner, mode, graphs=graphs)
    actor.reset(case.num_envs, seed=0)
    obs = torch.randn(case.num_envs, sizes.obs_dim, generator=torch.Generator().manual_seed(0))
    rows, everyone = torch.arange(case.num_envs) % _NUM_TASKS, torch.ones(case.num_envs, dtype=torch.bool)

    def work() -> torch.Tensor:
        actor.refresh()
        return actor.act(obs, rows, everyone, True, torch.ones(case.num_envs))

    return work


def learning(case: Case, graphs: Graphs | None) -> tuple[Learner, Callable[[], dict[str, torch.Tensor]]]:
    """Return a learner and one of its updates; noise is drawn anew by each."""
    sizes = model_size(case.size)
    mode, _ = product_modes(case.runtime, case.device)
    table = make_table(sizes, _NUM_TASKS).to(case.device)
    learner = Learner(make_model(sizes).to(case.device), table, case.learning, mode=mode, graphs=graphs)
    batch = make_batch(table.to("cpu"), sizes, case.batch).to(case.device)
    noise, members = torch.Generator(case.device).manual_seed(0), torch.Generator().manual_seed(0)

    def work() -> dict[str, torch.Tensor]:
        draws = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, noise, members)
        return learner.update(batch, "online", draws)

    return learner, work


def plan_and_update(case: Case) -> None:
    """Measure both by graphs and as they are, and what capturing takes; compare what they give."""
    captured, eager = Graphs(case.device), None
    works: dict[str, dict[str, Callable[[], Any]]] = {"plan": {}, "update": {}}
    learners = {}
    for name, graphs in (("graphs", captured), ("as it is", eager)):
        works["plan"][name] = acting(case, graphs)
        learners[name], works["update"][name] = learning(case, Graphs(case.device) if graphs else None)
    losses = {}
    for what, by in works.items():
        for name, work in by.items():
            first = [case.milliseconds(work, 1) for _ in range(3)]  # with graphs the third captures
            case.note(f"{what}, {name}: first three calls, ms", first)
            case.note(f"{what}, {name}: ms", case.milliseconds(work))
        if what == "update":
            losses = {name: {key: float(value) for key, value in work().items()} for name, work in by.items()}
    case.note("first plan and update were there after, s", round(time.monotonic() - case.began, 1))
    case.note("capturing failed because", captured.failed or learners["graphs"].graphs.failed)  # type: ignore[union-attr]
    case.note("losses after as many updates", losses)
    for learner in learners.values():
        learner.finite.settle(learner)
    if not case.dry:
        case.note("GPU memory at most, GiB", round(torch.cuda.max_memory_allocated() / 2**30, 2))


def numbers(case: Case) -> None:
    """Compare what must stay in float32, and the kernels, with the same in double precision or in plain torch."""
    bins = torch.linspace(-10.0, 10.0, 101, device=case.device)
    logits = 5 * torch.randn(4096, 101, device=case.device)
    exact = math.decode(logits.double(), bins.double())
    apart = ((math.decode(logits, bins).double() - exact).abs() / exact.abs().clamp(min=1e-3)).max()
    case.note("largest relative error of a decoded scalar", float(apart))


def plainly(case: Case) -> None:
    """Measure plan and update in the plainest way, with the same weights."""
    sizes, planner = model_size(case.size), published_planner(case.size)
    model, table = make_model(sizes).to(case.device), make_table(sizes, _NUM_TASKS).to(case.device)
    draw = torch.Generator(case.device).manual_seed(0)
    members = torch.Generator().manual_seed(0)
    rows = (torch.arange(case.num_envs) % _NUM_TASKS).to(case.device)
    obs = torch.randn(case.num_envs, sizes.obs_dim, generator=draw, device=case.device)
    mean = torch.zeros(planner.horizon, case.num_envs, sizes.action_dim, device=case.device)
    first = torch.zeros(case.num_envs, dtype=torch.bool, device=case.device)

    def plan() -> Any:
        draws = PlanDraws.sample(planner, case.num_envs, sizes.action_dim, sizes.num_q, draw, members)
        told = table.discount[rows], table.action_mask[rows], draws, 1.0
        with torch.no_grad():
            return plain.plan(model, table.embeddings[rows, 0], obs, planner, mean, first, *told)

    learner = plain.PlainLearner(model, table, LEARNING)
    batch = make_batch(table.to("cpu"), sizes, case.batch).to(case.device)
    drawn = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, draw, members)
    case.note("plan, plainest: ms", case.milliseconds(plan, 3))
    case.note("update, plainest: ms", case.milliseconds(lambda: learner.update(batch, False, drawn), 5))


def whole_loop(case: Case) -> None:
    """Let the loop run on real simulators, for what time is left but a little."""
    sizes = model_size(case.size)
    suites = ("dmcontrol",) if case.dry else ("dmcontrol", "metaworld")
    tasks = [one for one in registry.load_catalogue().values() if one.suite in suites and one.split == "train"]
    specs = [tasks[number % len(tasks)] for number in range(case.num_envs)]
    options = argparse.Namespace(size=case.size, specs=specs, batch=case.batch, updates=0.075 * case.num_envs)
    with VectorEnv(specs, sizes.obs_dim, sizes.action_dim, 0, case.workers) as envs:
        ours = loop.Ours(options, envs, case.runtime, lambda _, device: Graphs(device))
        seconds = 0.2 if case.dry else max(min(case.left() - 40, 60), 10)
        step = loop.measure(ours, seconds, 4, "loop", case.device)
    case.note("loop: environment steps per second", round(case.num_envs / step, 1))
    case.note("loop: of these seconds planning and updates took", {k: round(v, 2) for k, v in ours.seconds.items()})


def profiled(case: Case) -> None:
    """Show where the time of a plan and of an update goes."""
    kinds = [ProfilerActivity.CPU] if case.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for name, work in (("plan", acting(case, None)), ("update", learning(case, None)[1])):
        work()
        with profile(activities=kinds) as found:
            work()
            case.wait()
        by = "self_cpu_time_total" if case.dry else "self_device_time_total"
        rows = sorted(found.key_averages(), key=lambda row: -getattr(row, by))[:_SHOWN]
        case.note(f"profile of the {name}", {row.key[:80]: round(getattr(row, by) / 1000, 3) for row in rows})


PARTS: tuple[Callable[[Case], None], ...] = (plan_and_update, numbers, whole_loop, plainly, profiled)


def run(case: Case) -> dict[str, dict[str, Any]]:
    """Measure part by part while there is time; return the claims."""
    for part in PARTS:
        if case.left() < 0:
            case.note("left out for lack of time", part.__name__)
            continue
        part(case)
    figures, claim = case.figures, results.claim
    return {
        "plan_ms": claim(figures.get("plan, graphs: ms"), 80, "below"),
        "update_ms": claim(figures.get("update, graphs: ms"), 6, "below"),
        "env_steps_per_second": claim(figures.get("loop: environment steps per second"), 1000, "above"),
        "first_plan_and_update_s": claim(figures.get("first plan and update were there after, s"), 30, "below"),
        "decode_error": claim(figures.get("largest relative error of a decoded scalar"), 1e-4, "below"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no further part after this long (default: 5)")
    parser.add_argument("--workers", type=int, default=16, help="processes that step environments (default: 16)")
    parser.add_argument(
        "--dry", action="store_true", help="walk through all of it on the CPU, tiny; nothing is written"
    )
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --dry walks through the script without one")
    began, device = time.monotonic(), torch.device("cpu" if options.dry else "cuda")
    runtime = dataclasses.replace(config.load(config.Runtime), device=device.type)
    learn = dataclasses.replace(LEARNING, online_bc_coef=0.0)
    size, num_envs, batch, workers = ("Q", 2, 8, 0) if options.dry else ("L", 200, 1024, options.workers)
    case = Case(device, size, num_envs, batch, workers, began + 60 * options.minutes, began, runtime, learn)
    claims = run(case)
    if not options.dry:
        command = " ".join(["python -m benchmarks.gpu", *(arguments or sys.argv[1:])])
        name = torch.cuda.get_device_name()
        results.write("gpu", command, time.monotonic() - began, claims, device=name, figures=case.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
