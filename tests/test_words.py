"""Tasks told in other words: which sentences, on which rows, and what is made of the scores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline import config
from pipeline.known_tasks import Meaning
from pipeline.language.encoder import HashedNgrams
from pipeline.language.head import HeadedEncoder, Understood
from pipeline.language.head_training import train_head
from pipeline.language.phrasings import load_phrasings
from pipeline.learn.evaluator import Result
from pipeline.tasks import registry
from pipeline.words import Rounds, Sentence, kept_sentences, prepare, table
from tests.tiny_agent import ENCODER, SPECS, make_agent

SETTINGS = config.Evaluate(
    episodes=2, processes=1, phrasing="canonical", confidence=0.95, bootstrap_samples=200, open_loop_steps=(),
    open_loop_horizon=4, open_loop_episodes=2, video_size=0, video_every=1, video_fps=15, words_episodes=2,
)  # fmt: skip


def test_kinds_that_are_kept_come_in_turn() -> None:
    spec = registry.get(["mw-reach"])[0]
    found, kinds = kept_sentences(spec), load_phrasings()["mw-reach"]
    assert [one.kind for one in found] == ["indirect", "typos"] * 5
    assert [one.text for one in found[::2]] == kinds["indirect"]
    assert [one.text for one in found[1::2]] == kinds["typos"]


def test_a_task_of_ones_own_is_told_by_its_unseen_text_if_it_has_any() -> None:
    assert kept_sentences(SPECS[0]) == [Sentence(SPECS[0], "unseen", "walk quickly.")]
    assert kept_sentences(replace(SPECS[0], instructions=("walk.",))) == []


def test_each_sentence_has_a_row_and_a_task_without_one_acts_on_its_own() -> None:
    agent = make_agent()
    agent.encoder = ENCODER
    agent.tasks["push"] = replace(SPECS[2], instructions=("push.",))
    told = prepare(agent, list(agent.tasks.values()))
    assert [list(number) for number in told.rounds] == [["walk", "reach"]]
    rows = told.rows(0, list(agent.tasks.values()))
    # `walk quickly.` is among the texts that this agent was trained with, so it means the task.
    assert rows == ["walk", "reach", "push"]
    told.actor.rows(rows)


def test_with_a_head_a_sentence_acts_on_the_row_of_the_task_it_is_understood_as() -> None:
    specs = registry.get(["pendulum-swingup", "pendulum-spin"])
    encoder = HashedNgrams(64)
    settings = config.Head(dim=32, pieces=512, typos=1, epochs=15, batch_size=32, lr=3e-3, dropout=0.1)
    head = HeadedEncoder(encoder, train_head(encoder, specs, settings, seed=1))
    hearer = head.knowing(specs)

    class Hearer:
        def instructed(self, texts: list[str], specs: list) -> tuple[None, list[Meaning]]:
            found = [hearer.understand(text, [one.name for one in specs]) for text in texts]
            return None, [Meaning(one.task or "a row of its own", understood=one) for one in found]

    told = prepare(Hearer(), specs)  # pyright: ignore[reportArgumentType]
    assert len(told.rounds) == 10
    own = sum(told.rows(number, specs).count(name) for number in range(10) for name in told.rounds[number])
    assert own >= 10


def test_scores_in_other_words_beside_own_ones() -> None:
    a, b = SPECS[:2]
    sentences = [Sentence(a, "indirect", "Go."), Sentence(a, "typos", "wakl"), Sentence(b, "unseen", "Get there.")]
    understood = Understood("wakl", "walk", 0.91, "reach", 0.05)
    meanings = [Meaning("Go. (2 action dims)"), Meaning("walk", understood=understood), Meaning("reach")]
    told = Rounds(None, sentences, meanings, [{"walk": 0, "reach": 2}, {"walk": 1}])  # pyright: ignore[reportArgumentType]
    own = {"walk": Result([1.0, 0.6]), "reach": Result([0.4, 0.4])}
    results = [{"walk": Result([0.0, 0.4]), "reach": Result([0.5, 0.5])}, {"walk": Result([1.0, 0.6])}]
    found = table(told, own, results, SETTINGS, seed=1)
    walk, reach = found["tasks"]["walk"], found["tasks"]["reach"]
    assert (walk["own"], walk["other"], walk["ratio"]) == pytest.approx((0.8, 0.5, 0.625))
    assert walk["low"] == pytest.approx(0.25)
    assert walk["high"] == pytest.approx(1.0)
    assert reach["ratio"] == reach["low"] == reach["high"] == pytest.approx(1.25)
    assert found["mean"]["ratio"] == pytest.approx((0.5 + 0.5) / (0.8 + 0.4))
    assert [one["understood"] for one in walk["sentences"]] == [None, "walk"]
    assert [one["score"] for one in walk["sentences"]] == pytest.approx([0.2, 0.8])
    assert found["episodes"] == 2


def test_there_is_no_ratio_to_a_score_of_0_and_none_without_sentences() -> None:
    told = Rounds(None, [Sentence(SPECS[0], "typos", "wakl")], [Meaning("walk")], [{"walk": 0}])  # pyright: ignore[reportArgumentType]
    found = table(told, {"walk": Result([0.0])}, [{"walk": Result([0.5])}], SETTINGS, seed=1)
    assert (found["mean"]["ratio"], found["mean"]["low"], found["mean"]["other"]) == (None, None, 0.5)
    nothing = table(Rounds(None, [], [], []), {}, [], SETTINGS, seed=1)  # pyright: ignore[reportArgumentType]
    assert (nothing["tasks"], nothing["mean"]) == ({}, None)
