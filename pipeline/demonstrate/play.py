"""One attempt at a demonstration: an expert plays an episode, whose actions are partly disturbed."""

from __future__ import annotations

import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipeline.batched.env import simulation
from pipeline.batched.forms import array_form
from pipeline.batched.states import States
from pipeline.data.episode import Episode
from pipeline.demonstrate.bodies import BODIES, ogbench_ant
from pipeline.demonstrate.box2d import PILOTED, WalkerSimulator
from pipeline.demonstrate.experts import Label, expert_kind, open_expert
from pipeline.demonstrate.planner import Planner, RollOut, load_recipes
from pipeline.demonstrate.simulator import PlanningSimulator
from pipeline.demonstrate.teacher import load_teacher, teacher_file
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

if TYPE_CHECKING:
    from pipeline.tasks.atari import Atari
    from pipeline.tasks.maniskill import ManiSkill
    from pipeline.tasks.miniarcade.adapter import MiniArcade

_KEPT_OF_TEACHERS = 0.7  # of a teacher's own mean score; disturbed attempts score less
_PLANNED = ("dmcontrol", "dmcontrol-ext", "mujoco", "ogbench", "box2d", "miniarcade", "atari", "maniskill")

# Every second attempt is disturbed, so that a clone sees what to do after its own mistakes and the world model sees
# what other actions do. Held for some steps the noise leads further away than white noise of the same size; the last
# fifth is left alone, because it decides whether the attempt is kept.
_HELD_STEPS = 5
_DISTURBED_FRACTION = 0.5
_QUIET_END = 0.2


def expert_method(spec: TaskSpec, teachers: str | Path | None = None) -> str:
    """Return `scripted`, `path` (follows the way through a maze), `teacher` or `planner`: who demonstrates this task.

    A teacher does where it scores better than the planner, or not much worse: what it does depends on the observation
    alone, so that a clone can learn it.

    Args:
        spec: the task.
        teachers: folder of trained teachers; None for none.

    Raises:
        ValueError: nobody does.
    """
    kind = expert_kind(spec, teachers)
    if kind is not None:
        return kind
    if spec.name in load_recipes() and spec.suite in _PLANNED:
        return "planner"
    raise ValueError(
        f"{spec.name} has no expert: Meta-World, RoboDesk and landers have scripted ones, points and ants in mazes "
        "follow the way, any task can have a teacher (a recipe in teachers.yaml, and `teach.enabled`), and DeepMind "
        "Control, Gymnasium's MuJoCo, OGBench's ant, Box2D's walkers, MiniArcade, Atari and ManiSkill can be planned: "
        "a recipe in pipeline/demonstrate/recipes.yaml."
    )


def least_score(spec: TaskSpec, teachers: str | Path | None = None) -> float:
    """Return the score from which on a demonstration is good enough to be kept."""
    method = expert_method(spec, teachers)
    if method == "planner":
        return load_recipes()[spec.name].min_score
    if method == "teacher":
        assert teachers is not None  # else nobody is a teacher
        return _KEPT_OF_TEACHERS * load_teacher(teacher_file(teachers, spec), spec).notes["score"]
    return PILOTED.get(spec.env_id, 1.0)


