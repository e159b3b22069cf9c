"""A simulation on paper: how fast a run would be on 1 to 8 GPUs and 16 to 256 cores, from measured unit costs.

    python -m benchmarks.scaling measure     measures the unit costs of this machine -> results/unit_costs.json
    python -m benchmarks.scaling             writes the table of docs/explanation/scaling.md and results/scaling.json

The run is that of a preset; its environments are shared out among domains as MMBench's training tasks are. Costs of a
CPU are processor seconds of one thread, so that other work on the machine does not count. With `measure --device cuda`
planning and updates are timed on that GPU; without, what they would take on one follows from what they compute, which
is counted, and from two assumed figures: the rate of its products (--flops) and the time of a launch (--launch). The
all-reduce is measured between two processes: on two GPUs by nccl, else on this CPU by gloo. Of gloo's figures the
table makes one column, GPUs that exchange through the CPU; the others assume --bytes-per-second and --latency.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import flop_registry

from benchmarks.operations import Operations, as_launched
from benchmarks.problem import LEARNING, make_batch, make_model, make_table
from benchmarks.results import RESULTS, claim, write
from benchmarks.system_runs import PRESETS, merge, read_yaml
from pipeline import config
from pipeline.files import atomic_file, read_json, write_json
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import state_tensors
from pipeline.model.actor import Actor
from pipeline.run.provenance import commit, machine
from pipeline.run.ranks import Ranks
from pipeline.run.saves import Saves
from pipeline.tasks import availability, registry
from pipeline.tasks.vector import VectorEnv

COSTS = RESULTS / "unit_costs.json"
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "scaling.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
PRESET = "newt"
_PER_DOMAIN = 4  # tasks that stand for a domain, evenly over its list
_PLANS, _UPDATES = (1, 8), (32, 256)  # environments and slices of the two measurements a line is drawn through
_RATE = "env_steps_per_second"
_ASSUMED = {"bytes_per_second": 100e9, "latency": 30e-6}  # between GPUs
GPUS, CORES, ENV_STEPS = (1, 2, 4, 8), (16, 64, 256), 100_000_000


@dataclass(frozen=True)
class UnitCosts:
    """What one of each costs, in seconds."""

    env_step: dict[str, float]  # by domain, on one core
    plan_call: float  # one call of the planner on one device, whatever it is for ...
    plan_env: float  # ... and for each environment in it
    update_call: float  # one update on one device, whatever its batch ...
    update_slice: float  # ... and for each slice in it
    gradient_bytes: float  # of one all-reduce
    bytes_per_second: float  # that an all-reduce passes from each device to the next
    latency: float  # of one all-reduce
    save: float  # one save


@dataclass(frozen=True)
class Run:
    """What is to be run."""

    num_envs: int
    domains: dict[str, float]  # share of the environments in each domain
    batch_size: int
    utd: float  # updates per environment step
    save_every: int  # env_steps


def predict(costs: UnitCosts, run: Run, gpus: int, cores: int) -> dict[str, float | str]:
    """Predict one step of the loop: every environment of the run steps once.

    A loop step acts on all devices at once, then the environments step while the learner updates:

        step = act + max(environments, updates) + save
        act = plan_call + plan_env * ceil(N / gpus)
        environments = ceil(N / min(N, cores - gpus)) * sum over domains of share * env_step
        updates = N * utd * (update_call + update_slice * ceil(B / gpus) + all_reduce)
        all_reduce = 2 * (latency + 2 * (gpus - 1) / gpus * gradient_bytes / bytes_per_second), none on one device
        save = N / save_every * save_seconds

    One core per device drives it; the others step environments.

    Returns:
        seconds of each part, env_steps per second, hours for 100M env_steps, and the part that takes longest.
    """
    act = costs.plan_call + costs.plan_env * math.ceil(run.num_envs / gpus)
    mean_step = sum(share * costs.env_step[domain] for domain, share in run.domains.items())
    workers = min(max(cores - gpus, 1), run.num_envs)
    environments = math.ceil(run.num_envs / workers) * mean_step
    ring = 2 * (gpus - 1) / gpus * costs.gradient_bytes / costs.bytes_per_second
    all_reduce = 2 * (costs.latency + ring) if gpus > 1 else 0.0
    slices = costs.update_slice * math.ceil(run.batch_size / gpus)
    num_updates = run.num_envs * run.utd
    parts = {
        "act": act,
        "environments": environments,
        "update": num_updates * (costs.update_call + slices),
        "all_reduce": num_updates * all_reduce,
        "save": run.num_envs / run.save_every * costs.save,
    }
    learning = parts["update"] + parts["all_reduce"]
    step = act + max(environments, learning) + parts["save"]
    # What overlaps and is shorter costs nothing, so it is no bottleneck.
    hidden = {"environments"} if environments < learning else {"update", "all_reduce"}
    bottleneck = max((name for name in parts if name not in hidden), key=lambda name: parts[name])
    rate = run.num_envs / step
    return {**parts, _RATE: rate, "hours_for_100m": ENV_STEPS / rate / 3600, "bottleneck": bottleneck}


def cpu_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Return the median processor seconds of one call."""
    work()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return statistics.median(found)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return what one call costs: processor seconds on a CPU, seconds on a GPU."""
    if device.type == "cpu":
        return cpu_seconds(work)

    def timed() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    timed()
    return statistics.median(timed() for _ in range(20))


def line(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Return what a call costs by itself and per item, from two measurements."""
    slope = max((large[1] - small[1]) / (large[0] - small[0]), 0.0)
    return max(small[1] - slope * small[0], 0.0), slope


