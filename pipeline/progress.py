"""Progress of long work: a bar with rate and ETA on a terminal, one line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """A counter that shows itself.

    On a terminal it is a tqdm bar. Where there is none (a log file, CI), it prints one line every `every_seconds`
    and one at the end, with count, rate, ETA and the latest values.

    Args:
        label: what is being done, e.g. `pretrain`.
        total: how many units there are.
        unit: the unit, e.g. `updates`, `env_steps`, `episodes`.
        done: units finished before (a resumed run); they do not count into the rate.
        every_seconds: between lines where there is no terminal.
        quiet: count and show nothing, as the second and further processes of a run do.
    """

    def __init__(
        self, label: str, total: int, unit: str, done: int = 0, every_seconds: float = 10.0, quiet: bool = False
    ):
        self.quiet = quiet
        self.label, self.total, self.unit, self.done, self.every_seconds = label, total, unit, done, every_seconds
        self.values: dict[str, Any] = {}
        self._first, self._started = done, time.monotonic()
        self._printed = self._started
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            self._bar = tqdm(total=total, initial=done, desc=label, unit=f" {unit}", dynamic_ncols=True)

    def update(self, count: int = 1, **values: Any) -> None:
        """Count `count` more units and show the latest `values` (numbers or short texts)."""
        self.done += count
        self.values.update(values)
        if self._bar is not None:
            if values:
                self._bar.set_postfix_str(self._describe_values(), refresh=False)
            self._bar.update(count)
        elif not self.quiet and time.monotonic() - self._printed >= self.every_seconds:
            self._print()

    def write(self, line: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.quiet:
            self._print()

    def _describe_values(self) -> str:
        return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.values.items())

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = max(self._printed - self._started, 1e-9)
        rate = (self.done - self._first) / seconds
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else "no rate yet"
        values = f" | {self._describe_values()}" if self.values else ""
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s, {seconds:.0f} s, {left}{values}",
            file=sys.stderr,
            flush=True,
        )
