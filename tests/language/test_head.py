"""The head between text encoder and world model: what it tells apart, what it refuses, what lies on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import config
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import HashedNgrams
from pipeline.language.head import MARK, HeadedEncoder, Understood
from pipeline.language.head_training import sentences, tasks_told_apart, train_head, typing_errors
from pipeline.language.phrasings import HELD_BACK, TRAINED, load_nothing, load_phrasings
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

SETTINGS = config.Head(dim=32, pieces=512, typos=1, epochs=15, batch_size=32, lr=3e-3, dropout=0.1)
ENCODER = HashedNgrams(64)
SPECS = registry.get(["pendulum-swingup", "pendulum-spin"])
OWN = replace(
    SPECS[0],
    name="pendulum-hang",
    instructions=(
        "Let the pole hang down.",
        "Keep the pole low.",
        "Leave the pole hanging down.",
        "Stay at the bottom.",
    ),
)


@pytest.fixture(scope="module")
def encoder() -> HeadedEncoder:
    return HeadedEncoder(ENCODER, train_head(ENCODER, SPECS, SETTINGS, seed=1))


@pytest.fixture
def embeddings(encoder: HeadedEncoder) -> TaskEmbeddings:
    return embedded(encoder, SPECS)


def embedded(encoder: HeadedEncoder, specs: list[TaskSpec]) -> TaskEmbeddings:
    texts = [spec.training_texts() for spec in specs]
    return embed(encoder, [spec.name for spec in specs], texts, 2, [spec.unseen_text() for spec in specs])


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_head_and_another_another(encoder: HeadedEncoder) -> None:
    again = train_head(ENCODER, SPECS, SETTINGS, seed=1)
    assert again.digits == encoder.head.digits
    assert np.array_equal(again.weight, encoder.head.weight)
    assert train_head(ENCODER, SPECS, replace(SETTINGS, epochs=1), seed=2).digits != again.digits


def test_kinds_kept_for_evaluation_and_last_texts_are_not_trained_on() -> None:
    tasks = tasks_told_apart(SPECS)
    said = sentences(tasks, [tasks[0].embodiment], 1, 0)
    kept = {text for spec in tasks for kind in HELD_BACK for text in load_phrasings()[spec.name][kind]}
    kept |= {spec.instructions[-1] for spec in tasks} | set(load_nothing()["held_back"])
    assert not kept & set(said.texts)
    assert {*TRAINED, "own", "nothing"} == set(said.kinds)
    assert {spec.name for spec in tasks} >= {"pendulum-swingup", "pendulum-spin"}
    assert {spec.embodiment for spec in tasks} == {SPECS[0].embodiment}


def test_a_task_without_phrasings_is_told_apart_by_its_own_texts() -> None:
    other = replace(OWN, embodiment="A pole of mine hangs here.")
    spinning = replace(other, name="mine-spin", instructions=("Whirl around.", "Keep turning.", "Spin.", "Rotate."))
    encoder = HeadedEncoder(ENCODER, train_head(ENCODER, [other, spinning], SETTINGS, seed=1))
    assert encoder.head.names == ("mine-spin", "pendulum-hang")
    assert encoder.understand("keep on turning", [spec.name for spec in (other, spinning)]).task == "mine-spin"


def test_typing_errors_change_a_text_and_never_fail() -> None:
    draw = np.random.default_rng(0)
    texts = ["Open the drawer.", "ab", "", "éàü ñandú", "a b c d"]
    assert all(isinstance(typing_errors(text, draw), str) for text in texts for _ in range(200))
    assert typing_errors("", draw) == ""
    assert sum(typing_errors("Open the drawer.", draw) != "Open the drawer." for _ in range(100)) > 95


# --- what it makes of words -------------------------------------------------------------------------------------------


def test_other_words_for_a_task_get_nearly_its_vector(encoder: HeadedEncoder) -> None:
    """Nearer to it than without the head, and than to the other task's, for most of what was never trained on."""
    right, without = [], []
    for spec, other in (SPECS, SPECS[::-1]):
        texts = [f"{spec.embodiment} {text}" for text in load_phrasings()[spec.name]["typos"]]
        for found, vectors in ((right, encoder), (without, ENCODER)):
            own, another = vectors.encode([spec.text(), other.text()])
            to_own, to_other = (np.linalg.norm(vectors.encode(texts) - one, axis=1) for one in (own, another))
            found += list(to_own / (to_own + to_other))
    assert np.mean(np.array(right) < 0.5) >= 0.9
    assert np.median(right) < 0.7 * np.median(without)


