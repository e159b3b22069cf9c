"""Atari 2600 games as a `Simulator`: the console's memory is observed, the joystick moves continuously."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.env import AtariEnv

from pipeline.config import near

gymnasium.register_envs(ale_py)  # which name of Gymnasium's stands for which game
_PREFIX, _SUFFIX = "ALE/", "-v5"
_GAMES = {
    name: spec.kwargs["game"]
    for name, spec in gymnasium.registry.items()
    if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
}
_FRAMES = 4  # of one agent step, as in the usual versions of the games
_MAX_IDLE = 30  # frames before the episode begins; the one source of randomness
_THRESHOLD = 0.5  # of the joystick and the button


class Atari:
    """One game.

    Observation: the 128 bytes of memory, each divided by 255.
    Action: distance of the joystick from its middle in [0, 1], its angle in [-pi, pi] (0 is right, pi / 2 up), and
    the button, pressed above 0.5. The joystick counts as moved along an axis beyond 0.5.
    Reward: points of the game over four frames. The episode terminates with the game.
    An episode begins after 0 to 30 idle frames, drawn from its seed; nothing else is random (no sticky actions).

    Args:
        env_id: Gymnasium's name, e.g. `ALE/Pong-v5`.
        env_kwargs: none are taken.
        render_size: pixels of an image's side, 0 if none will be drawn.

    Raises:
        ValueError: no such game.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], render_size: int = 0) -> None:
        if env_id not in _GAMES:
            raise ValueError(
                f"env_id {env_id!r} is not an Atari game; it looks like `ALE/Pong-v5`.{near(env_id, list(_GAMES))}"
            )
        if env_kwargs:
            raise TypeError(f"Atari games take no options, not {', '.join(env_kwargs)}")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # before the first console: it greets
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(str(roms.get_rom_path(_GAMES[env_id])))
        self._ale.reset_game()
        # A reset leaves traces of the game before it; a saved state does not, and loading the game anew is slow.
        self._first = self._ale.cloneSystemState()
        self._memory = np.zeros(self._ale.getRAMSize(), np.uint8)
        self._render_size = render_size
        self.obs_dim = self._memory.size
        self.low, self.high = np.array([0.0, -np.pi, 0.0]), np.array([1.0, np.pi, 1.0])

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` stands for."""
        self._ale.restoreSystemState(self._first)
        for _ in range(np.random.default_rng(seed).integers(_MAX_IDLE + 1)):
            self._ale.act(ale_py.Action.NOOP)

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """Play four frames; return (reward, terminated, truncated, success). A game has no success."""
        radius, angle, button = action
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        move = AtariEnv.map_action_idx(
            int(x > _THRESHOLD) - int(x < -_THRESHOLD), int(y > _THRESHOLD) - int(y < -_THRESHOLD), button > _THRESHOLD
        )
        reward = sum(self._ale.act(move, float(radius)) for _ in range(_FRAMES))
        return float(reward), self._ale.game_over(with_truncation=False), False, False

    @property
    def lives(self) -> int:
        """Lives left; 0 in games that have none."""
        return self._ale.lives()

    def save(self) -> ale_py.ALEState:
        """Return where the game stands, for `restore`."""
        return self._ale.cloneSystemState()

    def restore(self, state: ale_py.ALEState) -> None:
        """Go back to where `save` was called: the same actions then lead to the same again."""
        self._ale.restoreSystemState(state)

    def observe(self, out: np.ndarray) -> None:
        """Write the observation into `out`, (128,) float32."""
        self._ale.getRAM(self._memory)
        np.divide(self._memory, 255, out=out)

    def render(self) -> np.ndarray:
        """Draw the screen, (render_size, render_size, 3) uint8; it needs no display and no driver."""
        screen, size = self._ale.getScreenRGB(), self._render_size
        rows, columns = (np.arange(size) * side // size for side in screen.shape[:2])
        return screen[rows[:, None], columns]

    def close(self) -> None:
        """Release the console."""
        del self._ale
