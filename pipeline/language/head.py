"""The head between text encoder and world model: what means one task becomes nearly one vector.

A linear map brings the encoder's vector of an instruction, and its hashed pieces of three letters, into a space where
sentences of one task lie together and tasks of one body apart (head_training.py). Each task has a prototype there. A
text's vector is the mean of the tasks' own vectors, weighted by the cube of the probability that each is meant, so that
the likeliest prevails; the weight of none of them falls to the encoder's own vector of the text. So vectors stay in the
encoder's space and keep its width, and all words for a task get very nearly the vector that its own text always had.

The body is the sentence before the instruction: only tasks of that body may be meant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.files import read_json, write_json
from pipeline.language.encoder import HashedNgrams, TextEncoder, find_encoder
from pipeline.tasks.spec import TaskSpec

VERSION = 1  # of the files
MADE_BY = "dvc repro embed"
MARK = "+head-"  # within the id of an encoder with a head, before the digits of the head
KNOWN = 0.9  # prior probability that what is said is one of the tasks that were learned, if it is any of the body's
SURE = 0.5  # probability from which on a task counts as understood
_SHARPNESS = 3  # exponent of the probabilities that weigh vectors
_FILES = ("head.json", "head.safetensors")


class Understood(NamedTuple):
    """What a text was understood as."""

    text: str
    task: str | None  # a known task, None if none is probable enough
    probability: float  # that it is meant; without a task: that none of the known ones is
    runner_up: str | None  # the next best task, or without a task the best; it may be one that is not known
    runner_up_probability: float

    def __str__(self) -> str:
        more = f"{self.runner_up} {self.runner_up_probability:.2f}" if self.runner_up else "there is no other"
        if self.task is None:
            return f"{self.text!r} means none of the known tasks (probability {self.probability:.2f}; nearest: {more})"
        return f"{self.text!r} is understood as {self.task} (probability {self.probability:.2f}; next: {more})"


@dataclass(frozen=True)
class Head:
    """The trained map, and the C tasks that it tells apart.

    Attributes:
        encoder: id of the text encoder whose vectors it reads.
        names: the tasks.
        bodies: the sentence about the body of each.
        texts: the canonical text of each, which begins with that sentence.
        weight: (F, E + G) float32, applied to an instruction's vector (E) and hashed pieces (G).
        prototypes: (C, F) float32, of length 1.
        meanings: (C, E) float32, the encoder's vectors of `texts`.
        scale: of cosines, as logits.
        nothing: the cosine that stands for no task at all.
    """

    encoder: str
    names: tuple[str, ...]
    bodies: tuple[str, ...]
    texts: tuple[str, ...]
    weight: np.ndarray
    prototypes: np.ndarray
    meanings: np.ndarray
    scale: float
    nothing: float

    def __post_init__(self) -> None:
        count, (out, width), dim = len(self.names), self.weight.shape, self.meanings.shape[-1]
        shapes = {"prototypes": (count, out), "meanings": (count, dim)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"the head's {name} have shape {getattr(self, name).shape}, not {shape}.")
        if not len(self.bodies) == len(self.texts) == count or len(set(self.names)) < count or width - dim < 8:
            raise ValueError("the head's tasks, bodies, texts and weight do not belong together.")
        if odd := [name for name in self.names if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)]:
            raise ValueError(f"the head names a task {odd[0]!r}, which is no name of a task.")
        if not all(np.isfinite(part).all() for part in (self.weight, self.prototypes, self.meanings)):
            raise ValueError("the head holds values that are not finite.")
        if not (0 < self.scale < 1e3 and -1 <= self.nothing <= 1):
            raise ValueError(f"the head's scale {self.scale} or its threshold {self.nothing} is none to use.")

    @property
    def dim(self) -> int:
        """E, the width of the vectors that come in and go out."""
        return self.meanings.shape[1]

    @property
    def pieces(self) -> int:
        """G, into how many places pieces of letters are hashed."""
        return self.weight.shape[1] - self.dim

    @property
    def digits(self) -> str:
        """16 digits that name this head: of the SHA-256 of all it consists of."""
        found = hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode())
        for part in (self.weight, self.prototypes, self.meanings):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]

    def split(self, text: str) -> tuple[str | None, str]:
        """Return the body whose sentence begins a text, None where there is none, and the rest."""
        fitting = [body for body in set(self.bodies) if text.startswith(body)]
        body = max(fitting, key=len, default=None)
        return body, text[len(body or "") :].strip()

    def project(self, vectors: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Return (n, F) of length 1, of the encoder's vectors (n, E) of n instructions and of their letters."""
        found = np.concatenate([vectors, HashedNgrams(self.pieces).encode(instructions)], axis=1)
        # Row by row: a product of many rows may round otherwise, and a text's vector is to be the same in every batch.
        projected = np.stack([self.weight @ row for row in found])
        return projected / np.linalg.norm(projected, axis=1, keepdims=True).clip(1e-12)

    def posterior(self, projected: np.ndarray, bodies: Collection[str] | None, known: Collection[str]) -> np.ndarray:
        """Return (C + 1,) probabilities that each task is meant, and last that none is.

        Args:
            projected: (F,) of the instruction.
            bodies: one of these is given; None for any.
            known: tasks that are expected (`KNOWN`); with none of them all are expected alike.
        """
        logits = self.scale * (self.prototypes @ projected)
        fits = np.array([bodies is None or body in bodies for body in self.bodies], bool)
        expected = np.array([name in known for name in self.names], bool) & fits
        others = int(fits.sum() - expected.sum())
        if expected.any() and others:
            logits = logits + np.where(expected, 0.0, np.log((1 - KNOWN) / others * expected.sum() / KNOWN))
        logits = np.append(np.where(fits, logits, -np.inf), self.scale * self.nothing)
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()

    def extended(self, name: str, body: str, text: str, prototype: np.ndarray, meaning: np.ndarray) -> Head:
        """Return this head with one more task, or with another one of that name."""
        kept = [row for row, one in enumerate(self.names) if one != name]
        return dataclasses.replace(
            self,
            names=(*(self.names[row] for row in kept), name),
            bodies=(*(self.bodies[row] for row in kept), body),
            texts=(*(self.texts[row] for row in kept), text),
            prototypes=np.concatenate([self.prototypes[kept], prototype[None]]).astype(np.float32),
            meanings=np.concatenate([self.meanings[kept], meaning[None]]).astype(np.float32),
        )

    def save(self, folder: Path) -> None:
        """Write head.json and head.safetensors into a folder that is being filled."""
        arrays = {name: getattr(self, name) for name in ("weight", "prototypes", "meanings")}
        save_file({name: np.ascontiguousarray(part) for name, part in arrays.items()}, folder / _FILES[1])
        write_json(folder / _FILES[0], {"version": VERSION, **self._described()})

    def _described(self) -> dict[str, object]:
        tasks = [
            {"name": name, "body": body, "text": text}
            for name, body, text in zip(self.names, self.bodies, self.texts, strict=True)
        ]
        return {"encoder": self.encoder, "scale": self.scale, "nothing": self.nothing, "tasks": tasks}


