"""The games as a `Simulator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.config import near
from pipeline.tasks.miniarcade.air_hockey import AirHockey
from pipeline.tasks.miniarcade.bird_attack import BirdAttack
from pipeline.tasks.miniarcade.canvas import Canvas
from pipeline.tasks.miniarcade.cartpole import CartPole
from pipeline.tasks.miniarcade.chase_evade import ChaseEvade
from pipeline.tasks.miniarcade.coconut_dodge import CoconutDodge
from pipeline.tasks.miniarcade.coinrun import Coinrun
from pipeline.tasks.miniarcade.cowboy import Cowboy
from pipeline.tasks.miniarcade.game import Game
from pipeline.tasks.miniarcade.highway import Highway
from pipeline.tasks.miniarcade.landing import Landing
from pipeline.tasks.miniarcade.point_maze import PointMaze
from pipeline.tasks.miniarcade.pong import Pong
from pipeline.tasks.miniarcade.reacher import Reacher
from pipeline.tasks.miniarcade.rocket_collect import RocketCollect
from pipeline.tasks.miniarcade.spaceship import Spaceship

GAMES: dict[str, Callable[..., Game]] = {
    "air-hockey": AirHockey,
    "bird-attack": BirdAttack,
    "cartpole": CartPole,
    "chase-evade": ChaseEvade,
    "coconut-dodge": CoconutDodge,
    "coinrun": Coinrun,
    "cowboy": Cowboy,
    "highway": Highway,
    "landing": Landing,
    "point-maze": PointMaze,
    "pong": Pong,
    "reacher": Reacher,
    "rocket-collect": RocketCollect,
    "spaceship": Spaceship,
}


class MiniArcade:
    """One game. Episodes never terminate.

    Args:
        env_id: a name in `GAMES`.
        env_kwargs: keyword arguments of the game.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such game.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        if env_id not in GAMES:
            raise ValueError(f"env_id {env_id!r} is not a game of MiniArcade.{near(env_id, list(GAMES))}")
        self.game = GAMES[env_id](**env_kwargs)
        self.obs_dim = self.game.obs_dim
        self.low, self.high = -np.ones(self.game.action_dim), np.ones(self.game.action_dim)
        self.state = np.zeros(0)  # (S,)
        self._render_size = render_size

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self.state = self.game.reset(np.random.default_rng(seed))

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Advance one step; return (reward, terminated, truncated, success)."""
        after = self.game.step(self.state[None], action[None])
        self.state = after[0]
        return float(self.game.reward(after)[0]), False, False, bool(self.game.success(after)[0])

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (obs_dim,) float32."""
        out[:] = self.game.observe(self.state[None])[0]

    def render(self) -> np.ndarray:
        """Draw the scene, (render_size, render_size, 3) uint8."""
        canvas = Canvas(self._render_size, "black")
        self.game.draw(canvas, self.state)
        return canvas.image()

    def close(self) -> None:
        """Nothing to release."""
