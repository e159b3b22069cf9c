"""Instructions in anyone's words: understood as a known task or as none, said once, and only so many remembered."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import config
from pipeline.agent import Agent
from pipeline.known_tasks import MAX_SAID, Told
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.language.head import HeadedEncoder
from pipeline.language.head_training import train_head
from pipeline.store import ADAPTER_FILES, CHECKPOINT_FILES, listed
from tests.tiny_agent import ENCODER, NEW, PLANNER, SPECS, acts, embeddings_of, make_agent, obs_for

DEEDS = {"walk": "walk along the path", "reach": "reach the high goal", "push": "shove a block", "pull": "tug at ropes"}
FORMS = (
    "{}.",
    "Go and {}.",
    "Please {}.",
    "Just {} now.",
    "You shall {}.",
    "Will you {}?",
    "Do {}.",
    "Now {}.",
)
TEXTS = {name: tuple(form.format(what) for form in FORMS) for name, what in DEEDS.items()}
TASKS = [replace(spec, instructions=TEXTS[spec.name]) for spec in SPECS]
PULL = replace(SPECS[2], name="pull", instructions=TEXTS["pull"], action_dim=2)
SETTINGS = config.Head(dim=16, pieces=256, typos=1, epochs=30, batch_size=16, lr=1e-2, dropout=0.1)


@pytest.fixture(scope="module")
def encoder() -> HeadedEncoder:
    return HeadedEncoder(ENCODER, train_head(ENCODER, TASKS, SETTINGS, seed=1))


@pytest.fixture
def agent(encoder: HeadedEncoder) -> Agent:
    plain = make_agent()
    texts = [spec.training_texts() for spec in TASKS]
    embeddings = embed(encoder, [spec.name for spec in TASKS], texts, 2, [spec.unseen_text() for spec in TASKS])
    agent = Agent(plain.model, TASKS, embeddings, plain.table, PLANNER)
    agent.encoder = ENCODER  # without its head: the agent has it
    return agent


@pytest.fixture
def checkpoint(agent: Agent, tmp_path: Path) -> Path:
    agent.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_with_marks_are_the_same_however_they_are_written(form: str) -> None:
    agent, spec = make_agent(), replace(NEW, instructions=("Öffne die Tür.", "Auf damit."))
    agent.add_task(spec, embeddings_of([spec]), 0.97)
    told = Told(None, unicodedata.normalize(form, "öffne die TÜR"), None)
    assert agent._known.understand(told, spec.obs_dim).name == spec.name


def test_other_words_for_a_task_are_that_task(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    obs = obs_for(TASKS[0])
    own = agent.act(obs, task="walk", plan=False)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(agent.act(obs, instruction="now just walk along teh path", plan=False), own)
        assert agent.table.names == ("walk", "reach", "push")
        agent.act(obs, instruction="now just walk along teh path", plan=False)
    assert len(caplog.messages) == 1, "said once"
    assert "'now just walk along teh path' is understood as walk (probability " in caplog.text


def test_it_can_be_told_to_take_words_literally(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    obs = obs_for(TASKS[0])
    with caplog.at_level(logging.WARNING):
        agent.act(obs, instruction="now just walk along teh path", plan=False, literal=True)
    assert not caplog.messages
    assert len(agent.table.names) == 4
    agent.act(obs, instruction="now just walk along teh path", plan=False)
    assert {key[0].literal: one.name for key, one in agent._said.items()}[False] == "walk"


def test_what_means_nothing_known_is_said_and_acted_on_by_its_own_vector(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = agent.act(obs_for(TASKS[0]), instruction="asdf qwer", action_dim=2, plan=False)
    assert np.isfinite(found).all()
    assert "means none of the known tasks" in caplog.text
    assert agent.table.names[3:] == ("asdf qwer (2 action dims)",)


def test_a_task_of_the_observed_body_alone_is_meant(agent: Agent) -> None:
    assert agent.understand("Just go and shove a blokc").task == "push"
    assert agent.understand("Just go and shove a blokc", TASKS[2].obs_dim, TASKS[2].action_dim).task == "push"
    assert agent.understand("Just go and shove a blokc", TASKS[0].obs_dim, TASKS[0].action_dim).task is None
    assert agent.understand("Just go and shove a blokc", action_dim=99).task is None


@pytest.mark.parametrize("text", ["", " ", "?", "x" * 10_000, "\x00", "走れ 🙂", "make me a coffee", "asdf qwer"])
def test_odd_texts_mean_nothing_and_are_acted_on(agent: Agent, text: str) -> None:
    assert agent.understand(text).task is None
    assert np.isfinite(agent.act(obs_for(TASKS[0]), instruction=text, action_dim=2, plan=False)).all()


def test_without_a_head_nothing_is_understood(tmp_path: Path) -> None:
    plain = make_agent()
    plain.encoder = ENCODER
    with pytest.raises(ValueError, match=r"no head \(language.head was null\)"):
        plain.understand("walk")
    plain.act(obs_for(SPECS[0]), instruction="now just walk along teh path", action_dim=2, plan=False)
    assert len(plain.table.names) == 4
    plain.save_pretrained(tmp_path)
    assert not (tmp_path / "task_embeddings" / "head.json").exists()


def test_any_number_of_sentences_takes_bounded_memory(agent: Agent) -> None:
    obs = obs_for(TASKS[0])
    for number in range(2 * MAX_SAID):
        agent.act(obs, instruction=f"walk along the path {number}", plan=False)
        agent.act(obs, instruction=f"qx {number * 7919}", action_dim=2, plan=False)
    assert len(agent._said) == MAX_SAID
    assert len(agent.table.names) <= 3 + MAX_SAID
    assert isinstance(agent.encoder, HeadedEncoder)
    assert agent.encoder.head.names == ("push", "reach", "walk")


def test_the_head_goes_with_the_checkpoint(agent: Agent, checkpoint: Path) -> None:
    assert {"task_embeddings/head.json", "task_embeddings/head.safetensors"} <= set(
        listed(checkpoint, CHECKPOINT_FILES)
    )
    found = Agent.from_pretrained(checkpoint)
    text = "now just walk along teh path"
    assert found.understand(text) == agent.understand(text)
    for other in (found, found.with_planner(PLANNER), found.grown(8, 3)):
        assert other.understand(text).task == "walk"
        assert other.act(obs_for(TASKS[0]), instruction=text, plan=False).shape == (2,)
        assert other.table.names == ("walk", "reach", "push")


def test_a_checkpoint_that_lost_its_head_is_refused(checkpoint: Path) -> None:
    (checkpoint / "task_embeddings" / "head.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"head\.json is missing"):
        Agent.from_pretrained(checkpoint)


def test_another_encoder_below_the_head_is_refused(checkpoint: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    agent.encoder = HashedNgrams(32)
    with pytest.raises(ValueError, match="but hashed-ngrams-32"):
        agent.understand("walk")


def test_a_task_that_was_added_is_understood_and_comes_back_with_its_adapter(
    checkpoint: Path, tmp_path: Path, encoder: HeadedEncoder
) -> None:
    agent = Agent.from_pretrained(checkpoint)
    assert agent.understand("have a tug at the ropes").task is None
    agent.add_task(PULL, agent.embed(PULL), 0.97)
    assert agent.understand("have a tug at the ropes").task == "pull"
    assert agent.understand("now just walk along teh path").task == "walk"
    agent.create_adapter("pull", ["policy"], rank=2, alpha=4.0)
    agent.save_adapter(tmp_path / "adapter", "pull")
    assert not any("head" in name for name in listed(tmp_path / "adapter", ADAPTER_FILES))
    again = Agent.from_pretrained(checkpoint)
    again.add_adapter(tmp_path / "adapter")
    assert again.understand("have a tug at the ropes").task == "pull"
    assert np.array_equal(acts(again, PULL), acts(agent, PULL))


def test_an_adapter_of_another_head_is_refused(agent: Agent, checkpoint: Path, tmp_path: Path) -> None:
    adapted = Agent.from_pretrained(checkpoint)
    adapted.add_task(PULL, adapted.embed(PULL), 0.97)
    adapted.create_adapter("pull", ["policy"], rank=2, alpha=4.0)
    adapted.save_adapter(tmp_path / "adapter", "pull")
    other = HeadedEncoder(ENCODER, train_head(ENCODER, TASKS, replace(SETTINGS, epochs=1), seed=2))
    agent.embeddings = embed(other, list(agent.tasks), [spec.training_texts() for spec in TASKS], 2)
    agent.base = adapted.base
    with pytest.raises(ValueError, match="their vectors mean different things"):
        agent.add_adapter(tmp_path / "adapter")


def test_rows_for_many_sentences_at_once(agent: Agent) -> None:
    texts = ["Just go and walk along a path.", "asdf qwer"]
    actor, meant = agent.instructed(texts, [TASKS[0], TASKS[0]])
    assert [one.name for one in meant] == ["walk", "asdf qwer (2 action dims)"]
    assert actor.table.names == ("walk", "reach", "push", "asdf qwer (2 action dims)")
    assert agent.table.names == ("walk", "reach", "push")