def load_head(folder: Path, encoder: str, dim: int) -> Head | None:
    """Read the head that belongs to an encoder's id; None where its files are not there, as beside an adapter.

    Args:
        folder: where `Head.save` wrote.
        encoder: id of an encoder with a head, whose digits the head must have.
        dim: E, the width that is expected.

    Raises:
        ValueError: it is another head or of another version, or damaged.
    """
    path = folder / _FILES[0]
    if not path.is_file():
        return None
    content = read_json(path, MADE_BY)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version!r}; this version of Eft reads version {VERSION}. Install the one that made "
            f"it, or make it anew by `{MADE_BY}`."
        )
    try:
        arrays, tasks = load_file(folder / _FILES[1]), content["tasks"]
        names, bodies, texts = (tuple(str(task[key]) for task in tasks) for key in ("name", "body", "text"))
        weight, prototypes, meanings = (arrays[name] for name in ("weight", "prototypes", "meanings"))
        numbers = float(content["scale"]), float(content["nothing"])
        head = Head(str(content["encoder"]), names, bodies, texts, weight, prototypes, meanings, *numbers)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"{path.with_name(_FILES[1])} does not hold a head: {error}. Run `{MADE_BY}` again.") from None
    if head.dim != dim:
        raise ValueError(
            f"{folder}: the head makes vectors of {head.dim} values, the task embeddings beside it have {dim}: the "
            f"files were mixed up. Run `{MADE_BY}` again."
        )
    if encoder != f"{head.encoder}{MARK}{head.digits}":
        raise ValueError(
            f"{folder}: the head is {head.encoder}{MARK}{head.digits}, but the task embeddings beside it were made by "
            f"{encoder}: the files were mixed up or changed. Run `{MADE_BY}` again."
        )
    return head


def bare(encoder: str) -> str:
    """Return the id of an encoder without its head."""
    return encoder.partition(MARK)[0]


