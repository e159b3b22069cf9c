"""Drawing shapes into an image with pygame, without a window. Nothing is imported before the first image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from pipeline.tasks.rendering import RenderingUnavailable

_FINE = 2  # drawn this much larger, then scaled down: smooth edges


class Canvas:
    """A square whose lower left corner is (0, 0) and whose upper right corner is (1, 1).

    Args:
        size: pixels of a side.
        background: a colour name of pygame, or `#rrggbb`.

    Raises:
        RenderingUnavailable: pygame is not installed.
    """

    def __init__(self, size: int, background: str):
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        try:
            import pygame
        except ModuleNotFoundError as error:
            raise RenderingUnavailable(
                f"cannot draw: {error}. MiniArcade's images need pygame: pip install 'eft[miniarcade]'. "
                "Training and scores need no images."
            ) from error
        self._pygame, self._size, self._side = pygame, size, size * _FINE
        self._surface = pygame.Surface((self._side, self._side), depth=32)
        self.fill(background)

    def fill(self, colour: str) -> None:
        """Paint everything over."""
        self._surface.fill(colour)

    def circle(self, xy: Sequence[float] | np.ndarray, radius: float, colour: str) -> None:
        """Draw a disc."""
        self._pygame.draw.circle(self._surface, colour, self._pixel(xy), max(radius * self._side, 1))

    def box(self, xy: Sequence[float] | np.ndarray, half: Sequence[float], colour: str) -> None:
        """Draw an upright rectangle around xy, of half width and half height `half`."""
        (x, y), (w, h) = xy, half
        self.polygon([(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)], colour)

    def line(self, start: Sequence[float] | np.ndarray, end: Sequence[float] | np.ndarray, width: float, colour: str):
        """Draw a stroke with round ends."""
        thick = max(round(width * self._side), 1)
        self._pygame.draw.line(self._surface, colour, self._pixel(start), self._pixel(end), thick)
        for xy in (start, end):
            self.circle(xy, width / 2, colour)

    def polygon(self, corners: Sequence[Sequence[float] | np.ndarray], colour: str) -> None:
        """Draw a filled polygon."""
        self._pygame.draw.polygon(self._surface, colour, [self._pixel(xy) for xy in corners])

    def image(self) -> np.ndarray:
        """Return what was drawn, (size, size, 3) uint8."""
        small = self._pygame.transform.smoothscale(self._surface, (self._size, self._size))
        return np.frombuffer(self._pygame.image.tobytes(small, "RGB"), np.uint8).reshape(self._size, self._size, 3)

    def _pixel(self, xy: Sequence[float] | np.ndarray) -> tuple[float, float]:
        x, y = xy
        return float(x) * self._side, (1 - float(y)) * self._side


def turned(shape: Sequence[Sequence[float]], xy: np.ndarray, angle: float, scale: float) -> list[np.ndarray]:
    """Return the corners of `shape`, scaled, turned by `angle` anticlockwise, and moved to xy."""
    cos, sin = np.cos(angle), np.sin(angle)
    return [xy + scale * np.array([x * cos - y * sin, x * sin + y * cos]) for x, y in shape]
