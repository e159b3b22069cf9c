"""MiniArcade for the planner: actions played from a copy of the state, with a hint where points are far apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.tasks.miniarcade import air_hockey, bird_attack, landing, pong, rocket_collect
from pipeline.tasks.miniarcade.adapter import MiniArcade
from pipeline.tasks.miniarcade.cartpole import CartPole
from pipeline.tasks.miniarcade.game import Game


class GameSimulator:
    """Rolls out action sequences from wherever the episode stands.

    Args:
        simulator: the episode's own game.
    """

    def __init__(self, simulator: MiniArcade):
        self._simulator, self.action_dim = simulator, simulator.game.action_dim
        self._hint = HINTS.get(type(simulator.game).__name__)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Return the rewards (P, T), hints added, of actions (P, T, a) in [-1, 1]."""
        game = self._simulator.game
        state = np.repeat(self._simulator.state[None], len(actions), axis=0)
        rewards = np.empty(actions.shape[:2])
        for step in range(actions.shape[1]):
            state = game.step(state, actions[:, step])
            rewards[:, step] = game.reward(state)
            if self._hint:
                rewards[:, step] += self._hint(game, state)
        return rewards


def near_the_ball(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the paddle to where an approaching ball is."""
    coming = state[:, pong.VX] > 0
    return np.where(coming, -0.05 * np.abs(state[:, pong.MINE] - state[:, pong.Y]), 0)


def behind_the_puck(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the puck up, and the mallet to just below it while it is in reach."""
    puck, mine = state[:, air_hockey.PLACE], state[:, air_hockey.MINE]
    distance = np.linalg.norm(puck - [0, 0.08] - mine, axis=1)
    return 0.1 * puck[:, 1] - np.where(puck[:, 1] < 0.55, 0.1 * distance, 0.1 * np.abs(mine[:, 0] - 0.5))


def near_the_star(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the rocket to the next star; having taken one outweighs that the next is further away."""
    assert isinstance(game, rocket_collect.RocketCollect)
    taken = state[:, rocket_collect.TAKEN]
    return 0.5 * taken - 0.3 * np.linalg.norm(game.star(taken) - state[:, :2], axis=1)


def near_the_target(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the tip to the target, and let it come to rest there."""
    return -game.distance(state) - 5 * np.square(state[:, 2:4]).sum(axis=1)  # type: ignore[attr-defined]


def toward_standing(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the pole up and the cart to the middle: the reward of the dense variant."""
    return CartPole().reward(state)


def slow_and_above_the_pad(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the rocket over the pad, and slow it down on the way."""
    height = state[:, landing.Y] - landing.FLOOR
    too_fast = np.maximum(-state[:, landing.VY] - 0.008 - 0.03 * height, 0)
    aside = np.abs(state[:, landing.X] - state[:, landing.PAD_X])
    drift = np.abs(state[:, landing.VX])
    return -20 * too_fast - 0.5 * aside - 5 * drift - 0.3 * np.abs(state[:, landing.TILT]) - 0.3 * height


def under_the_lowest_bird(game: Game, state: np.ndarray) -> np.ndarray:
    """Draw the thrower below the bird that comes next."""
    assert isinstance(game, bird_attack.BirdAttack)
    height = game._height(state[:, bird_attack.TIME])
    order = np.where((state[:, bird_attack.ALIVE] > 0) & (height <= 1), height, 2)
    lowest = order.argmin(axis=1)
    rows = np.arange(len(state))
    aside = np.abs(state[:, bird_attack.PLACE][rows, lowest] - state[:, bird_attack.X])
    return np.where(order[rows, lowest] <= 1, -0.05 * aside, 0)


HINTS: dict[str, Callable[[Game, np.ndarray], np.ndarray]] = {
    "Pong": near_the_ball,
    "AirHockey": behind_the_puck,
    "RocketCollect": near_the_star,
    "Reacher": near_the_target,
    "CartPole": toward_standing,
    "Landing": slow_and_above_the_pad,
    "BirdAttack": under_the_lowest_bird,
}