class HeadedEncoder:
    """A text encoder with a head: a `TextEncoder` like any other.

    Args:
        encoder: the text encoder that the head was trained with.
        head: the head as it was trained.
        extended: the same with the tasks that `knowing` added to it; None for none.
        known: tasks that are expected rather than the head's others.
        own: texts that keep the encoder's own vectors: those of tasks that the head was not trained with.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        head: Head,
        extended: Head | None = None,
        known: Collection[str] = (),
        own: Collection[str] = (),
    ):
        self.encoder, self.trained, self.head, self.known = encoder, head, extended or head, frozenset(known)
        self.dim, self.id, self._own = encoder.dim, f"{encoder.id}{MARK}{head.digits}", frozenset(own)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, E) float32. A text's vector does not depend on the texts beside it."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        own, vectors = self.encoder.encode(texts), []
        split = [self.head.split(text) for text in texts]
        projections = self._project([rest for _, rest in split])
        for text, plain, (body, _), projected in zip(texts, own, split, projections, strict=True):
            if text in self._own:
                vectors.append(plain)
                continue
            weights = self.head.posterior(projected, None if body is None else [body], self.known) ** _SHARPNESS
            weights /= weights.sum()
            vectors.append(weights[:-1] @ self.head.meanings + weights[-1] * plain)
        return np.stack(vectors).astype(np.float32)

    def knowing(self, specs: Iterable[TaskSpec]) -> HeadedEncoder:
        """Return this encoder with a head that knows these tasks, from their texts for training, and expects them.

        The texts of those that it was not trained with keep their own vectors.
        """
        specs, head, known = list(specs), self.head, set(zip(self.head.names, self.head.texts, strict=True))
        expected = self.known | {spec.name for spec in specs}
        if expected == self.known:
            return self
        own = set(self._own)
        for spec in specs:
            if (spec.name, spec.text()) in known:
                continue
            own |= {spec.text(number) for number in range(len(spec.instructions))}
            said = [text.removeprefix(spec.embodiment).strip() for text in spec.training_texts()]
            mean = self._project(said).mean(0)
            prototype = mean / max(float(np.linalg.norm(mean)), 1e-12)
            meaning = self.encoder.encode([spec.text()])[0]
            head = head.extended(spec.name, spec.embodiment, spec.text(), prototype, meaning)
        return HeadedEncoder(self.encoder, self.trained, head, expected, own)

    def understand(self, text: str, known: Collection[str]) -> Understood:
        """Return which of some tasks of the head a text means, and how sure that is.

        Args:
            text: an instruction, with or without its body's sentence before it.
            known: names of the tasks that may be meant. Other tasks of their bodies are compared with too: what means
                one of those means nothing known.
        """
        body, instruction = self.head.split(text)
        of = dict(zip(self.head.names, self.head.bodies, strict=True))
        meant = [name for name in known if body in (None, of[name])]
        if not meant or instruction == body or not re.search(r"\w", instruction):  # a body alone asks for nothing
            return Understood(text, None, 1.0, None, 0.0)
        weights = self.head.posterior(self._project([instruction])[0], {of[name] for name in meant}, meant)
        found = dict(sorted(zip(self.head.names, weights.tolist(), strict=False), key=lambda pair: -pair[1]))
        best = max(meant, key=lambda name: found[name])
        if found[best] < SURE:
            runner_up = next(iter(found))
            return Understood(text, None, 1 - sum(found[name] for name in meant), runner_up, found[runner_up])
        runner_up = next((name for name in found if name != best and of[name] in {of[one] for one in meant}), None)
        return Understood(text, best, found[best], runner_up, found[runner_up] if runner_up else 0.0)

    def _project(self, instructions: Sequence[str]) -> np.ndarray:
        return self.head.project(self.encoder.encode(instructions), instructions)


def headed(encoder_id: str, head: Head | None, given: TextEncoder | None = None) -> TextEncoder:
    """Return the text encoder of an id, with this head where it has one.

    Args:
        encoder_id: the id, which may name a head.
        head: that head.
        given: the encoder, with the head or without it; None to find it.

    Raises:
        OSError, ValueError: it is nowhere to be had, or not the one that was pinned.
    """
    encoder = find_encoder(bare(encoder_id)) if given is None else given
    return encoder if head is None or isinstance(encoder, HeadedEncoder) else HeadedEncoder(encoder, head)


def knowing(encoder: TextEncoder, specs: Iterable[TaskSpec]) -> TextEncoder:
    """Return an encoder whose head, if it has one, knows these tasks and expects them."""
    return encoder.knowing(specs) if isinstance(encoder, HeadedEncoder) else encoder
