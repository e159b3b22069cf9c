import dataclasses
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from pipeline.tasks import registry
from pipeline.tasks.any_gymnasium import GymnasiumSimulator, GymnasiumTask
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import SimulationError
from pipeline.tasks.vector import VectorEnv

HUGE = np.finfo(np.float32).max
ARROWS = Box(-2.0, 4.0, (2, 1), np.float32)


class Toy(gymnasium.Env):
    """Observes a goal and its last action; succeeds when told to."""

    def __init__(self, action_space=ARROWS, observation_space=None, says=None):
        self.action_space = action_space
        self.observation_space = observation_space or Dict(
            {"goal": Box(-1, 1, (3,), np.float32), "last": Box(-9, 9, (2, 1), np.float32)}
        )
        self.says = says or {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"goal": self.goal, "last": np.zeros((2, 1), np.float32)}, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return {"goal": self.goal, "last": action}, 1, False, False, self.says


gymnasium.register("eft-test/Toy-v0", entry_point=Toy, max_episode_steps=2)


def observe(task):
    out = np.zeros(task.obs_dim, np.float32)
    task.observe(out)
    return out


def test_nested_observations_and_shaped_actions_become_vectors():
    task = GymnasiumTask("eft-test/Toy-v0", {})
    assert task.obs_dim == 5
    assert (task.low.tolist(), task.high.tolist()) == ([-2, -2], [4, 4])
    task.reset(3)
    first = observe(task)
    task.reset(4)
    task.reset(3)
    assert observe(task).tolist() == first.tolist()
    assert task.step(np.array([4.0, -2.0])) == (1.0, False, False, False)
    assert observe(task)[3:].tolist() == [4, -2]


def test_the_environments_own_time_limit_is_taken_off():
    task = GymnasiumTask("eft-test/Toy-v0", {})
    task.reset(0)
    assert [task.step(np.zeros(2))[2] for _ in range(5)] == [False] * 5


@pytest.mark.parametrize("says", [{"success": True}, {"is_success": np.True_}, {"success": 1.0}])
def test_success_is_read_from_info(says):
    task = GymnasiumTask("eft-test/Toy-v0", {"says": says})
    task.reset(0)
    assert task.step(np.zeros(2))[3] is True


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"action_space": Text(3)}, r"its actions are Text.*; expected a Box, Discrete, MultiDiscrete or MultiBinary"),
        ({"action_space": Box(-np.inf, np.inf, (2,))}, r"unbounded.*`action_bounds: \[-2, 2\]`"),
        ({"action_space": Box(-np.inf, 1.0, (2,))}, "its actions are unbounded"),
        ({"action_space": Box(-HUGE, HUGE, (2,))}, "its actions are unbounded"),
        ({"action_space": Box(-(2**63), 2**63 - 1, (2,), np.int64)}, "its actions are unbounded"),
        ({"observation_space": Text(5)}, "expected numbers in a Box, or a Dict or Tuple"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused(kwargs, message):
    if "observation_space" in kwargs:
        kwargs["observation_space"] = gymnasium.spaces.Sequence(kwargs["observation_space"])
    with pytest.raises(ValueError, match=message):
        GymnasiumTask("eft-test/Toy-v0", kwargs)


def test_unknown_environments_name_near_matches():
    with pytest.raises(ValueError, match="Did you mean .*`InvertedPendulum-v5`"):
        GymnasiumTask("InvertedPendulums-v5", {})
    with pytest.raises(ValueError, match="is a module: put it beside the task file"):
        GymnasiumTask("no_such_module:lab/Juggle-v0", {})


def test_a_package_that_an_environment_needs_is_named():
    def needy(**_):
        raise gymnasium.error.DependencyNotInstalled("Box7d is not installed")

    gymnasium.register("eft-test/Needy-v0", entry_point=needy)
    with pytest.raises(ValueError, match="'eft-test/Needy-v0' cannot be built: .*Box7d is not installed"):
        GymnasiumTask("eft-test/Needy-v0", {})


def test_what_fails_in_an_environments_own_code_is_said_with_its_place():
    def broken(**_):
        raise AssertionError

    gymnasium.register("eft-test/Broken-v0", entry_point=broken)
    with pytest.raises(
        ValueError, match=r"cannot be built: AssertionError \(.*tasks/test_any_gymnasium\.py, line \d+\)"
    ):
        GymnasiumTask("eft-test/Broken-v0", {})


def test_a_module_that_is_missing_is_named_with_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ValueError, match=r"`pip install -c constraints\.txt gymnasium-robotics`"):
        GymnasiumTask("gymnasium_robotics:FetchReach-v4", {})
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    with pytest.raises(ValueError, match=r"It imports no_such_library: install that"):
        GymnasiumTask("needs_more:lab/Arm-v0", {})


