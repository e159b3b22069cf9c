"""How stable the clusters of tasks are: over seeds, over warm-ups, over the slices that gradients are taken on.

    python -m benchmarks.clusters --root FOLDER    FOLDER holds datasets/ of a finished `dvc repro`; default: this one

Trains the model of params.yaml on the demonstrations there, once per seed, and clusters the tasks after warm-ups of
several lengths, by `auto` and into fixed numbers: by similarities averaged over ten points of the warm-up, and by those
of its last moment alone (`moment`). Agreement is the adjusted Rand index: 1 for the same clusters, 0 in the mean for
random ones. Adds its claims to results/systems.json.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.results import add, claim
from pipeline import config
from pipeline.data.demos import load_demos
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.progress import Progress
from pipeline.run.launch import seed_everything
from pipeline.tasks import registry
from pipeline.train import clustering
from pipeline.train.step import Learner
from pipeline.train.workspace import ReplayPlace, demo_buffer, task_table

SEEDS = (1, 2, 3)
WARMUPS = (500, 1000)
NUMS: tuple[Any, ...] = ("auto", 2, 3, 4)
CLUSTERS = config.Clusters(
    parts=("encoder", "reward", "policy", "q"), num="auto", max_num=6, warmup_updates=WARMUPS[-1], batches=4, points=10
)
_EVERY = WARMUPS[0] // CLUSTERS.points  # updates between two looks
PATH = "params.yaml"


class Problem(NamedTuple):
    """What is learned from."""

    model: config.Model
    table: TaskTable
    demos: ReplayBuffer


def load(root: Path) -> Problem:
    """Read tasks and demonstrations of a finished run."""
    tasks, model = config.load(config.Tasks, PATH), config.load(config.Model, PATH)
    learning, planner = config.load(config.Learning, PATH), config.load(config.Planner, PATH)
    specs = registry.get(tasks.train, tasks.folder)
    episodes = {spec.name: load_demos(root / "datasets/demos", spec.name) for spec in specs}
    embeddings = TaskEmbeddings.load(root / "datasets/task_embeddings").select(tasks.train)
    table = task_table(specs, embeddings, episodes, model, learning)
    place = ReplayPlace(torch.device("cpu"), None, None)
    return Problem(model, table, demo_buffer(episodes, table.names, model, planner.horizon, place))


def similarities(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    """Train with one seed; return the similarity of the tasks (n, n) after each warm-up, and once more on other slices.

    Keys are the updates of the warm-up, `moment` for the end of the longest alone, and `again` for the longest on other
    slices.
    """
    settings, learning = config.load(config.Pretrain, PATH), config.load(config.Learning, PATH)
    seed_everything(seed)
    learner = Learner(WorldModel(problem.model), problem.table, learning, settings.warmup_updates)
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, list[np.ndarray]] = {}  # by update, on two sets of slices

    def measure(draw: torch.Generator) -> np.ndarray:
        gradients = clustering.task_gradients(learner, problem.demos, CLUSTERS, settings.batch_size, draw, quiet=True)
        return clustering.similarity(gradients)

    with Progress(f"warm-up, seed {seed}", WARMUPS[-1], "updates") as progress:
        for update in range(1, WARMUPS[-1] + 1):
            learner.update(problem.demos.sample(settings.batch_size, generator), "pretrain", generator)
            progress.update(1)
            if update % _EVERY == 0:
                offsets = (clustering.SEED, clustering.SEED + 1000)
                seen[update] = [measure(torch.Generator().manual_seed(seed + 7919 * update + one)) for one in offsets]
    apart = {warmup: warmup // CLUSTERS.points for warmup in WARMUPS}  # updates between the points of each
    points = {w: [both for update, both in seen.items() if update <= w and update % apart[w] == 0] for w in WARMUPS}
    found = {str(warmup): np.mean([first for first, _ in several], 0) for warmup, several in points.items()}
    last = WARMUPS[-1]
    return found | {"moment": seen[last][0], "again": np.mean([second for _, second in points[last]], 0)}


def adjusted_rand(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the agreement of two clusterings of the same things, at most 1. SciPy has no function for it.

    Source: Hubert and Arabie, Journal of Classification 2 (1985).
    """
    _, left = np.unique(first, return_inverse=True)
    _, right = np.unique(second, return_inverse=True)
    counts = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(counts, (left, right), 1)

    def pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    together, rows, columns = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected = rows * columns / pairs(counts.sum(keepdims=True))
    most = (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def agreement(clusters: Sequence[np.ndarray]) -> list[float]:
    """Return the adjusted Rand index of every pair."""
    return [round(adjusted_rand(a.tolist(), b.tolist()), 3) for a, b in itertools.combinations(clusters, 2)]


def claims(found: dict[int, dict[str, np.ndarray]], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the claims, and everything they were made of.

    Args:
        found: by seed, what `similarities` returned.
        names: of the tasks.
    """

    def cut(seed: int, key: str, num: Any) -> clustering.Clustering:
        return clustering.group(names, found[seed][key], num, CLUSTERS.max_num)

    last = str(WARMUPS[-1])
    over_seeds = {
        str(num): {
            key: agreement([cut(seed, key, num).cluster for seed in found]) for key in (*map(str, WARMUPS), "moment")
        }
        for num in NUMS
    }
    over_slices = [
        adjusted_rand(cut(s, last, "auto").cluster.tolist(), cut(s, "again", "auto").cluster.tolist()) for s in found
    ]
    details = {
        "adjusted_rand_over_seeds": over_seeds,
        "adjusted_rand_over_slices": over_slices,
        "clusters": {
            str(seed): {
                key: {
                    "found": cut(seed, key, "auto").describe(),
                    "silhouette": {k: round(v, 3) for k, v in cut(seed, key, "auto").silhouette.items()},
                }
                for key in map(str, WARMUPS)
            }
            for seed in found
        },
        "similarity": {str(seed): found[seed][last].round(3).tolist() for seed in found},
        "tasks": list(names),
    }
    return {
        "adjusted_rand_over_seeds": claim(float(np.mean(over_seeds["auto"][last])), 0.75, "above"),
        "adjusted_rand_over_slices": claim(float(np.mean(over_slices)), 0.9, "above"),
    }, details


def main() -> None:
    """Measure and add the claims to results/systems.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="holds datasets/ of a finished run (default: here)")
    options = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(1)
    problem = load(options.root)
    found = {seed: similarities(problem, seed) for seed in SEEDS}
    figures, details = claims(found, problem.table.names)
    add("systems", "clusters", "python -m benchmarks.clusters", time.monotonic() - started, figures, **details)


if __name__ == "__main__":
    main()
