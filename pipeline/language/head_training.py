"""Trains the head on sentences of all tasks of the bodies at hand (contrastive), and fits its probabilities.

A sentence is drawn to its task's prototype and away from those of the body's other tasks, opposites among them, and
from a fixed cosine that stands for no task; sentences that mean no task are drawn to that one. Every sentence is seen
again with random typing errors. How sure the head is, is fitted on a whole kind of sentences that a first training
does not see; a second one sees all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import config
from pipeline.language.encoder import HashedNgrams, TextEncoder
from pipeline.language.head import Head
from pipeline.language.phrasings import TRAINED, load_nothing, load_phrasings
from pipeline.progress import Progress
from pipeline.tasks.registry import load_catalogue
from pipeline.tasks.spec import TaskSpec

_SCALE, _NOTHING = 20.0, 0.5  # of training: logits are cosines times this; the cosine that stands for no task
_FITTED_ON = "nouns"  # the kind of sentences that probabilities are fitted on
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


class Sentences(NamedTuple):
    """What a head learns from: n sentences, each with the task that it means."""

    texts: list[str]  # without the body's sentence
    kinds: list[str]  # of phrasings.TRAINED; `own` for a task's instructions, `nothing` for what means no task
    tasks: np.ndarray  # (n,) row of the task; C where none is meant
    bodies: np.ndarray  # (n,) number of the body it is said to


def train_head(encoder: TextEncoder, specs: Sequence[TaskSpec], settings: config.Head, seed: int) -> Head:
    """Train a head for some tasks and for all those of the catalogue that have one of their bodies.

    Args:
        encoder: the text encoder, which stays as it is.
        specs: the tasks of a run.
        settings: its sizes and how it is trained.
        seed: of the order, the start and the typing errors; the same seed makes the same head.
    """
    tasks = tasks_told_apart(specs)
    bodies = list(dict.fromkeys(spec.embodiment for spec in tasks))
    said = sentences(tasks, bodies, settings.typos, seed)
    with Progress("embed: the head's sentences", len(said.texts), "sentences") as progress:
        vectors = []
        for text in said.texts:
            vectors.append(encoder.encode([text])[0])
            progress.update()
    features = torch.from_numpy(
        np.concatenate([np.stack(vectors), HashedNgrams(settings.pieces).encode(said.texts)], 1)
    )
    body_of = np.array([bodies.index(spec.embodiment) for spec in tasks])
    seen = np.array([kind != _FITTED_ON for kind in said.kinds])
    # Half of what means no task is kept from the first training too.
    seen &= (said.tasks < len(tasks)) | (np.arange(len(seen)) % 2 == 0)
    with Progress("embed: the head", 2 * settings.epochs, "epochs") as progress:
        trial = _fit(features, said, body_of, seen, settings, encoder.dim, seed, progress)
        scale, nothing = _calibrate(_cosines(features, *trial).numpy(), said, body_of, ~seen)
        everything = np.ones_like(seen)
        weight, prototypes = _fit(features, said, body_of, everything, settings, encoder.dim, seed, progress)
    texts = [spec.text() for spec in tasks]
    return Head(
        encoder.id,
        tuple(spec.name for spec in tasks),
        tuple(spec.embodiment for spec in tasks),
        tuple(texts),
        weight.numpy(),
        functional.normalize(prototypes, dim=1).numpy(),
        encoder.encode(texts),
        scale,
        nothing,
    )


def tasks_told_apart(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    """Return the tasks of the catalogue with a body of `specs`, and those of `specs` that are not among them."""
    bodies, own = {spec.embodiment for spec in specs}, {spec.name for spec in specs}
    others = [spec for spec in load_catalogue().values() if spec.embodiment in bodies and spec.name not in own]
    return sorted([*specs, *others], key=lambda spec: spec.name)


def sentences(tasks: Sequence[TaskSpec], bodies: Sequence[str], typos: int, seed: int) -> Sentences:
    """Return what is said of some tasks and of none, each sentence `typos` times more with typing errors."""
    rows = []
    phrasings, nowhere = load_phrasings(), len(tasks)
    for row, spec in enumerate(tasks):
        body, kinds = bodies.index(spec.embodiment), phrasings.get(spec.name, {})
        own = spec.instructions[: max(1, len(spec.instructions) - 1)]  # the last is kept for evaluation
        rows += [(text, "own", row, body) for text in own]
        if len(own) > 1 and not kinds:  # a task of one's own: its last text stands for the kind that is kept
            rows[-1] = (own[-1], _FITTED_ON, row, body)
        rows += [(text, kind, row, body) for kind in TRAINED for text in kinds.get(kind, ())]
    rows += [(text, "nothing", nowhere, body) for body in range(len(bodies)) for text in load_nothing()["trained"]]
    # Errors depend on seed and sentence alone, so that one sentence more leaves those of all others as they are.
    rows += [
        (typing_errors(text, np.random.default_rng([seed, copy, crc32(text.encode())])), *more)
        for copy in range(typos)
        for text, *more in rows
    ]
    texts, kinds, meant, said_to = zip(*rows, strict=True)
    return Sentences(list(texts), list(kinds), np.array(meant), np.array(said_to))


def typing_errors(text: str, draw: np.random.Generator) -> str:
    """Return a text with two to four typing errors: letters swapped, left out, doubled, hit beside; words run on."""
    letters = list(text)
    for _ in range(draw.integers(2, 5)):
        if len(letters) < 4:
            break
        place, kind = int(draw.integers(1, len(letters) - 1)), draw.integers(5)
        beside = [row[i + step] for row in _KEYS for i, key in enumerate(row) if key == letters[place].lower()
                  for step in (-1, 1) if 0 <= i + step < len(row)]  # fmt: skip
        spaces = [i for i, letter in enumerate(letters) if letter == " "]
        if kind == 0:
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        elif kind == 1:
            del letters[place]
        elif kind == 2:
            letters.insert(place, letters[place])
        elif kind == 3 and beside:
            letters[place] = str(draw.choice(beside))
        elif kind == 4 and spaces:
            del letters[int(draw.choice(spaces))]
    return "".join(letters)


def _fit(
    features: Tensor,
    said: Sentences,
    body_of: np.ndarray,
    seen: np.ndarray,
    settings: config.Head,
    dim: int,
    seed: int,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """Return weight (F, E + G) and prototypes (C, F), trained on the sentences that are `seen`."""
    generator, count = torch.Generator().manual_seed(seed), len(body_of)
    tasks, fits = torch.from_numpy(said.tasks), torch.from_numpy(said.bodies[:, None] == body_of[None, :])
    # The map begins as the encoder's own vectors, as far as it is wide enough, and a task as the mean of its sentences.
    weight = 0.002 * torch.randn(settings.dim, features.shape[1], generator=generator)
    same = min(settings.dim, dim)
    weight[:same, :same] += torch.eye(same)
    known = torch.from_numpy(seen)
    means = [(features[known & (tasks == row)] @ weight.T).sum(0) for row in range(count)]
    prototypes = functional.normalize(torch.stack(means), dim=1)
    parameters = [nn.Parameter(weight), nn.Parameter(prototypes)]
    rows = torch.from_numpy(np.flatnonzero(seen))
    total = settings.epochs * -(-len(rows) // settings.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    for _ in range(settings.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(settings.batch_size):
            kept = torch.rand(len(batch), features.shape[1], generator=generator) >= settings.dropout
            cosines = _cosines(features[batch] * kept / (1 - settings.dropout), *parameters)
            logits = _SCALE * cosines.masked_fill(~fits[batch], -torch.inf)
            nothing = torch.full((len(batch), 1), _SCALE * _NOTHING)
            loss = functional.cross_entropy(torch.cat([logits, nothing], dim=1), tasks[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.update(1, loss=loss.item())
    return parameters[0].detach(), parameters[1].detach()


def _cosines(features: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    return functional.normalize(features @ weight.T, dim=1) @ functional.normalize(prototypes, dim=1).T


def _calibrate(cosines: np.ndarray, said: Sentences, body_of: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return the scale and the cosine of nothing under which what was not seen is most probable, of a grid.

    The grid lies around what Meta-World's 49 tasks give (21 and 0.44): a few sentences alone would choose extremes.
    """
    logits = np.where(said.bodies[rows, None] == body_of[None, :], cosines[rows], -np.inf)
    meant = said.tasks[rows]

    def surprise(scale: float, nothing: float) -> float:
        all_logits = scale * np.concatenate([logits, np.full((len(logits), 1), nothing)], axis=1)
        all_logits -= all_logits.max(axis=1, keepdims=True)
        log_odds = all_logits[np.arange(len(meant)), meant] - np.log(np.exp(all_logits).sum(axis=1))
        return -float(log_odds.mean())

    grid = [(float(scale), nothing / 50) for scale in range(10, 31) for nothing in range(15, 29)]
    return min(grid, key=lambda pair: surprise(*pair))