def test_drawing_without_a_display_says_nothing():
    pytest.importorskip("pygame")
    code = "from pipeline.tasks.any_gymnasium import GymnasiumTask as Task; task = Task('Pendulum-v1', {}, 32);"
    code += "task.reset(0); print(task.render().shape)"
    unset = ("XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "(32, 32, 3)"
    assert "XDG_RUNTIME_DIR" not in found.stdout + found.stderr


class Gripper(gymnasium.Env):
    """Observes how far it went and whether it grips, as a Tuple; succeeds if it was told numbers up to its limits."""

    observation_space = Tuple([Box(-np.inf, np.inf, (2,), np.float64), Discrete(2)])
    action_space = Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.zeros(2)
        return (self.at, 0), {}

    def step(self, action):
        self.at = self.at + action
        if self.at.sum() > 100:
            return (self.at,), 0.0, False, False, {}
        return (self.at, 1), float(action.sum()), False, False, {}


gymnasium.register("eft-test/Gripper-v0", entry_point=Gripper)
GRIPPER = TaskSpec(
    name="gripper", suite="gymnasium", env_id="eft-test/Gripper-v0", embodiment="A hand.", instructions=("Grip.",),
    obs_dim=4, action_dim=2, action_repeat=1, episode_length=5, score="return/1000", action_bounds=(-1.0, (2.0, 60.0)),
)  # fmt: skip


def test_limits_of_the_task_file_and_tuples_reach_the_environment():
    with VectorEnv([GRIPPER], 6, 3, seed=0, num_workers=0) as envs:
        assert envs.reset().tolist() == [[0, 0, 1, 0, 0, 0]]
        step = envs.step(np.array([[1, 0, 1]], np.float32))
        assert step.obs.tolist() == [[2, 29.5, 0, 1, 0, 0]]
        assert step.reward.tolist() == [31.5]


def test_an_observation_with_a_missing_part_is_a_failure_of_its_episode():
    env = registry.make(GRIPPER, 4, 2)
    env.reset(seed=0)
    env.step(np.ones(2))
    with pytest.raises(SimulationError, match="task gripper: step 2 .*the observation is malformed"):
        env.step(np.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_environment_with_discrete_actions_is_played(num_workers):
    values = {"name": "balance", "env_id": "CartPole-v1", "action_bounds": None, "episode_length": 20}
    spec = dataclasses.replace(GRIPPER, **values)
    with VectorEnv([spec, dataclasses.replace(spec, name="other")], 4, 2, 0, num_workers) as envs:
        envs.reset()
        for _ in range(5):
            step = envs.step(np.array([[1, -1], [-1, 1]], np.float32))
    assert step.obs[0, 1] < 0 < step.obs[1, 1]  # pushed to the left, and to the right


@pytest.mark.slow
def test_limits_of_the_task_file_reach_a_worker():
    here = {"env_id": "Pendulum-v1", "obs_dim": 3, "action_dim": 1, "action_bounds": (-0.5, 0.5)}
    narrow = dataclasses.replace(GRIPPER, **here)
    wide = dataclasses.replace(narrow, action_bounds=None)
    with VectorEnv([narrow, wide], 3, 1, 0, 1, numbers=[0, 0]) as envs:
        envs.reset()
        step = envs.step(np.array([[1], [0.25]], np.float32))
    assert np.array_equal(step.obs[0], step.obs[1])


class Odd(gymnasium.Env):
    """Returns what it is told to."""

    observation_space, action_space = Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32)

    def __init__(self, reset=None, step=None):
        self._reset, self._step = reset, step

    def reset(self, *, seed=None, options=None):
        return (np.zeros(1, np.float32), {}) if self._reset is None else self._reset

    def step(self, action):
        return self._step


def odd(**returned):
    task = GymnasiumSimulator("odd", Odd(**returned))
    task.reset(0)
    return task


@pytest.mark.parametrize("reward", [np.float32(0.5), np.array([0.5]), np.array(0.5), [0.5], np.array([[0.5]])])
def test_a_reward_may_be_an_array_of_one_number(reward):
    obs = np.zeros(1, np.float32)
    assert odd(step=(obs, reward, np.array([True]), False, None)).step(np.zeros(1)) == (0.5, True, False, False)


@pytest.mark.parametrize("success", [float("nan"), np.array([np.nan]), None, 0, np.array([False])])
def test_a_success_that_is_not_known_is_none(success):
    obs = np.zeros(1, np.float32)
    assert odd(step=(obs, 0.0, False, False, {"success": success})).step(np.zeros(1))[3] is False


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {"step": (np.zeros(1), 0.0, False, {})},
            r"its step\(\) must return .*truncated, info\).*it returned 4 values",
        ),
        ({"step": np.zeros(1)}, "it returned ndarray"),
        ({"step": (np.zeros(1), None, False, False, {})}, "its reward is None, expected one number"),
        ({"step": (np.zeros(1), np.zeros(2), False, False, {})}, r"its reward is array\(\[0., 0.\]\), expected one"),
        ({"reset": np.zeros(1)}, r"its reset\(\) must return \(observation, info\).*it returned ndarray"),
    ],
    ids=["old step", "no tuple", "no reward", "two rewards", "old reset"],
)
def test_what_gymnasium_does_not_know_is_said(returned, message):
    with pytest.raises(ValueError, match=message):
        odd(**returned).step(np.zeros(1))


class Undrawn(Odd):
    """Takes no `render_mode`, as many environments do not; may draw all the same."""

    def __init__(self, colour=None):
        super().__init__(step=(np.zeros(1, np.float32), 0.0, False, False, {}))
        self._colour = colour

    def render(self):
        return None if self._colour is None else np.full((8, 8, 3), self._colour, np.uint8)


gymnasium.register("eft-test/Undrawn-v0", entry_point=Undrawn)


def test_an_environment_that_is_not_made_to_be_drawn_is_simulated_all_the_same():
    task = GymnasiumTask("eft-test/Undrawn-v0", {}, render_size=4)
    task.reset(0)
    task.step(np.zeros(1))
    with pytest.raises(RenderingUnavailable, match="Undrawn-v0 cannot draw itself"):
        task.render()
    task = GymnasiumTask("eft-test/Undrawn-v0", {"colour": 7}, render_size=4)
    task.reset(0)
    assert np.array_equal(task.render(), np.full((4, 4, 3), 7))
    with pytest.raises(TypeError, match="'color'"):
        GymnasiumTask("eft-test/Undrawn-v0", {"color": 7}, render_size=4)
