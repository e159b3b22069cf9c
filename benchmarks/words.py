"""Which task does a sentence mean that nobody trained on? The head on the text encoder, beside what does without it.

    python -m benchmarks.words              Meta-World's 49 tasks and the pendulum's two; minutes on one core
    python -m benchmarks.words --seeds 1 2  heads of several seeds; the first is the one that claims are about

Sentences of the kinds that are kept back (pipeline/language/phrasings.py) are each said to their task's body. A task is
right if it comes first among those of the body. The ways without a head compare a sentence with the texts of every task
by cosine: with the body's sentence in front, as the world model without a head gets it; without it (two vectors, one
of the body and one of the instruction); with it, but every vector centred on the mean of its body's; and without it,
among all sentences that a head learns from. Of an agent that knows the default run's tasks alone it is then asked what
it understands: of sentences about its own tasks, about those of the body that it has not learned, and about nothing.
Writes benchmarks/results/words.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import results
from pipeline import config
from pipeline.language.encoder import TextEncoder, load_encoder
from pipeline.language.head import HeadedEncoder
from pipeline.language.head_training import sentences, tasks_told_apart, train_head
from pipeline.language.phrasings import HELD_BACK, load_nothing, load_phrasings
from pipeline.run.cores import one_thread_by_default
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

Ranks = Callable[[Sequence[str], str], np.ndarray]  # sentences and their body -> (n, C) how much each means each task


class Memory:
    """A text encoder that encodes each text once."""

    def __init__(self, encoder: TextEncoder):
        self._encoder, self._found = encoder, dict[str, np.ndarray]()
        self.id, self.dim, self.seconds = encoder.id, encoder.dim, 0.0  # core-seconds in here

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, E) float32."""
        started = time.process_time()
        for text in texts:
            if text not in self._found:
                self._found[text] = self._encoder.encode([text])[0]
        self.seconds += time.process_time() - started
        return np.stack([self._found[text] for text in texts])

    def seconds_each(self, texts: Sequence[str]) -> float:
        """Return the core-seconds of encoding a text, timed on these."""
        started = time.process_time()
        self._encoder.encode(texts)
        return (time.process_time() - started) / len(texts)


def without_head(encoder: Memory, tasks: Sequence[TaskSpec]) -> dict[str, Ranks]:
    """Return the ways that compare a sentence with texts by cosine, each with the best text of every task."""
    own = [(row, text) for row, spec in enumerate(tasks) for text in spec.instructions]
    body = tasks[0].embodiment
    said = sentences(tasks, [body], 0, 0)
    learned = [(int(row), text) for row, text in zip(said.tasks, said.texts, strict=True) if row < len(tasks)]
    mean = encoder.encode([f"{body} {text}" for _, text in own]).mean(0)

    def nearest(texts: Sequence[tuple[int, str]], vectors: Callable[[Sequence[str]], np.ndarray]) -> Ranks:
        rows, others = np.array([row for row, _ in texts]), vectors([text for _, text in texts])

        def ranks(told: Sequence[str], _: str) -> np.ndarray:
            cosines = vectors(told) @ others.T
            return np.stack([cosines[:, rows == row].max(1) for row in range(len(tasks))], axis=1)

        return ranks

    def unit(vectors: np.ndarray) -> np.ndarray:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def in_front(texts: Sequence[str]) -> np.ndarray:
        return unit(encoder.encode([f"{body} {text}" for text in texts]))

    return {
        "nothing: body in front, nearest own text": nearest(own, in_front),
        "two vectors: nearest own instruction": nearest(own, lambda texts: unit(encoder.encode(texts))),
        "centred on the body's mean": nearest(
            own, lambda texts: unit(encoder.encode([f"{body} {text}" for text in texts]) - mean)
        ),
        "two vectors: nearest of all that is learned from": nearest(learned, lambda texts: unit(encoder.encode(texts))),
    }


def of_head(headed: HeadedEncoder, tasks: Sequence[TaskSpec]) -> Ranks:
    """Return how the head ranks tasks."""
    columns = [headed.head.names.index(spec.name) for spec in tasks]

    def ranks(told: Sequence[str], body: str) -> np.ndarray:
        projected = headed.head.project(headed.encoder.encode(told), told)
        return np.stack([headed.head.posterior(one, [body], ())[columns] for one in projected])

    return ranks


def accuracy(ranks: Ranks, tasks: Sequence[TaskSpec], kind: str) -> float:
    """Return how often the task that is meant comes first."""
    right = [
        ranks(load_phrasings()[spec.name][kind], spec.embodiment).argmax(1) == row for row, spec in enumerate(tasks)
    ]
    return round(float(np.concatenate(right).mean()), 4)