class Count(Operations):
    """Counts operations, and the arithmetic of products."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        found = super().__torch_dispatch__(func, types, args, kwargs)
        of_product = flop_registry.get(func.overloadpacket)
        if of_product is not None:
            self.flops += of_product(*args, **(kwargs or {}), out_val=found)
        return found


def counted(work: Callable[[], object]) -> dict[str, float]:
    """Return what one call computes on a GPU: operations, and floating-point operations of its products."""
    with as_launched():
        work()
        with Count() as count:
            work()
    return {"operations": count.total, "flops": count.flops}


def all_reduce(gradient_bytes: float, device: torch.device) -> dict[str, Any]:
    """Return what an all-reduce between two processes of this machine costs: by nccl on two GPUs, else by gloo."""
    by_nccl = device.type == "cuda" and torch.cuda.device_count() > 1
    with tempfile.TemporaryDirectory() as folder:
        given = (Path(folder), "nccl" if by_nccl else "gloo", int(gradient_bytes // 4))
        spawn(_reduce, given, nprocs=2)
        found = read_json(Path(folder) / "found.json", "python -m benchmarks.scaling measure")
    small, large = found.pop("seconds")
    return {**found, "latency": small, "bytes_per_second": gradient_bytes / max(large - small, 1e-9)}


def _reduce(rank: int, folder: Path, backend: str, numbers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")

    def took(tensor: torch.Tensor, repeats: int) -> float:
        found = []
        for _ in range(repeats + 1):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            tensor.sum().item()  # it is there: on a GPU the call returns before
            found.append(time.perf_counter() - started)
        return statistics.median(found[1:])

    seconds = [took(torch.zeros(size, device=device), repeats) for size, repeats in ((1, 200), (numbers, 15))]
    if rank == 0:
        write_json(folder / "found.json", {"backend": backend, "processes": 2, "seconds": seconds})
    dist.destroy_process_group()


def env_steps(sizes: config.Model) -> tuple[dict[str, float], dict[str, int]]:
    """Return processor seconds of a step of each domain, and how many training tasks of MMBench each has.

    Domains that cannot be played here are named and left out.
    """
    specs = [spec for spec in registry.load_catalogue().values() if spec.split == "train"]
    missing = availability.unavailable(specs)
    for reason in sorted(set(missing.values())):
        print(f"left out, {sum(one == reason for one in missing.values())} tasks: {reason}", file=sys.stderr)
    found: dict[str, float] = {}
    tasks = {
        suite: [spec for spec in specs if spec.suite == suite and spec.name not in missing]
        for suite in dict.fromkeys(spec.suite for spec in specs)
    }
    tasks = {suite: members for suite, members in tasks.items() if members}
    for suite, members in tasks.items():
        chosen = [members[i * len(members) // _PER_DOMAIN] for i in range(_PER_DOMAIN)]
        costs = []
        for spec in chosen:
            with VectorEnv([spec], sizes.obs_dim, sizes.action_dim, 0, 0) as envs:
                envs.reset()
                action = np.zeros((1, sizes.action_dim), np.float32)
                costs.append(cpu_seconds(lambda e=envs, a=action: [e.step(a) for _ in range(50)], 5) / 50)
        found[suite] = statistics.mean(costs)
        print(f"{suite}: {1e3 * found[suite]:.3f} ms per step, of {', '.join(s.name for s in chosen)}", file=sys.stderr)
    return found, {suite: len(members) for suite, members in tasks.items()}


def parameters(preset: str) -> dict[str, Any]:
    """Return all parameters of a preset."""
    return merge(read_yaml(PRESETS / "quickstart.yaml"), read_yaml(PRESETS / f"{preset}.yaml"))


def measure(preset: str, device: torch.device) -> dict[str, Any]:
    """Measure every unit cost, at the sizes of a preset."""
    torch.set_num_threads(1)
    params = parameters(preset)
    sizes, planner = (
        config.parse(config.Model, params["model"], preset),
        config.parse(config.Planner, params["planner"], preset),
    )
    env_step, tasks = env_steps(sizes)
    model = make_model(sizes, fill=False).to(device)
    table = make_table(sizes).to(device)
    actor = Actor(model, table, planner)

    def plan(num_envs: int) -> Callable[[], object]:
        rows, obs = torch.zeros(num_envs, dtype=torch.int64), torch.randn(num_envs, sizes.obs_dim)

        def work() -> object:
            actor.reset(num_envs, seed=0)
            return actor.act(obs, rows, plan=True)

        return work

    learner = Learner(model, table, LEARNING)
    generator = torch.Generator().manual_seed(0)

    def update(size: int) -> Callable[[], object]:
        batch = make_batch(table, sizes, size, planner.horizon).to(device)
        return lambda: learner.update(batch, "online", generator)

    work = {"plan": [(size, plan(size)) for size in _PLANS], "update": [(size, update(size)) for size in _UPDATES]}
    timed, computed = {}, {}
    for name, calls in work.items():
        timed[name] = [(size, seconds(call, device)) for size, call in calls]
        computed[name] = [(size, counted(call)) for size, call in calls]
        print(f"{name}: {timed[name]}, {computed[name]}", file=sys.stderr)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        saves = Saves(Path(folder), 1, Ranks())
        position = iter(range(1, 100))
        save = cpu_seconds(
            lambda: (saves.save(next(position), state_tensors(learner), ({}, {}), {}), saves.finish()), 3
        )
    others = {"env_step": env_step, "gradient_bytes": 4.0 * trained, "save": save}
    between = all_reduce(others["gradient_bytes"], device)
    print(f"all-reduce: {between}", file=sys.stderr)
    costs = others | device_costs(timed["plan"], timed["update"])
    return {"costs": costs, "between": between, "computed": computed, "tasks": tasks}


def device_costs(plans: Sequence[tuple[int, float]], updates: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Return what planning and updates cost by themselves and per item, from two measurements of each."""
    (plan_call, plan_env), (update_call, update_slice) = line(*plans), line(*updates)
    return {"plan_call": plan_call, "plan_env": plan_env, "update_call": update_call, "update_slice": update_slice}


