"""Environments and demonstrations as an agent that sees observes them: pictures are drawn, encoded and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.data.demos import FILE
from pipeline.data.episode import Episode
from pipeline.files import atomic_file, sha256
from pipeline.progress import Progress
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv
from pipeline.tasks.vector import Step, VectorEnv
from pipeline.vision.sight import Sight


class SeeingEnvs(VectorEnv):
    """A `VectorEnv` whose observations hold the vectors of its pictures: see `Sight`.

    Workers draw; this process encodes the pictures of all environments together.

    Args:
        sight: what is observed.
        others: as of `VectorEnv`; `obs_dim` must hold the state and the vector.
    """

    def __init__(
        self,
        sight: Sight,
        specs: Sequence[TaskSpec],
        obs_dim: int,
        action_dim: int,
        seed: int,
        num_workers: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        for spec in specs:
            check_width(spec, sight, obs_dim)
        super().__init__(specs, obs_dim, action_dim, seed, num_workers, numbers, sight.encoder.size)
        self._sight, self._obs_dims = sight, [spec.obs_dim for spec in specs]
        self._tasks = [spec.name for spec in specs]

    def reset(self) -> np.ndarray:
        """Start episode 0 of each environment; return the first observations, (N, O) float32."""
        return self._look(super().reset())

    def end_step(self) -> Step:
        """Wait for the step that was begun, encode its pictures and return what it gave."""
        step = super().end_step()
        done = np.flatnonzero(step.terminated | step.truncated)
        # Where no episode ended, or one was lost, both observations are the same.
        obs = self._look(step.obs)
        final_obs = np.where((step.terminated | step.truncated)[:, None], step.final_obs, obs)
        if len(done):
            ended = final_obs[done]
            vectors = self._sight.encode(step.final_picture[done], [self._tasks[i] for i in done])
            self._sight.look(ended, [self._obs_dims[i] for i in done], vectors)
            final_obs[done] = ended
        return step._replace(obs=obs, final_obs=final_obs)

    def restore(self, episodes: np.ndarray, actions: Sequence[np.ndarray]) -> np.ndarray:
        """Go into the middle of known episodes by replaying what was done in them; return the observations, (N, O)."""
        return self._look(super().restore(episodes, actions))

    def _look(self, obs: np.ndarray) -> np.ndarray:
        self._sight.look(obs, self._obs_dims, self._sight.encode(self.picture, self._tasks))
        return obs


def make_envs(
    sight: Sight | None,
    specs: Sequence[TaskSpec],
    obs_dim: int,
    action_dim: int,
    seed: int,
    num_workers: int,
    numbers: Sequence[int] | None = None,
) -> VectorEnv:
    """Build the environments of an agent that sees, or of one that does not."""
    if sight is None:
        return VectorEnv(specs, obs_dim, action_dim, seed, num_workers, numbers)
    return SeeingEnvs(sight, specs, obs_dim, action_dim, seed, num_workers, numbers)


def check_width(spec: TaskSpec, sight: Sight | None, obs_dim: int) -> None:
    """Refuse a task whose observation is wider than the model.

    Raises:
        ValueError: says how wide model.obs_dim must be.
    """
    width = spec.obs_dim if sight is None else max(spec.obs_dim, sight.width(spec.obs_dim))
    if width > obs_dim:
        seen = "" if sight is None else f" ({spec.obs_dim} of state, {sight.encoder.dim} of the picture's vector)"
        raise ValueError(
            f"{spec.name} has {width} observation dims{seen}, model.obs_dim is {obs_dim}: raise it to at least "
            f"{width} or leave the task out"
        )


# --- demonstrations ---------------------------------------------------------------------------------------------------


def see_demonstrations(folder: Path, demos: Path, spec: TaskSpec, episodes: Sequence[Episode], sight: Sight) -> bool:
    """Write the vectors of a task's demonstrations, unless they are there.

    Demonstrations hold no pictures: each is played again from its seed, and what is drawn is encoded.

    Args:
        folder: takes `<task>.safetensors`, one (L + 1, E) float32 per episode.
        demos: the folder of the demonstrations.
        spec: the task.
        episodes: its demonstrations.
        sight: encodes.

    Returns:
        Whether they had to be made.

    Raises:
        ValueError: a demonstration does not come out as recorded when it is played again.
        RenderingUnavailable: this machine cannot draw.
    """
    path, key = _path(folder, spec.name), _key(demos, spec.name, sight)
    key["cluster"] = str(sight.cluster(spec.name))
    if _stored_key(path) == key:
        return False
    env = make(spec, spec.obs_dim, spec.action_dim, sight.encoder.size)
    try:
        vectors = {}
        with Progress(f"pictures of {spec.name}", len(episodes), "episodes") as progress:
            for number, episode in enumerate(episodes):
                pictures = np.stack(list(play_again(env, episode, f"{spec.name}: demonstration {number}")))
                vectors[f"{number:06d}"] = sight.encode(pictures, [spec.name] * len(pictures))
                progress.update(1)
    finally:
        env.close()
    with atomic_file(path) as partial:
        save_file(vectors, partial, metadata=key)
    return True


def seen(folder: Path, demos: Path, spec: TaskSpec, episodes: Sequence[Episode], sight: Sight) -> list[Episode]:
    """Return demonstrations with what is observed in place of the state.

    Raises:
        FileNotFoundError, ValueError: their vectors were not made, or by another encoder or of other demonstrations.
    """
    path, again = _path(folder, spec.name), "Run `dvc repro embed` again."
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: it holds the vectors of the pictures. {again}")
    found, wanted = _stored_key(path) or {}, _key(demos, spec.name, sight)
    if {name: found.get(name) for name in wanted} != wanted:
        raise ValueError(f"{path} is of {found}, expected {wanted}. {again}")
    with safe_open(path, framework="np") as file:
        vectors = [file.get_tensor(f"{number:06d}") for number in range(len(episodes))]
    return [replace(one, obs=sight.join(one.obs, rows)) for one, rows in zip(episodes, vectors, strict=True)]


def play_again(env: TaskEnv, episode: Episode, what: str, first: int = 0, every: int = 1) -> Iterator[np.ndarray]:
    """Play a demonstration again from its seed, and yield what is drawn at every so manyth of its observations."""
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


def _key(demos: Path, task: str, sight: Sight) -> dict[str, str]:
    """What the vectors were made of: all that they depend on."""
    digest = sha256(demos / task / FILE)
    return {"encoder": sight.encoder.id, "size": str(sight.encoder.size), "demonstrations": digest}


def _stored_key(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None