def attempt_seed(seed: int, task: str, attempt: int) -> int:
    """Return the episode seed of an attempt, below 2**32; it depends on nothing else, so neither does the episode."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), attempt]).generate_state(1)[0])


def play(spec: TaskSpec, seed: int, attempt: int, action_noise: float, teachers: str | Path | None = None) -> Episode:
    """Play one attempt.

    Args:
        spec: the task.
        seed: the run's seed.
        attempt: number of the attempt, from 0; odd ones are disturbed.
        action_noise: std of the disturbance; actions span [-1, 1].
        teachers: folder of trained teachers; None for none.

    Raises:
        ValueError: the task has no expert.
        SimulationError: the simulator failed.
    """
    method = expert_method(spec, teachers)
    episode_seed = attempt_seed(seed, spec.name, attempt)
    rng = np.random.default_rng([episode_seed, 1])
    with ExitStack() as opened:
        env = make(spec, spec.obs_dim, spec.action_dim)
        opened.callback(env.close)
        obs, info = env.reset(seed=episode_seed)
        if method == "planner":
            act = planning(spec, env, episode_seed, rng, opened)
        else:
            act = open_expert(spec, env, teachers)
        noise = disturbance(spec, action_noise if attempt % 2 else 0.0, rng)
        observations, actions, intended, rewards = [obs], [], [], []
        success, over, terminated = bool(info["success"]), False, False
        while not over:
            wanted = np.clip(act(obs, success), -1, 1).astype(np.float32)
            action = np.clip(wanted + noise[len(actions)], -1, 1).astype(np.float32)
            obs, reward, terminated, truncated, info = env.step(action)
            success, over = bool(info["success"]), terminated or truncated
            observations.append(obs)
            actions.append(action)
            intended.append(wanted)
            rewards.append(reward)
    total = float(np.sum(rewards))
    return Episode(
        task=spec.name,
        obs=np.stack(observations),
        action=np.stack(actions),
        expert_action=np.stack(intended),
        reward=np.asarray(rewards, np.float32),
        terminated=terminated,
        success=success,
        score=spec.evaluate(total, success),
        episode_return=total,
        seed=episode_seed,
        method=method,
    )


def planning(spec: TaskSpec, env: TaskEnv, seed: int, rng: np.random.Generator, opened: ExitStack) -> Label:
    """Return the planner of an episode that has just been reset with a seed, as who acts; see `open_planner`."""
    planner = open_planner(spec, env, seed, rng, opened)
    ready: list[np.ndarray] = []

    def act(obs: np.ndarray, success: bool) -> np.ndarray:
        if not ready:
            ready.extend(planner.plan())
        return ready.pop(0)

    return act


def open_planner(spec: TaskSpec, env: TaskEnv, seed: int, rng: np.random.Generator, opened: ExitStack) -> Planner:
    """Return the planner of an episode that has just been reset with a seed; `opened` closes what else it opens."""
    if spec.suite in ("box2d", "maniskill"):
        return planned_on_a_twin(spec, env, seed, rng, opened)
    kinds = {"miniarcade": planned_game, "atari": planned_atari, "mujoco": planned_body, "ogbench": planned_body}
    return kinds.get(spec.suite, planned)(spec, env, rng)


def planned_game(spec: TaskSpec, env: TaskEnv, rng: np.random.Generator) -> Planner:
    """Return the planner of a game of MiniArcade."""
    from pipeline.demonstrate.arcade import GameSimulator

    simulator = GameSimulator(cast("MiniArcade", env.simulator))
    return Planner(load_recipes()[spec.name], simulator, lambda rewards: rewards, rng)


def planned_atari(spec: TaskSpec, env: TaskEnv, rng: np.random.Generator) -> Planner:
    """Return the planner of an Atari game."""
    from pipeline.demonstrate.console import ConsoleSimulator

    return Planner(
        load_recipes()[spec.name], ConsoleSimulator(cast("Atari", env.simulator)), lambda rewards: rewards, rng
    )


def planned(spec: TaskSpec, env: TaskEnv, rng: np.random.Generator) -> Planner:
    """Return the planner of a dm_control task."""
    from pipeline.demonstrate.shaping import SHAPING  # only here: other tasks need no dm_control

    recipe, form = load_recipes()[spec.name], array_form(spec)
    model, data, substeps = simulation(spec, env.simulator)
    steps, drawn = substeps * spec.action_repeat, form.drawn(env.simulator)
    simulator = PlanningSimulator(model, data, steps, recipe.coarseness, recipe.runge_kutta, drawn)
    shaping = SHAPING.get(spec.name)

    def reward(states: States) -> np.ndarray:
        base = form.reward(states, states)  # these tasks' rewards are of the state after a step alone
        return base if shaping is None else base + shaping(states)

    return Planner(recipe, simulator, reward, rng)


def planned_body(spec: TaskSpec, env: TaskEnv, rng: np.random.Generator) -> Planner:
    """Return the planner of one of Gymnasium's MuJoCo tasks, or of OGBench's ant."""
    recipe, task = load_recipes()[spec.name], cast(Any, env.simulator)
    body = task.env.unwrapped
    steps = body.frame_skip * spec.action_repeat
    simulator = PlanningSimulator(body.model, body.data, steps, recipe.coarseness, recipe.runge_kutta)
    reward = ogbench_ant(spec.env_id, task.goal) if spec.suite == "ogbench" else BODIES[spec.env_id]
    return Planner(recipe, simulator, reward, rng)


def planned_on_a_twin(spec: TaskSpec, env: TaskEnv, seed: int, rng: np.random.Generator, opened: ExitStack) -> Planner:
    """Return the planner of one of Box2D's walkers or of a ManiSkill task, whose rollouts are made on a second one."""
    twin = make(spec, spec.obs_dim, spec.action_dim)
    opened.callback(twin.close)
    twin.reset(seed=seed)
    if spec.suite == "maniskill":
        from pipeline.demonstrate.manipulation import SceneSimulator

        scene, second = (cast("ManiSkill", one.simulator) for one in (env, twin))
        simulator: RollOut = SceneSimulator(scene, second, spec.action_repeat)
    else:
        own, other = (one.simulator.env.unwrapped for one in (env, twin))  # type: ignore[attr-defined]
        simulator = WalkerSimulator(own, other, spec.action_repeat)
    return Planner(load_recipes()[spec.name], simulator, lambda rewards: rewards, rng)


def disturbance(spec: TaskSpec, std: float, rng: np.random.Generator) -> np.ndarray:
    """Return what is added to the actions of an episode, (L, a) float32: held for some steps, on half of the time."""
    length = spec.episode_length
    bouts = -(-length // _HELD_STEPS)
    values = rng.normal(0, 1, (bouts, spec.action_dim)) * std * (rng.random((bouts, 1)) < _DISTURBED_FRACTION)
    noise = np.repeat(values, _HELD_STEPS, axis=0)[:length].astype(np.float32)
    noise[round(length * (1 - _QUIET_END)) :] = 0
    return noise
