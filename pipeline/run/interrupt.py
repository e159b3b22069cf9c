"""Ctrl-C and SIGTERM that wait for the end of the current step, so that a loop can save before it leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from pipeline.run.ranks import launched_processes

_ECHO_SECONDS = 5.0  # a launcher passes the signal on to processes that have had it from the terminal


class Interrupt:
    """Within this context the first Ctrl-C or SIGTERM only sets `requested`; a second one interrupts at once.

    A loop asks `requested` once per step, saves, and calls `leave`. If the signal came when the loop asked no more, the
    end of this context leaves.

    Args:
        stop_seconds: after a SIGTERM the process ends this many seconds later even if it could not save by then, with
            the last save whole; 0 = it takes the time it needs.
    """

    def __init__(self, stop_seconds: float = 0) -> None:
        self.requested: str | None = None
        self._stop_seconds = stop_seconds
        self._requested_at = 0.0
        self._deadline: threading.Timer | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        if self._deadline:
            self._deadline.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and kind is None:
            self.leave()

    def is_requested(self) -> bool:
        """Return whether a signal asks to leave."""
        return self.requested is not None

    def leave(self) -> None:
        """Raise what the signal would have raised.

        Raises:
            KeyboardInterrupt: always; its text is the signal's name, or `another process` where another got it.
        """
        raise KeyboardInterrupt(self.requested or "another process")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if launched_processes() > 1 and time.monotonic() - self._requested_at < _ECHO_SECONDS:
                return
            raise KeyboardInterrupt(self.requested)
        self.requested, self._requested_at = signal.Signals(number).name, time.monotonic()
        message = "saving before leaving; once more leaves at once"
        if number == signal.SIGTERM and self._stop_seconds:
            message = f"saving before leaving, in {self._stop_seconds:g} s at most; once more leaves at once"
            self._deadline = threading.Timer(self._stop_seconds, self._give_up)
            self._deadline.daemon = True
            self._deadline.start()
        print(f"{self.requested}: {message}", file=sys.stderr, flush=True)

    def _give_up(self) -> None:
        print(
            f"no save was possible within {self._stop_seconds:g} s (runtime.stop_seconds): leaving without one. The "
            "save before is kept; the same command goes on from there.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + signal.SIGTERM)
