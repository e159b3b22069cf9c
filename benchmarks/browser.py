"""A headless Chromium that looks at the page of `eft play`: for tests and for pictures."""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Without a GPU it draws in software; without --no-sandbox it does not start as root.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
READY = re.compile(r"the page is at (http://\S+)")
PATIENCE = 300  # seconds, on a machine that has much else to do


class NoBrowser(RuntimeError):
    """There is no Chromium, or no Playwright; says what to install."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a running browser.

    Raises:
        NoBrowser: there is none on this machine.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NoBrowser("Playwright is not installed: pip install playwright") from None
    with sync_playwright() as playwright:
        path = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
        if path is None and not Path(playwright.chromium.executable_path).exists():
            raise NoBrowser("no Chromium here: `apt-get install chromium`, or `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def serving(checkpoint: str | Path, *options: str, cwd: Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run `eft play`; yield the page's address and the process, which is ended by Ctrl-C."""
    command = [sys.executable, "-m", "pipeline.cli", "play", str(checkpoint), *options]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _address(process), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _address(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    said, end = "", time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not select.select([process.stdout], [], [], 1.0)[0]:
            continue
        line = process.stdout.readline()
        said += line
        if found := READY.search(line):
            return found[1]
        if not line and process.poll() is not None:
            break
    raise RuntimeError(f"the page did not open:\n{said}")


class Viewer:
    """One tab on the page.

    Args:
        browser: from `chromium`.
        address: of the page.
        size: pixels of the window.
    """

    def __init__(self, browser: Any, address: str, size: Sequence[int] = (1280, 800)) -> None:
        self.errors: list[str] = []
        self.tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.set_default_timeout(1000 * PATIENCE)
        self.tab.goto(address)
        self.tab.wait_for_selector("text=Tell it")
        with contextlib.suppress(Exception):  # that it draws in software
            self.tab.locator(".mantine-Notification-closeButton").first.click(timeout=1000)

    def field(self, label: str) -> Any:
        """Return the input beside a label."""
        return self.tab.locator("label", has_text=label).first.locator("xpath=ancestor::div[2]").locator("input").first

    def tell(self, sentence: str) -> None:
        """Type a sentence, no faster than a person: of what is done within 50 ms viser's page sends only the last."""
        self.tab.wait_for_timeout(200)
        self.field("Tell it").fill(sentence)
        self.tab.wait_for_timeout(200)
        self.field("Tell it").press("Enter")

    def choose(self, label: str, option: str) -> None:
        """Take an option of a list."""
        self.field(label).click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def press(self, button: str) -> None:
        """Press a button."""
        self.tab.get_by_role("button", name=button).click()

    def see(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until a text is on the page."""
        self.tab.wait_for_function(
            "text => document.body.innerText.includes(text)", arg=text, timeout=1000 * seconds, polling=200
        )

    def miss(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until a text is no longer on the page."""
        self.tab.wait_for_function(
            "text => !document.body.innerText.includes(text)", arg=text, timeout=1000 * seconds, polling=200
        )

    def score(self) -> float:
        """Return the score that is shown."""
        return float(self.tab.locator("[data-eft=score]").inner_text())

    def close(self) -> None:
        """Leave."""
        self.tab.close()
