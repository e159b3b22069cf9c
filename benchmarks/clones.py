"""What a clone of 20 demonstrations scores, and one whose expert was asked in the states that it went to itself.

    python -m benchmarks.clones --tasks pygame-pong lunarlander-land  seconds to minutes a task
    python -m benchmarks.clones --tasks pygame-pong --labels     and three rounds of labels
    python -m benchmarks.clones --tasks pygame-pong --teachers   by the teacher that comes with Eft

The demonstrations are those of the stage `demos`: the same attempts, every second one disturbed, kept from the same
score on. A clone has two layers of 256, reads normalised observations and is trained on 3,000 batches of 256. With
`--labels` it then plays some episodes, whose states the expert labels, and is trained anew on everything, three times.
A planner labels the states that it would have planned from had it acted itself, and carries its plan on from one to the
next. Every task is a part of results/clones.json with its own command, commit and machine; one that is there is left
out, unless it lacks labels that are asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from pipeline.data.episode import Episode
from pipeline.demonstrate.experts import open_expert
from pipeline.demonstrate.planner import load_recipes
from pipeline.demonstrate.play import expert_method, least_score, open_planner, play
from pipeline.demonstrate.ppo import fit, network
from pipeline.demonstrate.teach import play_teacher
from pipeline.demonstrate.teacher import SHIPPED, Teacher
from pipeline.tasks.registry import get, make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

SEED, NOISE = 1, 0.5
DEMOS, MAX_ATTEMPTS = 20, 100
HIDDEN = 256
EPISODES = 20  # that a clone is judged by
ROUNDS, LABELLED = 3, 5  # rounds of labels, and episodes that the clone plays in each
_LABELLED_FROM = 2_000_000  # where their seeds begin
HEADING = (
    "task", "method", "kept of attempts", "score", "undisturbed", "seconds each", "clone of 20", "with labels"
)  # fmt: skip

Pairs = tuple[np.ndarray, np.ndarray]  # observations (n, O), and what the expert does there (n, a)
LabelOrNone = Callable[[np.ndarray, bool], np.ndarray | None]


@contextmanager
def core_seconds(into: dict[str, float], key: str) -> Iterator[None]:
    """Add the processor time of a block to `into[key]`."""
    started = time.process_time()
    yield
    into[key] = round(into.get(key, 0.0) + time.process_time() - started, 2)


def collect(spec: TaskSpec, teachers: Path | None) -> tuple[list[Episode], dict[str, Any]]:
    """Return the first good demonstrations of a task, and what they scored.

    Raises:
        RuntimeError: too few attempts are good.
    """
    kept: list[Episode] = []
    scores: list[float] = []
    while len(kept) < DEMOS:
        if len(scores) == MAX_ATTEMPTS:
            raise RuntimeError(f"{spec.name}: {len(kept)} of {MAX_ATTEMPTS} attempts are good, {DEMOS} are wanted.")
        episode = play(spec, SEED, len(scores), NOISE, teachers)
        scores.append(episode.score)
        if episode.score >= least_score(spec, teachers):
            kept.append(episode)
    return kept, {
        "attempts": len(scores),
        "score": round(float(np.mean([episode.score for episode in kept])), 4),
        "undisturbed": round(float(np.mean(scores[::2])), 4),  # kept or not
    }


def clone(spec: TaskSpec, pairs: Sequence[Pairs]) -> Teacher:
    """Return a policy that was trained on what an expert does in some states."""
    obs, action = (np.concatenate(part) for part in zip(*pairs, strict=True))
    torch.manual_seed(SEED)
    policy = network(spec.obs_dim, spec.action_dim, HIDDEN, 0.01)
    normaliser = fit(policy, obs, action, torch.Generator().manual_seed(SEED))
    weights = [part.detach().numpy() for part in policy.parameters()]
    return Teacher(spec, normaliser.mean, normaliser.std, weights)


def judge(student: Teacher) -> dict[str, float]:
    """Play whole episodes; return mean score and standard error."""
    scores = play_teacher(student, EPISODES, 0)
    return {
        "score": round(float(scores.mean()), 4),
        "standard_error": round(float(scores.std(ddof=1) / EPISODES**0.5), 4),
    }


def labeller(spec: TaskSpec, env: TaskEnv, seed: int, teachers: Path | None, opened: ExitStack) -> LabelOrNone:
    """Return who labels the states of an episode that has just been reset with a seed; None is no label."""
    if expert_method(spec, teachers) != "planner":
        return open_expert(spec, env, teachers)
    planner = open_planner(spec, env, seed, np.random.default_rng([seed, 1]), opened)
    every, seen = load_recipes()[spec.name].replan_every, 0

    def label(obs: np.ndarray, success: bool) -> np.ndarray | None:
        # The later actions of a plan are for where the earlier ones lead, which the student does not do.
        nonlocal seen
        seen += 1
        return planner.plan()[0] if (seen - 1) % every == 0 else None

    return label


def ask(spec: TaskSpec, student: Teacher, seeds: Sequence[int], teachers: Path | None) -> Pairs:
    """Let the student play, and return the states that it went to with what the expert does there."""
    states, labels = [], []
    for seed in seeds:
        with ExitStack() as opened:
            env = make(spec, spec.obs_dim, spec.action_dim)
            opened.callback(env.close)
            obs, info = env.reset(seed=seed)
            label, over = labeller(spec, env, seed, teachers, opened), False
            while not over:
                wanted = label(obs, bool(info["success"]))
                if wanted is not None:
                    states.append(obs)
                    labels.append(np.clip(wanted, -1, 1))
                obs, _, terminated, truncated, info = env.step(student.label(obs))
                over = terminated or truncated
    return np.stack(states), np.stack(labels)


def measure(spec: TaskSpec, labels: bool, teachers: Path | None) -> dict[str, Any]:
    """Return what the demonstrations of a task and its clones score, and the core-seconds of each part."""
    seconds: dict[str, float] = {}
    with core_seconds(seconds, "demonstrations"):
        demos, row = collect(spec, teachers)
    pairs: list[Pairs] = [(episode.obs[:-1], episode.expert_action) for episode in demos]
    with core_seconds(seconds, "clone"):
        student = clone(spec, pairs)
    row |= {"method": demos[0].method, "clone": judge(student)}
    for number in range(ROUNDS if labels else 0):
        first = _LABELLED_FROM + number * LABELLED
        with core_seconds(seconds, "labels"):
            pairs.append(ask(spec, student, range(first, first + LABELLED), teachers))
            student = clone(spec, pairs)
        row.setdefault("labelled", []).append(judge(student))
    return {**row, "core_seconds": seconds}


def table(parts: dict[str, dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
    lines = [HEADING, ("---",) * len(HEADING)]
    for name, row in parts.items():
        each = row["core_seconds"]["demonstrations"] / row["attempts"]
        after = f"{row['labelled'][-1]['score']:.2f}" if "labelled" in row else ""
        shown = f"{row['score']:.2f}", f"{row['undisturbed']:.2f}", f"{each:.1f}", f"{row['clone']['score']:.2f}", after
        lines.append((name.split()[0], row["method"], f"{DEMOS} of {row['attempts']}", *shown))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def there() -> dict[str, dict[str, Any]]:
    """Return what was measured before, by `<task> <method>`."""
    path = results.RESULTS / "clones.json"
    return json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--teachers", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    teachers = SHIPPED if options.teachers else None
    for spec in get(options.tasks):
        name = f"{spec.name} {expert_method(spec, teachers)}"
        before = there().get(name)
        if before is not None and ("labelled" in before or not options.labels):
            print(f"{name}: there already", file=sys.stderr)
            continue
        started = time.monotonic()
        row = measure(spec, options.labels, teachers)
        flags = " --labels" * options.labels + " --teachers" * options.teachers
        command = f"python -m benchmarks.clones --tasks {spec.name}{flags}"
        results.add("clones", name, command, time.monotonic() - started, {}, **row)
        print(table({name: there()[name]}).splitlines()[-1], file=sys.stderr)
    print(table(there()))


if __name__ == "__main__":
    main()
