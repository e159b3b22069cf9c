"""Frozen encoders turn the tasks' texts, and images of their demonstrations where they are observed, into vectors.

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
from pipeline.language.head import HeadedEncoder
from pipeline.language.head_training import train_head
from pipeline.learn.task_setup import DEMOS
from pipeline.pixels.autoencoder_training import make_autoencoder
from pipeline.pixels.demonstrations import encode_demonstrations
from pipeline.pixels.pixel_encoder import AUTOENCODER_FOLDER, IMAGE_VECTORS, load_pixel_encoder
from pipeline.run.cores import one_thread_by_default
from pipeline.run.launch import run_stage, start
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

OUT = Path("datasets/task_embeddings")


def main() -> None:
    tasks, language = config.load(config.Tasks), config.load(config.Language)
    specs = registry.get([*tasks.train, *tasks.held_out], tasks.folder)
    encoder = load_encoder(language.encoder)
    if language.head is not None:
        one_thread_by_default()
        encoder = HeadedEncoder(encoder, train_head(encoder, specs, language.head, config.load_seed()))
    training, unseen = [spec.training_texts() for spec in specs], [spec.unseen_text() for spec in specs]
    embeddings = embed(encoder, [spec.name for spec in specs], training, language.phrasings, unseen)
    embeddings.save(OUT)
    encode_images(specs, embeddings)
    print(
        f"embed: {len(specs)} tasks x {language.phrasings} phrasings and one for evaluation, "
        f"{encoder.dim} values by {encoder.id} -> {OUT}",
        file=sys.stderr,
    )


def encode_images(specs: list[TaskSpec], embeddings: TaskEmbeddings) -> None:
    """Write the vectors of the demonstrations' images; those that are there already are kept, others removed."""
    vision = config.load(config.Vision)
    wanted = [spec for spec in specs if vision.observe != "state" and (DEMOS / spec.name).exists()]
    IMAGE_VECTORS.mkdir(parents=True, exist_ok=True)
    if not wanted or vision.encoder != config.AUTOENCODER:
        shutil.rmtree(AUTOENCODER_FOLDER, ignore_errors=True)  # else the report would show one that is not in use
    for path in IMAGE_VECTORS.glob("*.safetensors"):
        if path.stem not in {spec.name for spec in wanted}:
            path.unlink()
    if not wanted:
        return
    device = start(config.load(config.Runtime), config.load_seed()).device
    if vision.encoder == config.AUTOENCODER:
        names = config.load(config.Tasks).train
        trained = [spec for spec in wanted if spec.name in names]
        make_autoencoder(AUTOENCODER_FOLDER, DEMOS, trained, vision, config.load_seed(), device)
    pixel_encoder = load_pixel_encoder(vision, device)
    assert pixel_encoder is not None
    for spec in wanted:
        pixel_encoder.assign_nearest(spec.name, embeddings.nearest)
        encode_demonstrations(IMAGE_VECTORS, DEMOS, spec, load_demos(DEMOS, spec.name), pixel_encoder)


if __name__ == "__main__":
    run_stage(main)
