"""Embed the texts of all tasks with the frozen text encoder -> datasets/task_embeddings/."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline import config
from pipeline.language.embeddings import embed
from pipeline.language.encoder import load_encoder
from pipeline.tasks import registry
from pipeline.train.runtime import run_stage

OUT = Path("datasets/task_embeddings")


def main() -> None:
    tasks, language = config.load(config.Tasks), config.load(config.Language)
    specs = registry.get([*tasks.train, *tasks.held_out], tasks.folder)
    encoder = load_encoder(language.encoder)
    training, unseen = [spec.training_texts() for spec in specs], [spec.unseen_text() for spec in specs]
    embeddings = embed(encoder, [spec.name for spec in specs], training, language.phrasings, unseen)
    embeddings.save(OUT)
    print(
        f"embed: {len(specs)} tasks x {language.phrasings} phrasings and one for evaluation, "
        f"{encoder.dim} values by {encoder.id} -> {OUT}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_stage(main)
