"""Vector environments of a user's own: what an agent sees of them and gives them; tasks that exist in no other form."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from pipeline.tasks.any_gymnasium import GymnasiumTask
from pipeline.tasks.own_vector import FlatVectorEnv

SEEN = Dict({"at": Box(-9, 9, (2,), np.float64), "a_mode": Discrete(3)})


class Single(gymnasium.Env):
    """Observes where it is and what it did last; ends at its third step."""

    observation_space = SEEN

    def __init__(self, action_space: Space):
        self.action_space, self.got = action_space, []

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.steps = 0
        return {"at": self.np_random.uniform(-1, 1, 2), "a_mode": 0}, {}

    def step(self, action: Any):
        assert self.action_space.contains(action)
        self.steps += 1
        self.got.append(action)
        return {"at": np.full(2, self.steps, float), "a_mode": 2}, 1.0, self.steps == 3, False, {"success": True}


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (Box(-2, 4, (1, 2), np.float32), [0.0, 7.0], [[1, 4]]),
        (Box(0, 9, (1,), np.int64), [1.0], [9]),
        (Discrete(3, start=1), [0.0, 0.2, 0.1], 2),
        (MultiDiscrete([2, 3]), [0, 1, 0, 0, 1], [1, 2]),
        (MultiBinary(2), [0.5, -0.5], [1, 0]),
    ],
    ids=str,
)
def test_actions_and_observations_are_those_of_an_agent(space: Space, action: list[float], expected: Any) -> None:
    singles = [Single(space), Single(space)]
    envs = FlatVectorEnv(
        SyncVectorEnv([lambda: singles[0], lambda: singles[1]], autoreset_mode=AutoresetMode.SAME_STEP)
    )
    assert envs.layout == "Dict, in this order: a_mode 0-2, at 3-4"
    obs, _ = envs.reset(seed=[1, 2])
    assert (obs.shape, obs.dtype, obs[:, :3].tolist()) == ((2, 5), np.float32, [[1, 0, 0]] * 2)
    assert not np.array_equal(obs[0], obs[1])
    assert envs.action_space.shape == (2, len(action))
    found, reward, terminated, _, info = envs.step(np.array([action, action]))
    assert found.tolist() == [[0, 0, 1, 1, 1]] * 2
    assert (reward.tolist(), terminated.tolist(), info["success"].tolist()) == ([1, 1], [False] * 2, [True] * 2)
    assert [np.asarray(one.got[0]).tolist() for one in singles] == [expected] * 2
    for _ in range(2):
        found, _, terminated, *_ = envs.step(np.array([action, action]))
    assert terminated.all()
    assert found[:, :3].tolist() == [[1, 0, 0]] * 2  # of the next episode
    with pytest.raises(ValueError, match=r"expected finite actions of shape \(2, .*got shape"):
        envs.step(np.full((2, len(action)), np.nan))


def test_what_an_agent_cannot_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the arm: its actions are Tuple.*expected a Box, Discrete"):
        FlatVectorEnv(SyncVectorEnv([lambda: Single(Tuple([Discrete(2)]))]), "the arm")
    free = SyncVectorEnv([lambda: Single(Box(-np.inf, np.inf, (2,)))])
    with pytest.raises(ValueError, match="unbounded"):
        FlatVectorEnv(free)
    assert FlatVectorEnv(free, action_bounds=(-1.0, 3.0)).actions.of_unit(np.zeros(2)).tolist() == [1, 1]


class Batch(gymnasium.vector.VectorEnv):
    """Made as many at once; there is no single one."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, ends: int = 4):
        self.num_envs, self.ends = num_envs, ends
        self.single_observation_space, self.single_action_space = SEEN, Box(-2, 2, (1,), np.float32)
        self.observation_space = batch_space(SEEN, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options: Any = None):
        super().reset(seed=seed)
        self.at, self.steps = self.np_random.uniform(-1, 1, (self.num_envs, 2)), 0
        return {"at": self.at, "a_mode": np.zeros(self.num_envs, np.int64)}, {}

    def step(self, action: np.ndarray):
        assert self.action_space.contains(action)
        self.at, self.steps = self.at + action, self.steps + 1
        ended, never = np.full(self.num_envs, self.steps == self.ends), np.zeros(self.num_envs, bool)
        obs = {"at": self.at, "a_mode": np.full(self.num_envs, 1)}
        return obs, np.full(self.num_envs, 0.5), ended, never, {"success": ended, "_success": ~never}


gymnasium.register("eft-test/Batch-v0", vector_entry_point=Batch)


def test_an_environment_that_is_a_vector_alone_is_a_task_too() -> None:
    task, out = GymnasiumTask("eft-test/Batch-v0", {"ends": 2}), np.zeros(5, np.float32)
    task.reset(3)
    task.observe(out)
    first = out.copy()
    assert task.step(np.array([2.0])) == (0.5, False, False, False)
    task.observe(out)
    np.testing.assert_allclose(out, [0, 1, 0, *(first[3:] + 2)], rtol=1e-6)
    assert task.step(np.array([0.0])) == (0.5, True, False, True)
    task.reset(3)
    task.observe(out)
    assert np.array_equal(out, first)
    task.close()