def by_kind(ranks: Ranks, tasks: Sequence[TaskSpec]) -> dict[str, float]:
    """Return the accuracy on each kind that is kept back, and on both."""
    found = {kind: accuracy(ranks, tasks, kind) for kind in HELD_BACK}
    return found | {"both": round(float(np.mean(list(found.values()))), 4)}


def understood(headed: HeadedEncoder, known: Sequence[TaskSpec], tasks: Sequence[TaskSpec]) -> dict[str, float]:
    """Return shares of sentences, for an agent that knows some tasks of a body alone.

    `right` and `wrong` of those about what it knows, understood as that or as another task; `unlearned` of those about
    what it has not learned and `nothing` of those about nothing, understood as a task all the same. `first` is how
    often the task comes first among the known ones, sure or not.
    """
    names, body = [spec.name for spec in known], known[0].embodiment
    hearer = headed.knowing(known)
    told = {spec.name: [one for kind in HELD_BACK for one in load_phrasings()[spec.name][kind]] for spec in tasks}

    def heard(texts: Sequence[str]) -> list[str | None]:
        return [hearer.understand(f"{body} {text}", names).task for text in texts]

    own = [(name, task) for name in names for task in heard(told[name])]
    others = [task for name, texts in told.items() if name not in names for task in heard(texts)]
    nothing = heard(load_nothing()["held_back"])
    first = [
        row == best
        for row, name in enumerate(names)
        for best in of_head(hearer, known)(told[name], body).argmax(1)
    ]  # fmt: skip
    shares = {
        "right": [task == name for name, task in own],
        "wrong": [task not in (name, None) for name, task in own],
        "first": first,
        "unlearned": [task is not None for task in others],
        "nothing": [task is not None for task in nothing],
    }
    return {key: round(float(np.mean(found)), 4) if found else 0.0 for key, found in shares.items()}


def measure(seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return claims and figures."""
    language, run = config.load(config.Language), config.load(config.Tasks)
    assert language.head is not None, "params.yaml has language.head: null, so there is no head to measure"
    encoder, specs = Memory(load_encoder(language.encoder)), registry.get(run.train)
    bodies = list(dict.fromkeys(spec.embodiment for spec in specs))
    tasks = {body: [one for one in tasks_told_apart(specs) if one.embodiment == body] for body in bodies}
    known = {body: [one for one in specs if one.embodiment == body] for body in bodies}
    arm = tasks[bodies[0]]
    ways = {name: by_kind(ranks, arm) for name, ranks in without_head(encoder, arm).items()}
    said = sentences([spec for body in bodies for spec in tasks[body]], bodies, language.head.typos, 1)
    heads: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        before = time.process_time() - encoder.seconds
        headed = HeadedEncoder(encoder, train_head(encoder, specs, language.head, seed))
        training = time.process_time() - encoder.seconds - before
        encoding = encoder.seconds_each(said.texts[::40]) * len(said.texts)
        row = {
            "core_seconds": round(training + encoding, 1),
            "of_these_encoding": round(encoding, 1),
            "scale": headed.head.scale,
            "nothing": headed.head.nothing,
            "arm": by_kind(of_head(headed, arm), arm),
            "agent": {body: understood(headed, known[body], tasks[body]) for body in bodies},
        }
        heads[seed] = row
    first = heads[seeds[0]]
    count = {body: len(known[body]) for body in bodies}

    def mean(key: str) -> float:
        return round(float(np.average([first["agent"][body][key] for body in bodies], weights=list(count.values()))), 4)

    claims = {
        "of_49_meta_world_tasks": results.claim(first["arm"]["both"], 0.9, "above"),
        "of_the_default_runs_tasks": results.claim(mean("first"), 0.95, "above"),
        "understood_wrongly": results.claim(mean("wrong"), 0.05, "below"),
        "nothing_taken_for_a_task": results.claim(mean("nothing"), 0.05, "below"),
        "core_seconds": results.claim(first["core_seconds"], 60.0, "below"),
    }
    return claims, {"seeds": list(seeds), "ways": ways, "heads": {str(seed): row for seed, row in heads.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options = parser.parse_args(arguments)
    one_thread_by_default()
    started = time.monotonic()
    claims, figures = measure(options.seeds)
    seeds = "" if options.seeds == [1] else f" --seeds {' '.join(map(str, options.seeds))}"
    results.write("words", f"python -m benchmarks.words{seeds}", time.monotonic() - started, claims, **figures)
    for name, found in figures["ways"].items():
        print(f"{name}: {found}")
    for seed, row in figures["heads"].items():
        print(f"head of seed {seed}: {row}")


if __name__ == "__main__":
    main()
