"""The sentences that people might say: enough of each kind, all different, for every task."""

from __future__ import annotations

import re

import pytest

from pipeline.language.phrasings import HELD_BACK, TRAINED, load_nothing, load_phrasings
from pipeline.tasks.registry import load_catalogue

NUMBERS = {  # at least, of kinds to learn from
    "short": 3,
    "long": 3,
    "colloquial": 4,
    "nouns": 4,
    "question": 3,
    "wrong": 3,
    "indirect": 5,
    "typos": 5,
}


def test_every_task_of_the_catalogue_has_every_kind() -> None:
    assert load_phrasings().keys() == load_catalogue().keys()
    assert set(NUMBERS) == {*TRAINED, *HELD_BACK}
    for task, kinds in load_phrasings().items():
        assert kinds.keys() == NUMBERS.keys(), task
        for kind, least in NUMBERS.items():
            assert len(kinds[kind]) >= least if kind in TRAINED else len(kinds[kind]) == least, (task, kind)


def test_what_means_nothing_is_no_instruction() -> None:
    nothing = load_nothing()
    assert len(nothing["trained"]) >= 50
    assert len(nothing["held_back"]) >= 30
    seen = {words(one) for kinds in load_phrasings().values() for kind in kinds.values() for one in kind}
    seen |= {words(one) for spec in load_catalogue().values() for one in spec.instructions}
    everything = [words(one) for part in nothing.values() for one in part if words(one)]
    assert len(everything) == len(set(everything))
    assert not seen & set(everything)


def test_no_sentence_is_said_twice() -> None:
    """Not for two tasks, nor in two kinds, nor as one of the texts that are there already."""
    seen = {words(one): name for name, spec in load_catalogue().items() for one in spec.instructions}
    for name, kinds in load_phrasings().items():
        for sentence in (one for kind in kinds.values() for one in kind):
            assert words(sentence) not in seen, f"{sentence!r} is said for {seen[words(sentence)]} and {name}"
            seen[words(sentence)] = name


def words(sentence: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", sentence.casefold()).strip()


@pytest.mark.parametrize(("kind", "low", "high"), [("short", 2, 4), ("long", 14, 30)])
def test_kinds_are_what_they_say(kind: str, low: int, high: int) -> None:
    for task, kinds in load_phrasings().items():
        for sentence in kinds[kind]:
            assert low <= len(sentence.split()) <= high, f"{task}: {sentence}"
    assert all(one.endswith("?") for kinds in load_phrasings().values() for one in kinds["question"])
    assert all(len(one) <= 200 for kinds in load_phrasings().values() for part in kinds.values() for one in part)
