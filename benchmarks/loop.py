"""Measure the whole online loop on real simulators: environment steps per second, planning and learning included.

    python -m benchmarks.loop                                            the default model, 8 environments
    python -m benchmarks.loop --size L --envs 200 --batch 1024 --write   what a GPU is for; writes results/loop.json

Environments step in worker processes while the learner makes the updates that are due, as in the stage `finetune`;
weights and stored transitions are random, since neither changes what a step costs. After it runs the plain loop:
`benchmarks.plain` plans, learns and samples, and nothing happens at the same time.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import plain, results
from benchmarks.plain_replay import PlainReplay
from benchmarks.problem import LEARNING, make_model, make_table
from benchmarks.speed import model_size, published_planner
from pipeline import config
from pipeline.learn.collector import Collector
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.setup import make_graphs, product_modes
from pipeline.model.actor import Actor
from pipeline.model.graphs import Graphs
from pipeline.model.planner import PlanDraws
from pipeline.progress import Progress
from pipeline.run.launch import start
from pipeline.shapes import Batch
from pipeline.tasks import registry
from pipeline.tasks.vector import VectorEnv

_STORED = 200  # random episodes to learn from before the first one is over
_TARGET = 1200.0  # environment steps per second: of size L, 200 environments and batches of 1,024, on an H200


class Ours:
    """The loop as `pipeline.learn.online.learn_online` makes it."""

    def __init__(
        self,
        options: argparse.Namespace,
        envs: VectorEnv,
        runtime: config.Runtime,
        graphs: Callable[[config.Runtime, torch.device], Graphs | None] = make_graphs,
    ):
        ranks = start(runtime, 1)
        learning_mode, acting_mode = product_modes(runtime, ranks.device)
        sizes, planner = model_size(options.size), published_planner(options.size)
        model = make_model(sizes, fill=False).to(ranks.device)
        table = make_table(sizes, len(options.specs)).to(ranks.device)
        rows = torch.arange(len(options.specs))
        own = graphs(runtime, ranks.device)
        self.learner = Learner(model, table, LEARNING, ranks=ranks, mode=learning_mode, graphs=own)
        self.device, self.batch, self.updates, self.owed = ranks.device, options.batch, options.updates, 0.0
        self.replay = ReplayBuffer(200_000, sizes.obs_dim, sizes.action_dim, planner.horizon)
        fill(self.replay, sizes, len(options.specs))
        actor = Actor(model, table, planner, acting_mode, graphs=graphs(runtime, ranks.device))
        settings = config.load(config.Finetune)
        self.collector = Collector(options.specs, rows, envs, actor, self.replay, settings, 0)
        self.everyone = torch.ones(len(rows), dtype=torch.bool)
        self.actor, self.generator = actor, torch.Generator().manual_seed(0)
        self.noise = torch.Generator(ranks.device).manual_seed(0)
        self.seconds = {"plan": 0.0, "update": 0.0}  # until the next step begins; on a GPU until all is launched

    def step(self) -> None:
        """Step all environments once, with the updates that are due."""
        begun = time.perf_counter()
        self.collector.begin_step(self.everyone, torch.zeros(len(self.everyone)))
        planned = time.perf_counter()
        self.owed += self.updates
        while self.owed >= 1:
            self.owed -= 1
            batch = self.replay.sample(self.batch, self.generator).to(self.device)
            draws = UpdateDraws.sample(
                batch, self.learner.table.num_phrasings, self.learner.model.config.num_q, self.noise, self.generator
            )
            self.learner.update(batch, "online", draws)
        self.actor.refresh()
        learned = time.perf_counter()
        self.seconds["plan"] += planned - begun
        self.seconds["update"] += learned - planned
        self.collector.end_step()


class Plain:
    """The same work in the plainest way, one thing after the other."""

    def __init__(self, options: argparse.Namespace, envs: VectorEnv, device: torch.device):
        self.sizes, self.planner = model_size(options.size), published_planner(options.size)
        self.model = make_model(self.sizes, fill=False).to(device)
        self.table = make_table(self.sizes, len(options.specs)).to(device)
        self.learner = plain.PlainLearner(self.model, self.table, LEARNING)
        self.replay = PlainReplay(200_000, self.sizes.obs_dim, self.sizes.action_dim, self.planner.horizon)
        fill(self.replay, self.sizes, len(options.specs))
        self.device, self.batch, self.updates, self.owed = device, options.batch, options.updates, 0.0
        self.envs, self.obs, self.generator = envs, envs.reset(), torch.Generator().manual_seed(0)
        self.seconds: dict[str, float] = {}
        num_envs = len(options.specs)
        self.mean = torch.zeros(self.planner.horizon, num_envs, self.sizes.action_dim, device=device)
        self.first = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def step(self) -> None:
        """Step all environments once, then make the updates that are due."""
        obs, table = torch.from_numpy(self.obs).to(self.device), self.table
        draws = PlanDraws.sample(self.planner, len(obs), self.sizes.action_dim, self.sizes.num_q, self.generator).to(
            self.device
        )
        with torch.no_grad():
            found = plain.plan(
                self.model, table.embeddings[:, 0], obs, self.planner, self.mean, self.first, table.discount,
                table.action_mask, draws, 0.0, True,
            )  # fmt: skip
        self.mean = found.mean
        self.envs.begin_step(found.action.cpu().numpy())
        self.obs = self.envs.end_step().obs
        self.owed += self.updates
        while self.owed >= 1:
            self.owed -= 1
            batch: Batch = self.replay.sample(self.batch, self.generator).to(self.device)
            drawn = UpdateDraws.sample(batch, table.num_phrasings, self.sizes.num_q, self.generator)
            self.learner.update(batch, False, drawn)


def fill(replay: ReplayBuffer | PlainReplay, sizes: config.Model, num_tasks: int) -> None:
    """Store random episodes."""
    draw = torch.Generator().manual_seed(0)
    for episode in range(_STORED):
        obs = torch.randn(101, sizes.obs_dim, generator=draw)
        action = 2 * torch.rand(100, sizes.action_dim, generator=draw) - 1
        replay.add(obs, action, torch.rand(100, generator=draw), False, episode % num_tasks)


def measure(loop: Ours | Plain, seconds: float, warm_up: int, label: str, device: torch.device) -> float:
    """Return the seconds of a step of all environments, a mean over `seconds`, after some steps that do not count."""
    for _ in range(warm_up):
        loop.step()
    loop.seconds = dict.fromkeys(loop.seconds, 0.0)
    begun, steps = time.perf_counter(), 0
    with Progress(label, int(seconds), "s") as progress:
        while (passed := time.perf_counter() - begun) < seconds:
            progress.update(int(passed) - progress.done)
            loop.step()
            steps += 1
            if device.type == "cuda":
                torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="Q", choices=["Q", "S", "B", "L"], help="Q is the default of params.yaml")
    parser.add_argument("--envs", type=int, default=8, help="environments: the suites' tasks in turn (default: 8)")
    parser.add_argument("--suites", nargs="+", default=["dmcontrol", "metaworld"], help="whose tasks are stepped")
    parser.add_argument("--batch", type=int, default=128, help="slices per update (default: 128)")
    parser.add_argument("--utd", type=float, default=0.075, help="updates per environment step (default: 0.075)")
    parser.add_argument("--workers", type=int, default=2, help="processes that step environments (default: 2)")
    parser.add_argument("--seconds", type=float, default=20, help="of each loop, after its warm-up (default: 20)")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, of planning and of the update")
    parser.add_argument("--alone", action="store_true", help="leave the plain loop out")
    parser.add_argument("--write", action="store_true", help="write results/loop.json, which is of size L")
    options = parser.parse_args()
    if options.write and (options.alone or (options.size, options.envs, options.batch) != ("L", 200, 1024)):
        parser.error("what is promised, and written, is of --size L --envs 200 --batch 1024, beside the plain loop")
    tasks = [
        spec for spec in registry.load_catalogue().values() if spec.suite in options.suites and spec.split == "train"
    ]
    options.specs = [tasks[number % len(tasks)] for number in range(options.envs)]
    options.updates = options.envs * options.utd
    runtime = dataclasses.replace(
        config.load(config.Runtime),
        plan_products="bfloat16" if options.bf16 else "float32",
        precision="bf16" if options.bf16 else "fp32",
    )
    sizes, begun = model_size(options.size), time.monotonic()
    with VectorEnv(options.specs, sizes.obs_dim, sizes.action_dim, 0, options.workers) as envs:
        ours = Ours(options, envs, runtime)
        print(
            f"loop: {options.envs} environments of {len(tasks)} tasks, size {options.size}, {ours.device}", flush=True
        )
        rates = {"ours": options.envs / measure(ours, options.seconds, 4, "ours", ours.device)}
        shares = {name: round(seconds, 2) for name, seconds in ours.seconds.items()}
    if options.alone:
        print(f"env_steps per second: {rates['ours']:.0f}; of them planning and learning took, in seconds: {shares}")
        return 0
    with VectorEnv(options.specs, sizes.obs_dim, sizes.action_dim, 0, options.workers) as envs:
        plainly = Plain(options, envs, ours.device)
        rates["plain"] = options.envs / measure(plainly, options.seconds, 1, "plain", ours.device)
    print(f"env_steps per second: ours {rates['ours']:.0f}, plain {rates['plain']:.0f}: "
          f"{rates['ours'] / rates['plain']:.2f} x; of ours, seconds: {shares}")  # fmt: skip
    if options.write:
        figures = {
            "env_steps_per_second": results.claim(round(rates["ours"], 1), _TARGET, "above"),
            "against_plain": results.claim(round(rates["ours"] / rates["plain"], 2), 1.0, "above"),
        }
        more = {
            "device": str(ours.device),
            "plain_env_steps_per_second": round(rates["plain"], 1),
            "seconds_of": shares,
        }
        words = " ".join(["python -m benchmarks.loop", *sys.argv[1:]])
        results.write("loop", words, time.monotonic() - begun, figures, **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
