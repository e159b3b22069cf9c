"""How an agent fares when a task is said in other words: sentences of kinds that nothing was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from pipeline import config
from pipeline.agent import Agent
from pipeline.known_tasks import Meaning
from pipeline.language.phrasings import HELD_BACK, load_phrasings
from pipeline.learn.evaluator import Result
from pipeline.model.actor import Actor
from pipeline.statistics import bootstrap_mean
from pipeline.tasks.spec import TaskSpec


class Sentence(NamedTuple):
    """One sentence that a task is told by."""

    spec: TaskSpec
    kind: str  # of phrasings.HELD_BACK, or `unseen`: the task's own text that training never draws
    text: str  # without the body's sentence


class Rounds(NamedTuple):
    """Sentences in rounds, one for each task in each round, and who acts on them."""

    actor: Actor  # its table has a row for each
    sentences: list[Sentence]
    meanings: list[Meaning]  # of each sentence
    rounds: list[dict[str, int]]  # task -> number of its sentence; a task may have fewer sentences than another

    def rows(self, number: int, specs: Sequence[TaskSpec]) -> list[str]:
        """Return the row that each task acts on in a round; its own where it has no sentence left."""
        told = self.rounds[number]
        return [self.meanings[told[spec.name]].name if spec.name in told else spec.name for spec in specs]


def kept_sentences(spec: TaskSpec) -> list[Sentence]:
    """Return the sentences kept for evaluation, the kinds in turn; of a task of one's own its last text, if it has any.

    None of them is trained on.
    """
    kinds = load_phrasings().get(spec.name)
    if kinds is None:
        return [Sentence(spec, "unseen", text) for text in spec.instructions[1:][-1:]]
    in_turn = zip_longest(*([(kind, text) for text in kinds[kind]] for kind in HELD_BACK))
    return [Sentence(spec, *pair) for pairs in in_turn for pair in pairs if pair is not None]


def prepare(agent: Agent, specs: Sequence[TaskSpec]) -> Rounds:
    """Let an agent hear every kept sentence of some tasks as `act` would, said to the task's body."""
    kept = {spec.name: kept_sentences(spec) for spec in specs}
    sentences = [one for each in kept.values() for one in each]
    numbers = {id(one): number for number, one in enumerate(sentences)}
    most = max(map(len, kept.values()), default=0)
    rounds = [
        {name: numbers[id(each[number])] for name, each in kept.items() if number < len(each)} for number in range(most)
    ]
    texts = [f"{one.spec.embodiment} {one.text}" for one in sentences]
    actor, meanings = agent.instructed(texts, [one.spec for one in sentences])
    return Rounds(actor, sentences, meanings, rounds)


def table(
    told: Rounds,
    own: Mapping[str, Result],
    results: Sequence[Mapping[str, Result]],
    settings: config.Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Return what was scored in other words, beside the tasks' own words, for JSON.

    Args:
        told: the sentences.
        own: of each task in its own words.
        results: of each round, from the same starts.
        settings: confidence and samples of the intervals, over sentences drawn anew within tasks.
        seed: of the intervals.
    """
    scores: dict[str, list[float]] = {}
    said: dict[str, list[dict[str, Any]]] = {}
    for number, found in zip(told.rounds, results, strict=True):
        for name, index in number.items():
            sentence, understood = told.sentences[index], told.meanings[index].understood
            scores.setdefault(name, []).append(found[name].score)
            said.setdefault(name, []).append(
                {
                    "text": sentence.text,
                    "kind": sentence.kind,
                    "score": found[name].score,
                    "understood": understood and understood.task,
                    "probability": understood and round(understood.probability, 4),
                }
            )
    tasks = {
        name: _ratio([each], [own[name].score], settings, seed) | {"sentences": said[name]}
        for name, each in scores.items()
    }
    mean = _ratio(list(scores.values()), [own[name].score for name in scores], settings, seed) if scores else None
    return {"episodes": settings.words_episodes, "tasks": tasks, "mean": mean}


def _ratio(
    strata: Sequence[Sequence[float]], own: Sequence[float], settings: config.Evaluate, seed: int
) -> dict[str, Any]:
    """Return own score, score in other words, and their ratio with its interval; no ratio where the own score is 0."""
    found = bootstrap_mean(strata, settings.confidence, settings.bootstrap_samples, np.random.default_rng(seed))
    base = float(np.mean(own))
    ratios = {
        key: value / base if base else None
        for key, value in (("ratio", found.score), ("low", found.low), ("high", found.high))
    }
    return {"own": base, "other": found.score, **ratios}
