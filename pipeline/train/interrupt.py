"""Ctrl-C and SIGTERM that wait for the end of the current step, so that a loop can save before it leaves."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """Within this context the first Ctrl-C or SIGTERM only sets `requested`; a second one interrupts at once.

    A loop asks `requested` once per step, saves, and calls `leave`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave(self) -> None:
        """Raise what the signal would have raised.

        Raises:
            KeyboardInterrupt: always; its text is the signal's name.
        """
        raise KeyboardInterrupt(self.requested)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(self.requested)
        self.requested = signal.Signals(number).name
        print(f"{self.requested}: saving before leaving; once more leaves at once", flush=True)
