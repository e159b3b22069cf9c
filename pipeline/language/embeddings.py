"""The vectors of all tasks of a run, with the texts and the encoder they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.config import near
from pipeline.files import add_files, read_json, write_json
from pipeline.language.encoder import TextEncoder, same_encoder
from pipeline.language.head import MARK, Head, HeadedEncoder, load_head

MADE_BY = "dvc repro embed"


@dataclass(frozen=True)
class TaskEmbeddings:
    """One vector per task and phrasing.

    Attributes:
        vectors: (n, P, E) float32; phrasing 0 is the canonical one.
        names: the n tasks.
        texts: for each task, the P texts its vectors were made from.
        encoder: id of the text encoder, which names its weights.
        unseen_vectors: (n, E) float32, of one more phrasing of each task, kept for evaluation: training never draws it.
        unseen_texts: for each task, the text of that vector.
        head: what stands behind the encoder; None where there is none, or beside an adapter, whose base has it.
    """

    vectors: np.ndarray
    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    encoder: str
    unseen_vectors: np.ndarray
    unseen_texts: tuple[str, ...]
    head: Head | None = None

    def __post_init__(self) -> None:
        kept = (len(self.names), self.vectors.shape[-1])
        if self.unseen_vectors.shape != kept or self.unseen_vectors.dtype != np.float32:
            raise ValueError(
                f"task embeddings: the phrasings kept for evaluation need float32 vectors of shape {kept}, "
                f"not {self.unseen_vectors.dtype} {self.unseen_vectors.shape}."
            )
        if len(self.unseen_texts) != len(self.names) or not np.isfinite(self.unseen_vectors).all():
            raise ValueError(
                "task embeddings: every task needs one text kept for evaluation and a finite vector of it."
            )
        shape = (len(self.names), len(self.texts[0]) if self.texts else 0)
        if self.vectors.ndim != 3 or self.vectors.shape[:2] != shape or self.vectors.dtype != np.float32:
            raise ValueError(
                f"task embeddings: {shape[0]} tasks of {shape[1]} phrasings need float32 vectors of shape "
                f"({shape[0]}, {shape[1]}, E), not {self.vectors.dtype} {self.vectors.shape}."
            )
        if any(len(phrasings) != shape[1] for phrasings in self.texts) or len(self.texts) != shape[0]:
            raise ValueError(f"task embeddings: every one of the {shape[0]} tasks needs {shape[1]} texts.")
        if not np.isfinite(self.vectors).all():
            raise ValueError("task embeddings: the vectors hold values that are not finite.")

    @property
    def dim(self) -> int:
        """E, the width of a vector."""
        return int(self.vectors.shape[2])

    def select(self, names: Sequence[str]) -> TaskEmbeddings:
        """Return the embeddings of `names`, in that order.

        Raises:
            ValueError: a task has no embedding.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"task {name!r} has no embedding.{near(name, list(self.names))} Run `{MADE_BY}` first."
                )
        rows = [self.names.index(name) for name in names]
        return TaskEmbeddings(
            self.vectors[rows],
            tuple(names),
            tuple(self.texts[row] for row in rows),
            self.encoder,
            self.unseen_vectors[rows],
            tuple(self.unseen_texts[row] for row in rows),
            self.head,
        )

    def similarity(self, name: str, others: Collection[str]) -> dict[str, float]:
        """Return the cosine of a task's canonical text with that of each of some others."""
        own, found = self.select([name]).vectors[0, 0], self.select(list(others)).vectors[:, 0]
        cosines = found @ own / (np.linalg.norm(found, axis=1) * np.linalg.norm(own)).clip(1e-12)
        return dict(zip(others, cosines.tolist(), strict=True))

    def nearest(self, name: str, others: Collection[str]) -> str:
        """Return which of some others reads most like a task."""
        return max((cosines := self.similarity(name, others)), key=lambda other: cosines[other])

    def join(self, other: TaskEmbeddings) -> TaskEmbeddings:
        """Return these tasks followed by those of `other`.

        Raises:
            ValueError: they come from another encoder, or have another number of phrasings.
        """
        if not same_encoder(other.encoder, self.encoder):
            raise ValueError(
                f"tasks {', '.join(other.names)} were embedded by {other.encoder}, the others by {self.encoder}: their "
                "vectors mean different things. Embed all of them with one encoder."
            )
        vectors = np.concatenate([self.vectors, other.vectors])
        return TaskEmbeddings(
            vectors,
            self.names + other.names,
            self.texts + other.texts,
            self.encoder,
            np.concatenate([self.unseen_vectors, other.unseen_vectors]),
            self.unseen_texts + other.unseen_texts,
            self.head,
        )

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Refuse another encoder than the one that made these vectors.

        One that goes by another name must also make the same vector of the first text: the same weights with another
        tokenizer do not.

        Raises:
            ValueError: says which was expected.
        """
        advice = "its vectors would mean something else. Set `agent.encoder = load_encoder(...)` to the right one."
        if not same_encoder(encoder.id, self.encoder):
            raise ValueError(
                f"this agent was trained with the text encoder {self.encoder}, but {encoder.id} was loaded: {advice}"
            )
        if encoder.id != self.encoder and "@" in self.encoder:
            mine, found = self.vectors[0, 0], encoder.encode([self.texts[0][0]])[0]
            if mine @ found < 0.999 * np.linalg.norm(mine) * np.linalg.norm(found):
                raise ValueError(
                    f"{encoder.id} has the weights of {self.encoder}, with which this agent was trained, but makes "
                    f"another vector of {self.texts[0][0]!r}: its tokenizer or configuration is another, so {advice}"
                )

    def check(
        self, names: Sequence[str], texts: Sequence[Sequence[str]], encoder: str, unseen: Sequence[str] | None = None
    ) -> None:
        """Refuse embeddings that belong to another encoder or to other texts.

        Args:
            names: tasks about to be used.
            texts: for each of them, its texts of today (all its phrasings; the first ones are compared).
            encoder: id of the encoder about to be used.
            unseen: for each of them, its text of today that is kept for evaluation; None does not compare them.

        Raises:
            ValueError: names the task and what to do.
        """
        if not same_encoder(encoder, self.encoder):
            raise ValueError(
                f"the task embeddings were made by the text encoder {self.encoder}, but {encoder} is asked for: their "
                f"vectors mean different things. Run `{MADE_BY}` to embed anew, or set language.encoder back."
            )
        mine = self.select(names)
        for name, embedded, today in zip(names, mine.unseen_texts, unseen or (), strict=False):
            if embedded != today:
                raise ValueError(
                    f"the text of task {name!r} that is kept for evaluation has changed since it was embedded: it was "
                    f"{embedded!r}, now it is {today!r}. Run `{MADE_BY}`."
                )
        for name, embedded, today in zip(names, mine.texts, texts, strict=True):
            if _cycle(today, len(embedded)) != embedded:
                raise ValueError(
                    f"the text of task {name!r} has changed since it was embedded: it was {embedded[0]!r}, with "
                    f"{len(embedded)} phrasings, now it is {today[0]!r}, with {len(today)}. Run `{MADE_BY}`."
                )

    def save(self, folder: str | Path) -> None:
        """Write vectors.safetensors and texts.json into a folder, and the head's files; all or none."""
        tasks = [
            {"name": name, "texts": list(texts), "unseen": kept, "sha256": [_sha256(text) for text in (*texts, kept)]}
            for name, texts, kept in zip(self.names, self.texts, self.unseen_texts, strict=True)
        ]
        with add_files(folder, last="texts.json") as partial:
            vectors = {"vectors": self.vectors, "unseen": self.unseen_vectors}
            save_file(
                {name: np.ascontiguousarray(part) for name, part in vectors.items()}, partial / "vectors.safetensors"
            )
            if self.head is not None:
                self.head.save(partial)
            write_json(partial / "texts.json", {"encoder": self.encoder, "tasks": tasks})

    @classmethod
    def load(cls, folder: str | Path) -> TaskEmbeddings:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: the files are damaged or do not belong together.
        """
        folder = Path(folder)
        content = read_json(folder / "texts.json", MADE_BY)
        try:
            encoder, tasks = str(content["encoder"]), content["tasks"]
            names = tuple(str(task["name"]) for task in tasks)
            texts = tuple(tuple(task["texts"]) for task in tasks)
            unseen = tuple(str(task["unseen"]) for task in tasks)
            hashes = [task["sha256"] for task in tasks]
            vectors = load_file(folder / "vectors.safetensors")
            found = vectors["vectors"], vectors["unseen"]
        except (KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{folder} does not hold task embeddings ({type(error).__name__}: {error}). Run `{MADE_BY}` again."
            ) from None
        for name, phrasings, kept, expected in zip(names, texts, unseen, hashes, strict=True):
            if [_sha256(text) for text in (*phrasings, kept)] != expected:
                raise ValueError(
                    f"{folder / 'texts.json'}: the texts of task {name!r} do not have the hashes beside them, so the "
                    f"file was changed by hand. Change the text in the task's own file, then run `{MADE_BY}`."
                )
        head = load_head(folder, encoder, found[0].shape[-1]) if MARK in encoder else None
        return cls(found[0], names, texts, encoder, found[1], unseen, head)


def embed(
    encoder: TextEncoder,
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
    phrasings: int,
    unseen: Sequence[str] | None = None,
) -> TaskEmbeddings:
    """Embed `phrasings` texts of every task, and the one kept for evaluation.

    A task with more texts uses its first ones; a task with fewer repeats them in turn, so that each of its texts
    is drawn about equally often in training.

    Args:
        encoder: the text encoder.
        names: n tasks.
        texts: for each task, its texts for training, at least one, the canonical one first.
        phrasings: P.
        unseen: for each task, the text kept for evaluation; the canonical one where there is no other (None: nowhere).
    """
    cycled = tuple(_cycle(task_texts, phrasings) for task_texts in texts)
    kept = tuple(unseen) if unseen is not None else tuple(task_texts[0] for task_texts in texts)
    unique = list(dict.fromkeys([*(text for task_texts in cycled for text in task_texts), *kept]))
    vector = dict(zip(unique, encoder.encode(unique), strict=True))
    vectors = np.array([[vector[text] for text in task_texts] for task_texts in cycled], np.float32)
    return TaskEmbeddings(
        vectors.reshape(len(names), phrasings, encoder.dim),
        tuple(names),
        cycled,
        encoder.id,
        np.array([vector[text] for text in kept], np.float32).reshape(len(names), encoder.dim),
        kept,
        encoder.trained if isinstance(encoder, HeadedEncoder) else None,
    )


def _cycle(texts: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(texts[index % len(texts)] for index in range(count))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
