"""`eft play`: a page in which a person says what to do, and sees it done."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_encoder, add_folder, own_folder, seed

if TYPE_CHECKING:
    import numpy as np

    from pipeline.agent import Agent
    from pipeline.page.session import Session
    from pipeline.tasks.spec import TaskSpec

DETAILS = """\
The page shows the robot in its simulator, in real time. Type a sentence at any time; it says what it was
taken for, the score so far, and what the model expects against what comes. MuJoCo's bodies are drawn by
the browser, so nothing but the package is needed here; games and other simulators show their own images.

Drive it yourself with the arrow keys or a gamepad ("Who acts: my hand"), and keep episodes as
demonstrations: they go to OUTPUT/demos/TASK/episodes.parquet, for `eft adapt --demos OUTPUT/demos`.

examples:
  eft play checkpoints/publish/release
  eft play user/name --task mw-window-open           a checkpoint of the Hub
  eft play user/base --task my_tasks/my-task.yaml --by hand --output mine
  eft adapt user/base --task my_tasks/my-task.yaml --demos mine/demos

On another machine: ssh -L 8080:127.0.0.1:8080 MACHINE, and open http://127.0.0.1:8080 here. `--host 0.0.0.0`
lets everyone on the network look and ask; there is no password.
"""


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    play = add_command(commands, "play", open_page, "tell a checkpoint what to do, and watch it, in a browser", "")
    play.formatter_class, play.epilog = argparse.RawDescriptionHelpFormatter, DETAILS
    play.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or user/name on the Hugging Face Hub")
    play.add_argument("--revision", metavar="REV", help="commit, tag or branch on the Hub (default: the newest)")
    play.add_argument("--task", metavar="NAME|FILE", help="where to begin (default: the checkpoint's first task)")
    play.add_argument("--adapter", metavar="FOLDER", action="append", default=[], help="an adapter; may be repeated")
    play.add_argument("--by", choices=("plan", "policy", "hand"), default="plan", help="who acts at first")
    play.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1, this machine)")
    play.add_argument("--port", type=_port, metavar="N", help="default: the first free one from 8080 on")
    play.add_argument(
        "--output", type=Path, default=Path("played"), metavar="FOLDER", help="for what is kept (default: played)"
    )
    play.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    add_encoder(play)
    play.add_argument("--device", default="cpu", help="where it computes: cpu, cuda, cuda:1, ... (default: cpu)")
    play.add_argument("--seed", type=seed, default=0, help="seed of the first episode, then counted up (default: 0)")
    add_folder(play)


def open_page(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from pipeline.extras import needs

    with needs("play"):
        from pipeline.page.page import Page, serve

    agent, first, tasks = load(options)
    server = _quietly(lambda: serve(options.host, options.port, "eft play"))
    session = page = None
    try:
        session = _session(agent, first, tasks, options)
        page = Page(server, session, str(options.checkpoint), options.output)
        host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
        address = f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"
        with _ending() as ended:  # before the address is said: who reads it may stop the page at once
            print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
            if options.open:
                webbrowser.open_new_tab(address)
            session.run(page.show, lambda: bool(ended), page.watched)
    finally:
        if page is not None:
            page.close()
        if session is not None:
            session.close()
        _quietly(server.stop)


def load(options: argparse.Namespace) -> tuple[Agent, TaskSpec, dict[str, TaskSpec]]:
    """Return the agent, the task to begin in, and all that can be chosen: what it knows and what was named."""
    from pipeline.agent import Agent
    from pipeline.cli.options import find_task
    from pipeline.language.encoder import find_encoder, load_encoder
    from pipeline.language.head import bare

    named = find_task(options.task, own_folder(options)) if options.task and _is_file(options.task) else None
    agent = Agent.from_pretrained(options.checkpoint, options.revision, options.device)
    own = bare(agent.embeddings.encoder)
    try:  # now, since it takes seconds: the first sentence shall not wait for it
        agent.encoder = load_encoder(options.encoder) if options.encoder else find_encoder(own)
    except (OSError, ValueError) as error:
        if options.encoder:
            raise
        problem = f"sentences in other words than the tasks' own are not understood: {error}"
        print(f"play: {problem}", file=sys.stderr)
        agent.encoder = _Missing(own, agent.embeddings.dim, problem)
    for adapter in options.adapter:
        agent.add_adapter(adapter)
    tasks = dict(agent.tasks)
    if named is None and options.task:
        named = tasks.get(options.task) or find_task(options.task, own_folder(options))
    if named is not None:
        tasks[named.name] = named
    return agent, named or next(iter(tasks.values())), tasks


def _session(agent: Agent, first: TaskSpec, tasks: dict[str, TaskSpec], options: argparse.Namespace) -> Session:
    """Begin in the first task, or, unless that was named, in the next one whose simulator is on this machine."""
    from pipeline.page.session import Session
    from pipeline.tasks.domains import AssetsUnavailable, DomainUnavailable

    problem: Exception | None = None
    for spec in [first] if options.task else tasks.values():
        try:
            return Session(agent, spec, tasks, options.by, options.seed)
        except (DomainUnavailable, AssetsUnavailable) as error:
            print(f"play: {spec.name} cannot be played: {error}", file=sys.stderr)
            problem = problem or error
    assert problem is not None  # there is a task
    raise problem


class _Missing:
    """In the place of a text encoder that is not to be had: says so at once, where every sentence would look for it."""

    def __init__(self, encoder: str, dim: int, problem: str) -> None:
        self.id, self.dim, self._problem = encoder, dim, problem

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        raise OSError(self._problem)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


@contextlib.contextmanager
def _ending() -> Any:
    """Yield a list that is filled by the first Ctrl-C or SIGTERM; the second ends at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quietly(what: Any) -> Any:
    """Do something without the greeting that viser prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return what()


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 65535, not {text!r}")
    return int(text)
