"""Demonstrations with images: they are replayed once to draw and encode them; training reads the vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.data.episode import Episode
from pipeline.files import atomic_file, sha256
from pipeline.pixels.pixel_encoder import PixelEncoder
from pipeline.progress import Progress
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv


def encode_demonstrations(
    folder: Path, demos: Path, spec: TaskSpec, episodes: Sequence[Episode], pixel_encoder: PixelEncoder
) -> bool:
    """Write the vectors of the images of a task's demonstrations, unless they are there.

    Demonstrations hold no images: each is replayed from its seed, and what is drawn is encoded.

    Args:
        folder: takes `<task>.safetensors`, one (L + 1, E) float32 per episode.
        demos: the folder of the demonstrations.
        spec: the task.
        episodes: its demonstrations.
        pixel_encoder: encodes the images.

    Returns:
        Whether they had to be made.

    Raises:
        ValueError: a demonstration does not come out as recorded when it is replayed.
        RenderingUnavailable: this machine cannot draw.
    """
    path, key = _path(folder, spec.name), _key(demos, spec.name, pixel_encoder)
    key["cluster"] = str(pixel_encoder.cluster(spec.name))
    if _stored_key(path) == key:
        return False
    env = make(spec, spec.obs_dim, spec.action_dim, pixel_encoder.image_size)
    try:
        vectors = {}
        with Progress(f"images of {spec.name}", len(episodes), "episodes") as progress:
            for number, episode in enumerate(episodes):
                images = np.stack(list(replay_frames(env, episode, f"{spec.name}: demonstration {number}")))
                vectors[f"{number:06d}"] = pixel_encoder.encode(images, [spec.name] * len(images))
                progress.update(1)
    finally:
        env.close()
    with atomic_file(path) as partial:
        save_file(vectors, partial, metadata=key)
    return True


def observed_demonstrations(
    folder: Path, demos: Path, spec: TaskSpec, episodes: Sequence[Episode], pixel_encoder: PixelEncoder | None
) -> list[Episode]:
    """Return demonstrations with what is observed in place of the state; unchanged where images are not observed.

    Args:
        folder: where `encode_demonstrations` wrote the vectors; not read where there is no episode.
        demos: the folder of the demonstrations.
        spec: the task.
        episodes: its demonstrations, with states.
        pixel_encoder: what is observed; None for the state alone.

    Raises:
        FileNotFoundError, ValueError: their vectors were not made, or by another encoder or of other demonstrations.
    """
    if pixel_encoder is None or not episodes:
        return list(episodes)
    path, again = _path(folder, spec.name), "Run `dvc repro embed` again."
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: it holds the vectors of the images. {again}")
    found, wanted = _stored_key(path) or {}, _key(demos, spec.name, pixel_encoder)
    if {name: found.get(name) for name in wanted} != wanted:
        raise ValueError(f"{path} is of {found}, expected {wanted}. {again}")
    with safe_open(path, framework="np") as file:
        vectors = [file.get_tensor(f"{number:06d}") for number in range(len(episodes))]
    return [replace(one, obs=pixel_encoder.join(one.obs, rows)) for one, rows in zip(episodes, vectors, strict=True)]


def check_bodies(specs: Sequence[TaskSpec], demos: Mapping[str, Sequence[Episode]]) -> None:
    """Refuse a body without demonstrations: nothing else tells how the vectors of its images vary.

    Args:
        specs: the tasks; those of one embodiment and width are of one body.
        demos: demonstrations by task.

    Raises:
        ValueError: names the first task of such a body.
    """
    shown = {(spec.embodiment, spec.obs_dim) for spec in specs if demos[spec.name]}
    for spec in specs:
        if (spec.embodiment, spec.obs_dim) not in shown:
            raise ValueError(
                f"an agent that observes images needs demonstrations of {spec.name}: how its images vary is unknown"
            )


def replay_frames(env: TaskEnv, episode: Episode, what: str, first: int = 0, every: int = 1) -> Iterator[np.ndarray]:
    """Replay a demonstration from its seed, and yield the image of observation `first` and of each `every`-th after it.

    Args:
        env: an environment of its task, which can draw.
        episode: the demonstration, with states.
        what: its name, for the error.
        first: below `every`.
        every: 1 for all images.

    Raises:
        ValueError: an observation differs from the recorded one.
    """
    obs, _ = env.reset(seed=episode.seed)
    for step in range(len(episode.obs)):
        if not np.array_equal(obs, episode.obs[step]):
            raise ValueError(
                f"{what} does not come out as recorded when it is played again from seed {episode.seed}: observation "
                f"{step} differs. It was made by another version of the simulator or the task, or elsewhere: make "
                "demonstrations anew, or set vision.observe to `state`."
            )
        if step % every == first:
            yield env.render()
        if step < len(episode.action):
            obs, *_ = env.step(episode.action[step])


def _path(folder: Path, task: str) -> Path:
    return folder / f"{task}.safetensors"


def _key(demos: Path, task: str, pixel_encoder: PixelEncoder) -> dict[str, str]:
    """Return all that the vectors depend on."""
    from pipeline.data.demos import FILE  # an agent that acts needs no parquet

    digest = sha256(demos / task / FILE)
    return {"encoder": pixel_encoder.encoder.id, "size": str(pixel_encoder.image_size), "demonstrations": digest}


def _stored_key(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None
