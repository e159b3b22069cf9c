"""Training one teacher: PPO on copies, judged in the real environment, resumable at every evaluation.

A run folder holds `state.safetensors` (networks, optimiser, copies, and in its header all random generators) and
`curve.json`, both replaced whole at each evaluation; `teacher.safetensors` is the best policy so far.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipeline.batched.form import ArrayForm
from pipeline.batched.forms import array_form
from pipeline.batched.states import States
from pipeline.batched.stepped import open_copies
from pipeline.config import near, parse
from pipeline.demonstrate.arcade import HINTS
from pipeline.demonstrate.experts import expert_kind
from pipeline.demonstrate.planner import load_recipes as planned
from pipeline.demonstrate.play import play
from pipeline.demonstrate.ppo import PPO, PPORecipe
from pipeline.demonstrate.teacher import SHIPPED, Teacher, load_teacher, teacher_file
from pipeline.files import atomic_file
from pipeline.tasks.miniarcade.adapter import GAMES
from pipeline.tasks.miniarcade.game import Game
from pipeline.tasks.registry import get, load_catalogue, load_own, make, shipped_teachers
from pipeline.tasks.spec import TaskSpec
from pipeline.yaml_text import parse_yaml

RECIPES = Path(__file__).with_name("teachers.yaml")
EPISODES_ON_THE_WAY, EPISODES = 8, 40  # of an evaluation
_DISTURBANCE = 0.5  # std of what disturbs every second demonstration to begin with
_GAIN = 0.01  # of the score that counts as one
_FRESH = 1_000_000  # where the seeds of the last evaluation begin; none was played before


def load_recipes(folder: str | Path | None = None) -> dict[str, PPORecipe]:
    """Read teachers.yaml: for each task the common values with its own laid over them.

    Args:
        folder: of the user's own tasks, or one of their files. If a teachers.yaml lies there it adds tasks or changes
            them, and so do those of installed packages that ship tasks.

    Raises:
        ValueError: a value is missing, unknown or out of bounds, a file has another form, or there is no task of a
            name in it.
    """
    recipes, files, known = _read(RECIPES), shipped_teachers(), list[str]()
    home = Path(folder or "")
    home = home.parent if home.is_file() else home
    if folder is not None and (home / RECIPES.name).is_file():
        files.append(home / RECIPES.name)
        known += [spec.name for spec in load_own(home)]
    if files:  # not with the user's own in one catalogue: those may be of a package that is installed
        known += load_catalogue()
    for file in files:
        found = _read(file)
        for task in found:
            if task not in known:
                raise ValueError(
                    f"{file}: task `{task}` is not known, so nobody would be taught by its line."
                    f"{near(task, sorted({*known}))} `eft tasks` lists every task."
                )
        recipes |= found
    return recipes


def usual_recipe() -> PPORecipe:
    """Return the common values."""
    return TypeAdapter(PPORecipe).validate_python(_common())


@cache
def _common() -> dict[str, Any]:
    return YAML(typ="safe").load(RECIPES.read_text(encoding="utf-8"))["all"]


def _read(path: Path | Traversable) -> dict[str, PPORecipe]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not all(
        isinstance(task, str) and (own is None or isinstance(own, dict)) for task, own in tasks.items()
    ):
        raise ValueError(f"{path}: expected `tasks:` with a line `<task>: {{<what differs>}}` for each.")
    if others := [repr(key) for key in content if key != "tasks" and (key != "all" or path != RECIPES)]:
        raise ValueError(
            f"{path}: {', '.join(others)} beside `tasks:` would not be read: write it into each task's line."
        )
    return {task: parse(PPORecipe, {**_common(), **(own or {})}, f"{path}: {task}") for task, own in tasks.items()}


def check_recipe(spec: TaskSpec, recipe: PPORecipe) -> None:
    """Refuse a recipe that asks for what there is not.

    Raises:
        ValueError: shaping of a reward that nothing is known to shape by, demonstrations that nobody plans, or to
            begin as a teacher that is not there.
    """
    if recipe.shaping and _hint(spec) is None and spec.name not in _teaching():
        raise ValueError(
            f"{spec.name}: teachers.yaml asks for shaping, and pipeline/demonstrate/shaping.py (games: arcade.py) has "
            "none of this task: set `shaping: 0`, or add it there."
        )
    if recipe.begins_as is not None and not (SHIPPED / recipe.begins_as).is_dir():
        raise ValueError(
            f"{spec.name}: teachers.yaml asks to begin as the teacher of {recipe.begins_as!r}, and there is none. "
            f"Those that come with Eft: {', '.join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))}."
        )
    if recipe.demos and expert_kind(spec, None) is None and spec.name not in planned():
        raise ValueError(
            f"{spec.name}: teachers.yaml asks for demonstrations to begin with, and nobody plans this task: set "
            "`demos: 0`, or add it to pipeline/demonstrate/recipes.yaml."
        )


def _teaching() -> dict[str, Callable[[States], np.ndarray]]:
    from pipeline.demonstrate.shaping import TEACHING  # only here: other tasks need no dm_control

    return TEACHING


class Shaped:
    """A task's array form with `TEACHING` added to the reward, times a weight that falls while training goes on."""

    def __init__(self, spec: TaskSpec, form: ArrayForm):
        self.weight, self._shaping, self._reward = 0.0, _teaching()[spec.name], form.reward
        self.form = replace(form, reward=self._shaped)

    def _shaped(self, states: States, before: States) -> np.ndarray:
        reward = self._reward(states, before)
        return reward + self.weight * self._shaping(states) if self.weight else reward


