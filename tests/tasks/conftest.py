import pytest

from pipeline.tasks.spec import parse_spec

TROUBLE = '''
import os
import time
import gymnasium
import numpy as np

class Trouble(gymnasium.Env):
    """Counts steps; at one of them it gets into trouble, in the episodes that begin below `when`."""
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, terminates=None, trouble=None, at=3, when=2.0, pause=60):
        self.terminates, self.trouble, self.at, self.when, self.pause = terminates, trouble, at, when, pause
        if trouble == "is built slowly":
            time.sleep(pause)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.random()
        if self.trouble == "reset" and self.start < self.when:
            raise KeyError("no ball")
        if self.trouble == "starts slowly":
            time.sleep(self.pause)
        return np.array([self.start, 0.0]), {}

    def step(self, action):
        self.steps += 1
        obs = np.array([self.start, self.steps])
        if self.steps == self.at and self.start < self.when:
            if self.trouble in ("raises", "is built slowly"):
                raise KeyError("lost the ball")
            if self.trouble == "dies":
                os._exit(7)
            if self.trouble == "blocks":
                time.sleep(self.pause)
            if self.trouble == "nan":
                obs[1] = np.nan
            if self.trouble == "nan reward":
                return obs, np.nan, False, False, {}
            if self.trouble == "shape":
                obs = np.zeros(3)
        return obs, action[0], self.steps == self.terminates, False, {}

gymnasium.register("lab/Trouble-v0", entry_point=Trouble)
'''


@pytest.fixture
def trouble(tmp_path, monkeypatch):
    """Return a function that makes the task of an environment in a module of the user's own."""
    (tmp_path / "eft_trouble.py").write_text(TROUBLE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name="trouble", episode_length=5, **env_kwargs):
        return parse_spec(
            {
                "name": name,
                "suite": "gymnasium",
                "env_id": "eft_trouble:lab/Trouble-v0",
                "embodiment": "It counts.",
                "instructions": ["Count."],
                "obs_dim": 2,
                "action_dim": 1,
                "action_repeat": 1,
                "episode_length": episode_length,
                "score": "return/10",
                "env_kwargs": env_kwargs,
            },
            "test",
        )

    return make