def assumed_costs(
    computed: Mapping[str, Sequence[tuple[int, Mapping[str, float]]]], flops: float, launch: float
) -> dict[str, float]:
    """Return what planning and updates would cost a device of this rate of products and time of a launch."""
    took = {
        name: [(size, work["operations"] * launch + work["flops"] / flops) for size, work in calls]
        for name, calls in computed.items()
    }
    return device_costs(took["plan"], took["update"])


def tables(costs: UnitCosts, run: Run, by_cpu: UnitCosts | None = None) -> list[dict[str, float | str]]:
    """Predict every combination of devices and cores, and its rate if devices exchanged gradients as `by_cpu` says."""

    def row(gpus: int, cores: int) -> dict[str, float | str]:
        found = predict(costs, run, gpus, cores)
        return found if by_cpu is None else found | {"by_gloo": predict(by_cpu, run, gpus, cores)[_RATE]}

    return [{"gpus": gpus, "cores": cores, **row(gpus, cores)} for gpus in GPUS for cores in CORES if cores > gpus]


def show(rows: list[dict[str, float | str]]) -> str:
    """Return the rows as a table in Markdown."""
    parts = ("act", "environments", "update", "all_reduce", "save")
    head = ["GPUs", "cores", *(f"{part} ms" for part in parts), "env_steps/s", "hours for 100M", "bottleneck"]
    head += ["env_steps/s by gloo"] * ("by_gloo" in rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [str(row["gpus"]), str(row["cores"]), *(f"{1e3 * float(row[part]):.1f}" for part in parts)]
        cells += [f"{row[_RATE]:,.0f}", f"{row['hours_for_100m']:,.1f}", str(row["bottleneck"])]
        cells += [f"{row['by_gloo']:,.0f}"] if "by_gloo" in row else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reduction(costs: UnitCosts) -> float:
    """Return seconds of one all-reduce of the gradients between two devices."""
    return costs.latency + costs.gradient_bytes / costs.bytes_per_second


def _exchanging(costs: UnitCosts, between: Mapping[str, Any]) -> UnitCosts:
    return dataclasses.replace(costs, **{name: between[name] for name in ("latency", "bytes_per_second")})


def show_costs(costs: UnitCosts, between: Mapping[str, Any]) -> str:
    """Return the unit costs as a table in Markdown; `between` is the all-reduce that was measured."""
    megabytes = f"an all-reduce of {costs.gradient_bytes / 1e6:.0f} MB between two"
    gloo = between["backend"] == "gloo"
    reductions = {f"{megabytes} GPUs, {'assumed' if gloo else 'measured'}": reduction(costs)}
    if gloo:
        reductions[f"{megabytes} processes by gloo, measured"] = reduction(_exchanging(costs, between))
    lines = ["| unit cost | ms |", "|---|---|"]
    lines += [f"| a step of {domain} | {1e3 * cost:.3f} |" for domain, cost in costs.env_step.items()]
    for name, cost in (
        ("a plan", costs.plan_call), ("... for each environment", costs.plan_env), ("an update", costs.update_call),
        ("... for each slice", costs.update_slice), ("a save", costs.save), *reductions.items(),
    ):  # fmt: skip
        lines.append(f"| {name} | {1e3 * cost:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, or predict from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["measure", "predict"], default="predict")
    parser.add_argument("--device", default="cpu", help="of planning and learning, for `measure`: cpu or cuda")
    parser.add_argument("--envs", type=int, default=200, help="environments of the run, one per task in the original")
    parser.add_argument("--bytes-per-second", type=float, help="between devices (nccl's, if measured, else 100e9)")
    parser.add_argument("--latency", type=float, help="of an all-reduce, seconds (nccl's, if measured, else 30e-6)")
    parser.add_argument("--preset", default=PRESET, help=f"for `measure`: whose sizes and schedule (default: {PRESET})")
    parser.add_argument("--flops", type=float, default=100e12, help="products of a GPU per second; assumed")
    parser.add_argument("--launch", type=float, default=5e-6, help="seconds of a launch on a GPU; assumed")
    options = parser.parse_args()
    started = time.monotonic()
    if options.what == "measure":
        found = measure(options.preset, torch.device(options.device))
        about = {"commit": commit(), "machine": machine(), "device": options.device, "preset": options.preset}
        write_json(COSTS, about | found)
        print(f"-> {COSTS}", file=sys.stderr)
        return
    measured = read_json(COSTS, "python -m benchmarks.scaling measure")
    by_nccl = measured["between"]["backend"] == "nccl"
    between = {name: measured["between"][name] if by_nccl else assumed for name, assumed in _ASSUMED.items()}
    between |= {name: given for name in _ASSUMED if (given := getattr(options, name)) is not None}
    own = {} if measured["device"] == "cuda" else assumed_costs(measured["computed"], options.flops, options.launch)
    costs = UnitCosts(**(measured["costs"] | own | between))
    by_cpu = None if by_nccl else _exchanging(costs, measured["between"])
    settings = config.parse(config.Finetune, parameters(measured["preset"])["finetune"], measured["preset"])
    tasks = measured["tasks"]
    shares = {domain: number / sum(tasks.values()) for domain, number in tasks.items()}
    run = Run(options.envs, shares, settings.batch_size, settings.utd, settings.save_every)
    rows = tables(costs, run, by_cpu)
    where = f"{measured['machine']['gpu'] or measured['machine']['cpu']}, commit {measured['commit'][:7]}"
    gpu = (
        f"GPUs of {options.flops / 1e12:g} TFLOP/s in products and {1e6 * options.launch:g} us per launch, assumed"
        if own
        else "GPUs as measured"
    )
    about = (
        f"Preset {measured['preset']}: {run.num_envs} environments, batches of {run.batch_size}, {run.utd} updates per "
        f"step; {gpu}; measured on {where}.\n\n{show_costs(costs, measured['between'])}"
    )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    with atomic_file(PAGE) as partial:
        partial.write_text(f"{before}{BEGIN}{about}\n\n{show(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(show(rows))
    fastest = max(float(row[_RATE]) for row in rows)
    claims = {"env_steps_per_second_predicted_at_best": claim(round(fastest, 1), 1000, "above")}
    command = " ".join(["python -m benchmarks.scaling", *sys.argv[1:]])
    write("scaling", command, time.monotonic() - started, claims, unit_costs=measured, rows=rows)


if __name__ == "__main__":
    main()
