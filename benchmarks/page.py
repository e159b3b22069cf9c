"""Type a sentence into the page of `eft play` in a headless Chromium, see what becomes of it, and take pictures.

python -m benchmarks.page checkpoints/publish/release --sentence "Open the door."

Writes play.png, the page as the score reaches its highest, and play.webp, a short looping film of it. The robot waits
for the camera, so the film is in real time on any machine. Exits with 1 if the score did not reach --least.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.browser import PATIENCE, Viewer, chromium
from pipeline.page.page import Page, serve
from pipeline.page.session import Session

_FRAME_SECONDS = 0.1
_LINGER = 12  # frames of the end
_SETTLE = 0.4  # seconds in which the browser draws what it was sent


def main() -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--sentence", default="Open the door.")
    parser.add_argument("--by", choices=("plan", "policy"), default="plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=1.0, help="score that must be reached")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--size", type=int, nargs=2, default=(1100, 640), help="pixels of the window")
    options = parser.parse_args()
    from pipeline.agent import Agent

    agent = Agent.from_pretrained(options.checkpoint)
    with contextlib.redirect_stdout(io.StringIO()):
        server = serve("127.0.0.1", None, "eft play")
    session = Session(agent, next(iter(agent.tasks.values())), agent.tasks, options.by, options.seed)
    try:
        with chromium() as browser:
            page = Page(server, session, Path(options.checkpoint).name, Path("played"))
            score = watch(
                session, page, Viewer(browser, f"http://127.0.0.1:{server.get_port()}", options.size), options
            )
    finally:
        session.close()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
    return 0 if score >= options.least else 1


def watch(session: Session, page: Page, viewer: Viewer, options: argparse.Namespace) -> float:
    """Type the sentence, play the episode, and return its score."""
    viewer.tab.add_style_tag(content=".mantine-Notifications-root { display: none }")  # that it draws in software
    viewer.tell(options.sentence)
    end = time.monotonic() + PATIENCE
    while session.sentence != options.sentence and not session.problem and time.monotonic() < end:
        session.obey()
        time.sleep(0.05)
    if session.problem or session.sentence != options.sentence:
        raise RuntimeError(session.problem or "the sentence never arrived")
    session.new_episode()
    frames, best = list[bytes](), -1.0
    options.output.mkdir(parents=True, exist_ok=True)
    while not session.over and session.recorder.score < 0.995:
        session.step()
        every = max(1, round(_FRAME_SECONDS / session.step_seconds))
        if len(session.recorder) % every == 0 or session.over or session.recorder.score >= 0.995:
            frames.append(shoot(session, page, viewer))
            if session.recorder.score > best:
                best = session.recorder.score
                (options.output / "play.png").write_bytes(frames[-1])
    save(frames, options.output / "play.webp")
    print(
        f"{options.sentence!r} was read as {session.understood.task}: score {best:.2f} after {len(session.recorder)} "
        f"steps, {1000 * session.compute_seconds:.0f} ms each; pictures in {options.output}"
    )
    return best


def shoot(session: Session, page: Page, viewer: Viewer) -> bytes:
    """Return the page as PNG, once it shows this step."""
    page.refresh(session)
    viewer.see(f"step {len(session.recorder)} of" if not session.over else "over")
    viewer.tab.wait_for_timeout(1000 * _SETTLE)
    return viewer.tab.screenshot(timeout=1000 * PATIENCE)


def save(frames: list[bytes], path: Path) -> None:
    """Write a looping film."""
    import imageio.v3
    from PIL import Image

    images: list[Any] = [Image.fromarray(imageio.v3.imread(frame)[..., :3]) for frame in frames]
    images += [images[-1]] * _LINGER
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * _FRAME_SECONDS),
        loop=0,
        quality=60,
        method=4,
    )


if __name__ == "__main__":
    sys.exit(main())
