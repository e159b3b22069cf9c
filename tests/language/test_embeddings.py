"""The table of task embeddings: what it holds, how it is kept, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import HashedNgrams

NAMES = ("walk", "run", "reach")
TEXTS = (
    ("walker walk", "walker stroll", "walker go on foot"),
    ("walker run",),
    ("arm reach the goal", "arm touch the goal"),
)


@pytest.fixture
def table() -> TaskEmbeddings:
    return embed(HashedNgrams(32), NAMES, TEXTS, phrasings=2)


def test_each_vector_is_that_of_its_text(table: TaskEmbeddings) -> None:
    assert table.vectors.shape == (3, 2, 32)
    assert table.dim == 32
    for row, texts in enumerate(table.texts):
        assert np.array_equal(table.vectors[row], HashedNgrams(32).encode(texts))


@pytest.mark.parametrize(
    ("phrasings", "expected"),
    [
        (1, ("arm reach the goal",)),
        (2, ("arm reach the goal", "arm touch the goal")),
        (3, ("arm reach the goal", "arm touch the goal", "arm reach the goal")),
    ],
)
def test_too_few_texts_are_repeated_in_turn(phrasings: int, expected: tuple[str, ...]) -> None:
    assert embed(HashedNgrams(32), NAMES, TEXTS, phrasings).texts[2] == expected


def test_one_more_text_is_kept_for_evaluation_and_never_among_those_of_training(tmp_path: Path) -> None:
    unseen = ("walker amble", "walker run", "arm get to the goal")
    table = embed(HashedNgrams(32), NAMES, TEXTS, 2, unseen)
    assert table.unseen_texts == unseen
    assert np.array_equal(table.unseen_vectors, HashedNgrams(32).encode(unseen))
    assert "walker amble" not in table.texts[0]
    table.save(tmp_path)
    loaded = TaskEmbeddings.load(tmp_path)
    assert loaded.unseen_texts == unseen
    assert np.array_equal(loaded.unseen_vectors, table.unseen_vectors)
    joined = loaded.select(["reach", "walk"]).join(loaded.select(["run"]))
    assert joined.unseen_texts == (unseen[2], unseen[0], unseen[1])
    table.check(NAMES, TEXTS, "hashed-ngrams-32", unseen)
    with pytest.raises(ValueError, match="task 'reach' that is kept for evaluation has changed"):
        table.check(NAMES, TEXTS, "hashed-ngrams-32", (*unseen[:2], "arm grope"))


def test_select_keeps_the_asked_order(table: TaskEmbeddings) -> None:
    part = table.select(["reach", "walk"])
    assert part.names == ("reach", "walk")
    assert np.array_equal(part.vectors, table.vectors[[2, 0]])
    assert part.texts == (table.texts[2], table.texts[0])
    with pytest.raises(ValueError, match="Did you mean `walk`"):
        table.select(["wakl"])


def test_saved_and_loaded_bit_for_bit(table: TaskEmbeddings, tmp_path: Path) -> None:
    table.save(tmp_path / "out")
    loaded = TaskEmbeddings.load(tmp_path / "out")
    assert np.array_equal(loaded.vectors, table.vectors)
    assert (loaded.names, loaded.texts, loaded.encoder) == (table.names, table.texts, table.encoder)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["texts.json", "vectors.safetensors"]


def test_what_fits_is_accepted(table: TaskEmbeddings) -> None:
    table.check(NAMES, TEXTS, "hashed-ngrams-32")
    table.check(["run"], [TEXTS[1]], "hashed-ngrams-32")


def test_another_encoder_is_refused(table: TaskEmbeddings) -> None:
    with pytest.raises(ValueError, match=r"hashed-ngrams-32.*hashed-ngrams-64.*dvc repro embed"):
        table.check(NAMES, TEXTS, "hashed-ngrams-64")


def test_a_changed_text_is_refused_by_name(table: TaskEmbeddings) -> None:
    with pytest.raises(ValueError, match=r"task 'run' has changed.*'walker run'.*'walker sprint'.*dvc repro embed"):
        table.check(NAMES, (TEXTS[0], ("walker sprint",), TEXTS[2]), "hashed-ngrams-32")


def test_tables_of_one_encoder_join(table: TaskEmbeddings) -> None:
    assert np.array_equal(table.select(NAMES[:1]).join(table.select(NAMES[1:])).vectors, table.vectors)
    other = embed(HashedNgrams(64), ["jump"], [["walker jump"]], 2)
    with pytest.raises(ValueError, match=r"jump were embedded by hashed-ngrams-64.*hashed-ngrams-32"):
        table.join(other)


def test_a_text_changed_by_hand_is_refused(table: TaskEmbeddings, tmp_path: Path) -> None:
    table.save(tmp_path)
    content = json.loads((tmp_path / "texts.json").read_text())
    content["tasks"][1]["texts"][0] = "walker sprint"
    (tmp_path / "texts.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"task 'run'.*changed by hand"):
        TaskEmbeddings.load(tmp_path)


def test_missing_and_damaged_files_say_what_to_run(table: TaskEmbeddings, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dvc repro embed"):
        TaskEmbeddings.load(tmp_path / "nothing")
    table.save(tmp_path)
    (tmp_path / "vectors.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="dvc repro embed"):
        TaskEmbeddings.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros((3, 1, 32), np.float32)}, "shape"),
        ({"vectors": np.zeros((3, 2, 32))}, "float32"),
        ({"vectors": np.full((3, 2, 32), np.nan, np.float32)}, "not finite"),
        ({"texts": (("a", "b"), ("c",), ("d", "e"))}, "every one of the 3 tasks needs 2 texts"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(table: TaskEmbeddings, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(table, **change)