def test_its_own_text_keeps_the_vector_of_the_bare_encoder(encoder: HeadedEncoder) -> None:
    texts = [spec.text() for spec in SPECS]
    found, plain = encoder.encode(texts), ENCODER.encode(texts)
    assert found.dtype == np.float32
    assert (np.linalg.norm(found - plain, axis=1) < 0.05 * np.linalg.norm(plain[0] - plain[1])).all()


def test_what_means_nothing_keeps_its_own_vector(encoder: HeadedEncoder) -> None:
    texts = [f"{SPECS[0].embodiment} {text}" for text in ("Buy milk and bread.", "zxcv bnmm")]
    assert np.allclose(encoder.encode(texts), ENCODER.encode(texts), atol=0.3)


def test_a_vector_does_not_depend_on_the_texts_beside_it(encoder: HeadedEncoder) -> None:
    texts = ["Spin!", SPECS[0].text(), "x", "", "Ж" * 50, SPECS[1].unseen_text()]
    together = encoder.encode(texts)
    assert together.shape == (6, 64)
    assert np.isfinite(together).all()
    assert all(np.array_equal(together[i], encoder.encode([text])[0]) for i, text in enumerate(texts))
    assert encoder.encode([]).shape == (0, 64)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (SPECS[0].text(), "pendulum-swingup"),
        (SPECS[1].instructions[0], "pendulum-spin"),
        ("swnig teh pole up and hold it uprigth", "pendulum-swingup"),
        ("asdf qwer", None),
        ("make me a coffee", None),
        ("", None),
        (SPECS[0].embodiment, None),
        ("  \n\t ", None),
        ("...", None),
        ("Добрый день 你好 🙂", None),
        ("x" * 10_000, None),
        ("blah blub " * 1_000, None),
    ],
)
def test_a_task_is_understood_and_nonsense_is_not(encoder: HeadedEncoder, text: str, task: str | None) -> None:
    found = encoder.understand(text, [spec.name for spec in SPECS])
    assert found.task == task
    assert 0.5 < found.probability <= 1
    assert 0 <= found.runner_up_probability <= 0.5
    assert ("understood as" if task else "none of the known tasks") in str(found)


def test_most_sentences_that_mean_nothing_are_not_taken_for_a_task(encoder: HeadedEncoder) -> None:
    found = [encoder.understand(text, [spec.name for spec in SPECS]).task for text in load_nothing()["held_back"]]
    assert np.mean([task is not None for task in found]) <= 0.1


def test_a_task_of_the_body_that_was_not_learned_is_named_and_not_taken_for_another(encoder: HeadedEncoder) -> None:
    found = encoder.understand(SPECS[0].text(), ["pendulum-spin"])
    assert (found.task, found.runner_up) == (None, "pendulum-swingup")
    assert encoder.understand("anything", []) == Understood("anything", None, 1.0, None, 0.0)


