import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

from pipeline.tasks.any_gymnasium import GymnasiumTask

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
        ({"action_space": Discrete(3)}, r"its actions are Discrete\(3\); expected a Box of continuous"),
        ({"action_space": Box(-np.inf, np.inf, (2,))}, "its actions are unbounded"),
        ({"observation_space": Text(5)}, "expected numbers in a Box or a Dict"),
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
    with pytest.raises(ValueError, match="is a module that Python can import"):
        GymnasiumTask("no_such_module:lab/Juggle-v0", {})


def test_a_package_that_an_environment_needs_is_named():
    def needy(**_):
        raise gymnasium.error.DependencyNotInstalled("Box7d is not installed")

    gymnasium.register("eft-test/Needy-v0", entry_point=needy)
    with pytest.raises(ValueError, match="'eft-test/Needy-v0' cannot be built: .*Box7d is not installed"):
        GymnasiumTask("eft-test/Needy-v0", {})


def test_drawing_without_a_display_says_nothing():
    pytest.importorskip("pygame")
    code = "from pipeline.tasks.any_gymnasium import GymnasiumTask as Task; task = Task('Pendulum-v1', {}, 32);"
    code += "task.reset(0); print(task.render().shape)"
    unset = ("XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "(32, 32, 3)"
    assert "XDG_RUNTIME_DIR" not in found.stdout + found.stderr