class ShapedGame:
    """What draws the planner on, for a game's teacher, times a weight that falls while training goes on."""

    def __init__(self, hint: Callable[[Game, np.ndarray], np.ndarray]):
        self.weight, self._hint = 0.0, hint

    def __call__(self, game: Game, states: np.ndarray) -> np.ndarray:
        return self.weight * self._hint(game, states) if self.weight else np.zeros(len(states))


class Training:
    """The training of one teacher.

    Args:
        spec: the task.
        recipe: how.
        seed: of everything.
        folder: where it keeps what it needs to go on; one that was begun goes on.
        form: the task on arrays; None for its own, or for a task without one the environment itself.

    Raises:
        ValueError: the recipe asks for what there is not, or what was begun cannot be read.
    """

    def __init__(
        self,
        spec: TaskSpec,
        recipe: PPORecipe,
        seed: int,
        folder: Path,
        form: ArrayForm | None = None,
    ):
        self.spec, self.recipe, self.seed, self.folder = spec, recipe, seed, folder
        check_recipe(spec, recipe)
        self._shaped = _shaped(spec, form) if recipe.shaping else None
        hint = self._shaped if isinstance(self._shaped, ShapedGame) else None
        if isinstance(self._shaped, Shaped):
            form = self._shaped.form
        self.env = open_copies(spec, recipe.copies, seed, recipe.coarseness, form, hint)
        self.ppo = PPO(recipe, self.env, seed)
        self.curve: list[dict[str, float]] = []
        self._before, self._started = 0.0, time.process_time()
        if (folder / "state.safetensors").exists():
            self._load()
        elif recipe.begins_as:
            self.ppo.begin_as(_shipped(recipe.begins_as))
        elif recipe.demos:
            self._clone()

    @property
    def seconds(self) -> float:
        """Core-seconds so far, of all runs that this one went on from."""
        return self._before + time.process_time() - self._started

    @property
    def best(self) -> float:
        """The best score of an evaluation so far; -1 before the first."""
        return max((row["score"] for row in self.curve), default=-1.0)

    @property
    def over(self) -> bool:
        """Whether the steps are used up, or the last evaluations brought nothing."""
        if self.ppo.steps >= self.recipe.steps:
            return True
        recent = [row["score"] for row in self.curve[-self.recipe.patience :]]
        earlier = [row["score"] for row in self.curve[: -self.recipe.patience]]
        shaping_gone = self.ppo.steps > self.recipe.shaping * self.recipe.steps
        return bool(earlier) and shaping_gone and max(recent) < max(earlier) + _GAIN

    def run(self, tell: Callable[[dict[str, float]], None] = lambda row: None) -> None:
        """Train until it is over. What is stopped before goes on from the last evaluation.

        Args:
            tell: called after each evaluation with the curve's new row.
        """
        if self.recipe.begins_as and not self.curve:
            self._evaluate({})
            tell(self.curve[-1])
        while not self.over:
            if self._shaped is not None:
                end = self.recipe.shaping * self.recipe.steps
                self._shaped.weight = max(0.0, 1 - self.ppo.steps / end)
            metrics = self.ppo.update()
            due = self.ppo.steps // self.recipe.evaluate > (self.ppo.steps - self._update_steps) // self.recipe.evaluate
            if due or self.ppo.steps >= self.recipe.steps:
                self._evaluate(metrics)
                tell(self.curve[-1])

    def finish(self) -> Teacher:
        """Judge the best policy by fresh episodes and return it with its notes."""
        teacher = load_teacher(self.folder / "teacher.safetensors", self.spec)
        scores = play_teacher(teacher, EPISODES, _FRESH)
        teacher.notes = {
            "score": round(float(scores.mean()), 4),
            "standard_error": round(float(scores.std(ddof=1) / len(scores) ** 0.5), 4),
            "episodes": EPISODES,
            "lowest": round(float(scores.min()), 4),
            "steps": int(self.curve[int(np.argmax([row["score"] for row in self.curve]))]["steps"]),
            "trained_steps": int(self.ppo.steps),
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "recipe": TypeAdapter(PPORecipe).dump_python(self.recipe),
        }
        return teacher

    def close(self) -> None:
        """Release the simulators."""
        self.env.close()

    @property
    def _update_steps(self) -> int:
        return self.recipe.copies * self.recipe.unroll

    def _clone(self) -> None:
        """Begin with what the planner does; every second demonstration is disturbed."""
        episodes = [play(self.spec, self.seed, attempt, _DISTURBANCE) for attempt in range(self.recipe.demos)]
        obs = np.concatenate([episode.obs[:-1] for episode in episodes])
        self.ppo.clone(obs, np.concatenate([episode.expert_action for episode in episodes]))

    def _evaluate(self, metrics: dict[str, float]) -> None:
        teacher = self.ppo.teacher()
        score = float(play_teacher(teacher, EPISODES_ON_THE_WAY, 0).mean())
        if score >= self.best:
            teacher.save(self.folder / "teacher.safetensors")
        row = {"steps": self.ppo.steps, "seconds": round(self.seconds, 1), "score": round(score, 4)}
        self.curve.append({**row, **{key: float(f"{value:.4g}") for key, value in metrics.items()}})
        tensors, values = self.ppo.state()
        values |= {"curve": self.curve, "seconds": self.seconds}
        with atomic_file(self.folder / "state.safetensors") as partial:
            save_file(tensors, partial, {"values": json.dumps(values)})

    def _load(self) -> None:
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                values = json.loads(file.metadata()["values"])
                self.ppo.load_state({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118
            self.curve, self._before = values["curve"], values["seconds"]
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path}: it cannot be gone on from ({type(error).__name__}: {error}): damaged, or of another version "
                f"of Eft. Remove {self.folder}, and the training of {self.spec.name} begins anew."
            ) from error


