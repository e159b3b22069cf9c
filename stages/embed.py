"""Frozen encoders turn the tasks' texts, and pictures of their demonstrations where they are observed, into vectors.

Writes datasets/task_embeddings/ and datasets/picture_vectors/.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pipeline import config
from pipeline.data.demos import load_demos
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import load_encoder
from pipeline.run.launch import run_stage, start
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec
from pipeline.train.autoencoding import make_autoencoder
from pipeline.train.seeing import see_demonstrations
from pipeline.train.workspace import DEMOS, PICTURE_VECTORS
from pipeline.vision.sight import LEARNED, load_sight

OUT = Path("datasets/task_embeddings")


def main() -> None:
    tasks, language = config.load(config.Tasks), config.load(config.Language)
    specs = registry.get([*tasks.train, *tasks.held_out], tasks.folder)
    encoder = load_encoder(language.encoder)
    training, unseen = [spec.training_texts() for spec in specs], [spec.unseen_text() for spec in specs]
    embeddings = embed(encoder, [spec.name for spec in specs], training, language.phrasings, unseen)
    embeddings.save(OUT)
    see(specs, embeddings)
    print(
        f"embed: {len(specs)} tasks x {language.phrasings} phrasings and one for evaluation, "
        f"{encoder.dim} values by {encoder.id} -> {OUT}",
        file=sys.stderr,
    )


def see(specs: list[TaskSpec], embeddings: TaskEmbeddings) -> None:
    """Write the vectors of the demonstrations' pictures; those that are there already are kept, others removed."""
    vision = config.load(config.Vision)
    wanted = [spec for spec in specs if vision.observe != "state" and (DEMOS / spec.name).exists()]
    PICTURE_VECTORS.mkdir(parents=True, exist_ok=True)
    if not wanted or vision.encoder != config.AUTOENCODER:
        shutil.rmtree(LEARNED, ignore_errors=True)  # else the report would show what nobody observes through
    for path in PICTURE_VECTORS.glob("*.safetensors"):
        if path.stem not in {spec.name for spec in wanted}:
            path.unlink()
    if not wanted:
        return
    device = start(config.load(config.Runtime), config.load_seed()).device
    if vision.encoder == config.AUTOENCODER:
        names = config.load(config.Tasks).train
        trained = [spec for spec in wanted if spec.name in names]
        make_autoencoder(LEARNED, DEMOS, trained, vision, config.load_seed(), device)
    sight = load_sight(vision, device)
    assert sight is not None
    for spec in wanted:
        sight.adopt(spec.name, embeddings.nearest)
        see_demonstrations(PICTURE_VECTORS, DEMOS, spec, load_demos(DEMOS, spec.name), sight)


if __name__ == "__main__":
    run_stage(main)
