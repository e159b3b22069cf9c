"""Measure plans and updates of this checkout against those of an older commit, in one process, turn by turn.

    python -m benchmarks.old_new                          against b7b0422, the default size, S and B
    python -m benchmarks.old_new --sizes default          the sizes of params.yaml alone
    python -m benchmarks.old_new --commit HEAD~20

The old package is taken out of Git into a temporary folder and imported as `pipeline_old`. Both sides have the same
weights, observations and random numbers; that they compute the same but for rounding is checked first, with torch's own
products (of Q's members they are grouped otherwise today). Times are CPU time of this process with one thread, medians;
a speed is old time / new time. Writes results/old_new.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.problem import make_batch, make_model, make_table
from benchmarks.speed import model_size, published_planner
from pipeline import config
from pipeline.learn.learner import Learner, Mode, UpdateDraws
from pipeline.model import products
from pipeline.model.planner import PlanDraws, plan
from pipeline.progress import Progress

ROOT = Path(__file__).parent.parent
OLD = "pipeline_old"
SIZES = ("default", "S", "B")
_NUM_TASKS = 8
Work = Callable[[], dict[str, Tensor]]


class OldCode:
    """The package of an older commit, whose learning is in `pipeline/train`; it is put into an empty folder."""

    def __init__(self, commit: str, folder: Path):
        packed = subprocess.run(["git", "archive", commit, "pipeline"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        (folder / "pipeline").rename(folder / OLD)
        for path in (folder / OLD).rglob("*.py"):
            text = re.sub(
                r"^(\s*(?:from|import) )pipeline\b", rf"\1{OLD}", path.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            path.write_text(text, encoding="utf-8")
        sys.path.insert(0, str(folder))
        names = ("config", "shapes", "model.compute", "model.planner", "model.task_table", "model.world_model",
                 "train.step", "train.objective")  # fmt: skip
        modules: list[Any] = [import_module(f"{OLD}.{name}") for name in names]
        self.config, self.shapes, self.compute, self.planner, self.table, self.model, self.step, self.draws = modules

    def like(self, ours: Any, module: Any) -> Any:
        """Return the same values as an object of the old class of that name."""
        kind = getattr(module, type(ours).__name__)
        return kind(**{f.name: getattr(ours, f.name) for f in dataclasses.fields(kind) if hasattr(ours, f.name)})

    def how(self, mode: products.Mode) -> Any:
        """Return how products are computed, as the old code says it."""
        return self.compute.Compute("torch" if mode == "torch" else "onednn")


class Bench:
    """Both sides at one size: "default" as in params.yaml, or one of `benchmarks.speed`."""

    def __init__(self, old: OldCode, size: str):
        default = size == "default"
        self.old, self.sizes = old, config.load(config.Model) if default else model_size(size)
        self.planner = config.load(config.Planner) if default else published_planner(size)
        # Values from TD targets and one scale for all tasks: the older commit has no others.
        self.learning = dataclasses.replace(config.load(config.Learning), value_target="td")
        self.batch_size = 128 if default else 256
        mean, std = torch.rand(2, _NUM_TASKS, self.sizes.obs_dim, generator=torch.Generator().manual_seed(1)) + 0.1
        self.table = dataclasses.replace(make_table(self.sizes, _NUM_TASKS), obs_mean=mean, obs_std=std)
        self.old_table = old.like(self.table, old.table)

    def models(self) -> tuple[Any, Any]:
        """Return a new and an old model with the same weights."""
        new = make_model(self.sizes)
        before = self.old.model.WorldModel(self.old.like(self.sizes, self.old.config))
        before.load_state_dict(new.state_dict())
        return new, before

    def plans(self, num_envs: int, mode: products.Mode) -> tuple[Work, Work]:
        """Return one plan for some environments, by the new and by the old code."""
        (new_model, old_model), old, table = self.models(), self.old, self.old_table
        draw, rows = torch.Generator().manual_seed(0), torch.arange(num_envs) % _NUM_TASKS
        draws = PlanDraws.sample(self.planner, num_envs, self.sizes.action_dim, self.sizes.num_q, draw)
        obs = torch.randn(num_envs, self.sizes.obs_dim, generator=draw)
        last, first = torch.zeros_like(draws.policy_noise[:, 0]), torch.zeros(num_envs, dtype=torch.bool)
        planner, old_draws = old.like(self.planner, old.config), old.planner.PlanDraws(*draws)
        with torch.no_grad(), products.use(mode):
            ctx = new_model.context(self.table, rows, target_q=())
            old_ctx = old_model.context(table.embeddings[rows, 0], old.how(mode), target_q=())

        def new_plan() -> dict[str, Tensor]:
            with products.use(mode):
                return plan(new_model, ctx, obs, self.planner, last, first, draws, 1.0, True)._asdict()

        def old_plan() -> dict[str, Tensor]:
            given = table.normalize(obs, rows), planner, last, first, table.discount[rows], table.action_mask[rows]
            return old.planner.plan(old_model, old_ctx, *given, old_draws, 1.0, True)._asdict()

        return new_plan, old_plan

    def updates(self, kind: Mode, mode: products.Mode) -> tuple[Work, Work]:
        """Return one update, by the new and by the old code; what is returned of it are the weights."""
        (new_model, old_model), old = self.models(), self.old
        batch = make_batch(self.table, self.sizes, self.batch_size, self.planner.horizon)
        draws = UpdateDraws.sample(batch, self.table.num_phrasings, self.sizes.num_q, torch.Generator().manual_seed(0))
        fields = {name: getattr(batch, name) for name in old.shapes.Batch._fields}  # it had fewer
        old_batch, old_draws = old.shapes.Batch(**fields), old.draws.UpdateDraws(*draws)
        new, learning = Learner(new_model, self.table, self.learning, mode=mode), old.like(self.learning, old.config)
        before = old.step.Learner(old_model, self.old_table, learning, compute=old.how(mode))

        def new_update() -> dict[str, Tensor]:
            new.update(batch, kind, draws)
            return dict(new_model.state_dict()) | {"value scale": new.value_scale}

        def old_update() -> dict[str, Tensor]:
            before.update(old_batch, kind, old_draws)
            return dict(old_model.state_dict()) | {"value scale": before.scale.value}

        return new_update, old_update


CASES: dict[str, Callable[[Bench, products.Mode], tuple[Work, Work]]] = {
    "plan 1": lambda bench, mode: bench.plans(1, mode),
    "plan 8": lambda bench, mode: bench.plans(8, mode),
    "update pretrain": lambda bench, mode: bench.updates("pretrain", mode),
    "update online": lambda bench, mode: bench.updates("online", mode),
}


def difference(new: Work, old: Work) -> float:
    """Return the largest difference of what both give, relative to the largest value of its tensor."""
    found, expected = new(), old()
    pairs = [(found[name], expected[name]) for name in found.keys() & expected.keys() if expected[name] is not None]
    assert pairs, "the two versions have nothing in common to compare"
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def times(new: Work, old: Work, seconds: float) -> tuple[float, float, int]:
    """Return the median milliseconds of both, called in turns for some seconds, and how many turns there were."""
    spent: dict[Work, list[float]] = {new: [], old: []}
    order, ends = (new, old), time.monotonic() + seconds
    while len(spent[new]) < 5 or time.monotonic() < ends:
        order = order[::-1]  # neither is always the one whose data the other has just pushed out of the cache
        for work in order:
            started = time.process_time()
            work()
            spent[work].append(1000 * (time.process_time() - started))
    return statistics.median(spent[new][1:]), statistics.median(spent[old][1:]), len(spent[new])


def main() -> None:
    """Compare and write results/old_new.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="b7b0422", help="the older commit (default: b7b0422)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="of the model (default: all)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each case and size (default: 12)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, mode, measured = time.monotonic(), products.choose("auto", "cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        old = OldCode(options.commit, Path(folder))
        with Progress("old_new", len(CASES) * len(options.sizes), "cases") as progress:
            for size in options.sizes:
                bench = Bench(old, size)
                for name, make in CASES.items():
                    apart = difference(*make(bench, "torch"))
                    new_ms, old_ms, turns = times(*make(bench, mode), options.seconds)
                    figures = {"new_ms": round(new_ms, 3), "old_ms": round(old_ms, 3), "new/old": new_ms / old_ms}
                    measured[f"{size}, {name}"] = figures | {"turns": turns, "largest_difference": apart}
                    progress.write(f"{size}, {name}: {figures}, {turns} turns, largest difference {apart:g}")
                    progress.update(1)
    claims = {
        f"{name}: speed": results.claim(round(one["old_ms"] / one["new_ms"], 3), 0.9, "above")
        for name, one in measured.items()
    }
    about = {"older_commit": options.commit, "threads": 1, "products": mode, "measured": measured}
    command = " ".join(["python -m benchmarks.old_new", *sys.argv[1:]])
    results.write("old_new", command, time.monotonic() - started, claims, **about)


if __name__ == "__main__":
    main()