def _shipped(task: str) -> Teacher:
    """Return the teacher of a task that comes with Eft."""
    (spec,) = get([task])
    return load_teacher(teacher_file(SHIPPED, spec), spec)


def _shaped(spec: TaskSpec, form: ArrayForm | None) -> Shaped | ShapedGame:
    """Return what draws a task's teacher on."""
    hint = _hint(spec)
    return ShapedGame(hint) if hint else Shaped(spec, form or array_form(spec))


def _hint(spec: TaskSpec) -> Callable[[Game, np.ndarray], np.ndarray] | None:
    """Return what draws on whoever plays this game of MiniArcade, if anything does."""
    return HINTS.get(GAMES[spec.env_id].__name__) if spec.suite == "miniarcade" else None


def play_teacher(teacher: Teacher, episodes: int, first_seed: int) -> np.ndarray:
    """Play whole episodes in the real environment; return the scores, (episodes,)."""
    spec, scores = teacher.spec, []
    env = make(spec, spec.obs_dim, spec.action_dim)
    try:
        for number in range(episodes):
            obs, info = env.reset(seed=first_seed + number)
            total, over = 0.0, False
            while not over:
                obs, reward, terminated, truncated, info = env.step(teacher.label(obs))
                total, over = total + reward, terminated or truncated
            scores.append(spec.evaluate(total, bool(info["success"])))
    finally:
        env.close()
    return np.array(scores)