def test_a_further_task_is_known_from_its_texts(encoder: HeadedEncoder) -> None:
    wider = encoder.knowing([*SPECS, OWN])
    assert wider.id == encoder.id
    assert wider.understand("let the pole just hang low", wider.known).task == "pendulum-hang"
    texts = [OWN.text(number) for number in range(4)]
    assert np.array_equal(wider.encode(texts), ENCODER.encode(texts)), "its own texts keep the vectors of the encoder"
    assert wider.knowing([OWN]) is wider
    assert encoder.head.names == encoder.trained.names == wider.trained.names


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_it_comes_back_from_disk(embeddings: TaskEmbeddings, encoder: HeadedEncoder, tmp_path: Path) -> None:
    embeddings.save(tmp_path)
    found = TaskEmbeddings.load(tmp_path)
    assert found.encoder == f"hashed-ngrams-64{MARK}{encoder.head.digits}"
    assert found.head is not None
    assert found.head.digits == encoder.head.digits
    assert np.array_equal(found.vectors, embeddings.vectors)
    assert found.select(["pendulum-spin"]).head is found.head
    text = [f"{SPECS[0].embodiment} Go round and round."]
    assert np.array_equal(HeadedEncoder(ENCODER, found.head).encode(text), encoder.encode(text))


def test_a_task_that_was_added_does_not_change_what_is_saved(
    embeddings: TaskEmbeddings, encoder: HeadedEncoder, tmp_path: Path
) -> None:
    embeddings.join(embedded(encoder.knowing([OWN]), [OWN])).save(tmp_path)
    found = TaskEmbeddings.load(tmp_path)
    assert found.names[-1] == "pendulum-hang"
    assert found.head is not None
    assert found.head.digits == encoder.head.digits


def test_vectors_without_a_head_do_not_join_those_with_one(embeddings: TaskEmbeddings) -> None:
    plain = embed(ENCODER, ["other"], [["Another text."]], 2)
    with pytest.raises(ValueError, match="their vectors mean different things"):
        embeddings.join(plain)
    with pytest.raises(ValueError, match="was loaded: its vectors would mean something else"):
        embeddings.check_encoder(ENCODER)


def test_a_folder_of_vectors_without_a_head_forgets_the_one_before(embeddings: TaskEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path)
    embed(ENCODER, ["other"], [["Another text."]], 2).save(tmp_path)
    assert TaskEmbeddings.load(tmp_path).head is None


def changed(folder: Path, **values: object) -> None:
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, r"head.json has version 2; this version of Eft reads version 1"),
        ({"version": None}, r"has version None"),
        ({"scale": 3.0}, r"the files were mixed up or changed"),
        ({"scale": -1.0}, r"scale -1.0 .* is none to use"),
        ({"scale": "wide"}, r"does not hold a head"),
        ({"encoder": "another"}, r"the head is another\+head-"),
        ({"tasks": []}, r"prototypes have shape"),
        ({"tasks": "none"}, r"does not hold a head"),
        ({"tasks": [{"name": "\x1b[2J", "body": "b", "text": "t"}] * 2}, r"do not belong together|no name of a task"),
    ],
)
def test_another_head_or_none_is_refused(
    embeddings: TaskEmbeddings, tmp_path: Path, values: dict, message: str
) -> None:
    embeddings.save(tmp_path)
    changed(tmp_path, **values)
    with pytest.raises(ValueError, match=message):
        TaskEmbeddings.load(tmp_path)


def test_a_head_of_another_width_is_refused(embeddings: TaskEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path)
    narrow = train_head(HashedNgrams(32), SPECS, replace(SETTINGS, epochs=1), seed=1)
    narrow.save(tmp_path)
    with pytest.raises(ValueError, match="the head makes vectors of 32 values, the task embeddings beside it have 64"):
        TaskEmbeddings.load(tmp_path)


@pytest.mark.parametrize("damage", ["nan", "short", "missing", "bytes"])
def test_damaged_weights_are_refused(embeddings: TaskEmbeddings, tmp_path: Path, damage: str) -> None:
    embeddings.save(tmp_path)
    path = tmp_path / "head.safetensors"
    arrays = load_file(path)
    if damage == "nan":
        arrays["weight"][0, 0] = np.nan
    elif damage == "short":
        arrays["prototypes"] = arrays["prototypes"][:1]
    elif damage == "missing":
        del arrays["meanings"]
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save_file(arrays, path)
    with pytest.raises(ValueError, match="does not hold a head|not finite"):
        TaskEmbeddings.load(tmp_path)
