"""One episode, played by whatever acts and noted as a demonstration.

env = make(spec, spec.obs_dim, spec.action_dim)
write_episodes(path, [record(env, act, seed) for seed in range(5)])
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.data.episode import Episode
from pipeline.tasks.task_env import TaskEnv


def record(env: TaskEnv, act: Callable[[np.ndarray, bool], np.ndarray], seed: int, method: str = "script") -> Episode:
    """Play one episode.

    Args:
        env: of the task, as wide as the task itself.
        act: gets the observation (o,) float32 and whether it is a success, returns the action (a,); what leaves [-1, 1]
            is cut.
        seed: of the episode.
        method: who acts, in a word; the demonstration says so.

    Raises:
        ValueError: the environment is padded, or an action has another shape than (a,) or is not finite.
        SimulationError: the simulator failed.
    """
    task, shapes = env.task, (env.observation_space.shape, env.action_space.shape)
    if shapes != ((task.obs_dim,), (task.action_dim,)):
        raise ValueError(
            f"{task.name}: the environment's observation and action have the shapes {shapes[0]} and {shapes[1]}, the "
            f"task's ({task.obs_dim},) and ({task.action_dim},). Demonstrations are not padded: "
            "make(spec, spec.obs_dim, spec.action_dim)."
        )
    obs, info = env.reset(seed=seed)
    seen, acted, rewards, over, terminated = [obs], [], [], False, False
    while not over:
        action = np.clip(np.asarray(act(obs, bool(info["success"])), np.float32), -1, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        seen.append(obs)
        acted.append(action)
        rewards.append(reward)
        over = terminated or truncated
    action, success, total = np.stack(acted), bool(info["success"]), float(np.sum(rewards))
    return Episode(
        task=task.name, obs=np.stack(seen), action=action, expert_action=action,
        reward=np.asarray(rewards, np.float32), terminated=terminated, success=success,
        score=task.evaluate(total, success), episode_return=total, seed=seed, method=method,
    )  # fmt: skip
