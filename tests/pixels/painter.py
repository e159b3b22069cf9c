"""A Gymnasium environment whose image shows its state, as a task."""

from __future__ import annotations

import numpy as np

from pipeline.tasks.spec import TaskSpec, parse_spec

SIZE = 28  # pixels of an image's side
SOURCE = '''
import gymnasium
import numpy as np

class Painter(gymnasium.Env):
    """Shows a bar as long as its steps and as bright as its start; terminates after `ends` steps."""
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends, render_mode=None):
        self.ends, self.render_mode = ends, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.random()
        return np.array([self.start, 0.0]), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.start, self.steps]), float(action[0]), self.steps == self.ends, False, {}

    def render(self):
        image = np.zeros((28, 28, 3), np.uint8)
        image[:, : 3 * self.steps + 1] = int(50 + 200 * self.start)
        return image

gymnasium.register("pixels/Painter-v0", entry_point=Painter)
'''


def make_painter(name: str, ends: int) -> TaskSpec:
    """Return a task of it; `SOURCE` must be importable as `eft_painter`."""
    values = {
        "name": name, "suite": "gymnasium", "env_id": "eft_painter:pixels/Painter-v0", "embodiment": "It paints.",
        "instructions": [f"Paint {name}."], "obs_dim": 2, "action_dim": 1, "action_repeat": 1, "episode_length": 6,
        "score": "return/10", "env_kwargs": {"ends": ends},
    }  # fmt: skip
    return parse_spec(values, "a test")


def image_of(start: float, steps: int) -> np.ndarray:
    """Return the image that belongs to an observation."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : 3 * steps + 1] = int(50 + 200 * start)
    return image
