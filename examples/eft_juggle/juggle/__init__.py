"""Keep a ball in the air with a paddle: a small environment, registered with Gymnasium when imported."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

_SECONDS = 0.02  # of a step
_GRAVITY = 9.81  # m/s^2
_PADDLE_SPEED = 2.0  # m/s
_BOUNCE = 6.0  # m/s upwards from the paddle


class Juggle(gymnasium.Env[np.ndarray, np.ndarray]):
    """A ball falls; a paddle on the floor throws it up again if it is below it.

    Observation (4): the ball's place across and height in metres, its speed across, the paddle's place.
    Action (1): the paddle's speed, 1 = 2 m/s to the right.
    Reward: 1 while the ball is in the air. The episode terminates when it touches the floor.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = Box(np.array([-1, -1, -5, -1], np.float32), np.array([1, 5, 5, 1], np.float32))
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Throw the ball up somewhere over the paddle."""
        super().reset(seed=seed)
        self.place, self.height, self.paddle = self.np_random.uniform(-0.2, 0.2), 1.0, 0.0
        self.across, self.up = self.np_random.uniform(-0.3, 0.3), 0.0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Advance by 20 ms."""
        self.paddle = float(np.clip(self.paddle + action[0] * _PADDLE_SPEED * _SECONDS, -1, 1))
        self.up -= _GRAVITY * _SECONDS
        self.height = min(self.height + self.up * _SECONDS, 5.0)
        self.place += self.across * _SECONDS
        if abs(self.place) > 1:
            self.place, self.across = float(np.sign(self.place)), -self.across
        if self.height <= 0 and abs(self.place - self.paddle) < 0.15:
            self.height, self.up = 0.0, _BOUNCE
            self.across = float(self.np_random.uniform(-0.5, 0.5))
        return self._observe(), 1.0, self.height < 0, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Draw ball and paddle, (120, 120, 3) uint8."""
        image = np.full((120, 120, 3), 240, np.uint8)
        ball, paddle = (round((place + 1) * 55 + 5) for place in (self.place, self.paddle))
        row = round(np.clip(110 - self.height * 40, 4, 110))
        image[row - 4 : row + 4, max(ball - 4, 0) : ball + 4] = (200, 60, 40)
        image[112:116, max(paddle - 8, 0) : paddle + 8] = (40, 60, 160)
        return image

    def _observe(self) -> np.ndarray:
        return np.array([self.place, max(self.height, -1), self.across, self.paddle], np.float32)


gymnasium.register("lab/Juggle-v0", entry_point=Juggle)
