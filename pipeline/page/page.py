"""The page: what is seen and asked in the browser, around a `Session`."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.extras import needs
from pipeline.page import words
from pipeline.page.hand import Hands, explain, read_stick, waits
from pipeline.page.record import Recorder, film, keep, reserved
from pipeline.page.scene import IMAGE_VIEW, View, open_scene, update_scene, view_of
from pipeline.page.session import MODES, Session, clean
from pipeline.tasks.rendering import RenderingUnavailable

with needs("play"):
    import viser
    import viser.uplot
    import websockets.asyncio.server
    from viser import _messages

PORT = 8080
_SCENE_SECONDS, _WORDS_SECONDS, _PLOT_SECONDS = 1 / 30, 0.2, 0.5  # between refreshes
_SPEEDS = {
    "1/4 of real time": 0.25, "1/2 of real time": 0.5, "real time": 1.0, "2 × real time": 2.0,
    "as fast as it goes": math.inf,
}  # fmt: skip
_NAMES = {"plan": "plan with the model", "policy": "policy alone", "hand": "my hand"}
_CHOOSE = "choose one …"
_MOST_EXAMPLES = 200
_SUCCESS = 0.995  # a score of 1 on the page
_OWN_HOSTS = ("127.0.0.1", "localhost", "::1")
_OWN_SITES = re.compile(r"https?://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")  # any port: it may be a tunnel's
_KEYS = Path(__file__).with_name("keys.js")


class Server(viser.ViserServer):
    """A server that only its own host and port lead to: it opens no tunnel to the outside, whoever asks for one."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """Refuse."""
        return None


def serve(host: str, port: int | None, label: str) -> Server:
    """Open the server of a page.

    Args:
        host: the address to listen at.
        port: None for the first free one from `PORT` on.
        label: title of its panel.

    Raises:
        OSError: the port is in use, or the address is none of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            advice = "Choose another with --port, or leave it out for the first free one" if port else "Change --host"
            raise OSError(f"cannot listen at {host}:{port or PORT}: {error.strerror}. {advice}.") from None
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a malformed request is the sender's trouble
    with _of_this_machine(host):
        return Server(host, PORT if port is None else port, label=label, verbose=False)


@contextlib.contextmanager
def _of_this_machine(host: str) -> Iterator[None]:
    """Let a server that begins here, at this machine's own address, take requests of pages of this machine alone.

    A browser lets any site that is open beside the page speak to it; it says which site that is. viser does not look.
    """
    own = websockets.asyncio.server.serve
    if host in _OWN_HOSTS:
        websockets.asyncio.server.serve = functools.partial(own, origins=[None, _OWN_SITES])  # pyright: ignore
    try:
        yield
    finally:
        websockets.asyncio.server.serve = own


class Page:
    """One page for all who look at it: they see the same, and each may ask.

    Args:
        server: from `serve`.
        session: what is played; `session.run(page.show, ...)` keeps the page up to date.
        name: of the checkpoint.
        output: folder for demonstrations and videos.
    """

    def __init__(self, server: Server, session: Session, name: str, output: Path) -> None:
        self.server, self.session, self._output = server, session, output
        self._scene: Any = None
        self._env: Any = None
        self._view = IMAGE_VIEW
        self._shown = {"scene": 0.0, "words": 0.0, "plot": 0.0}
        self._moment: tuple[Any, ...] = (None,)
        self._plotted: tuple[Any, ...] = (None,)
        self._chosen: tuple[Any, ...] | None = None
        self._filming, self._closed = threading.Lock(), threading.Event()
        self._keys: dict[int, viser.GuiTextHandle] = {}
        self._lock, self._hands = threading.Lock(), Hands()
        self._kept, self._wanted = list[str](), ""
        self._ended = 0  # number of the last episode that was seen to end
        server.gui.configure_theme(control_width="large", show_logo=False, show_share_button=False, dark_mode=False)
        server.gui.main_panel.dock_right()
        server.gui.main_panel.set_width(430)
        server.gui.set_panel_label(f"eft play · {name}"[:60])
        server.scene.configure_environment_map("studio", environment_intensity=0.55)
        self._build()
        self.show(session)
        server.on_client_connect(self._welcome)
        server.on_client_disconnect(self._part)

    def close(self) -> None:
        """Give up a video that is being drawn, and wait until it is."""
        self._closed.set()
        with self._filming:
            return

    def watched(self) -> bool:
        """Return whether anybody looks."""
        return bool(self.server.get_clients())

    # --- what is shown --------------------------------------------------------------------------------------------

    def show(self, session: Session) -> None:
        """Bring the page up to date; parts that cost more come less often, and what is as it was costs nothing."""
        moment = session.env, session.episode_number, len(session.recorder), session.over
        if session.env is not self._moment[0] or (moment != self._moment and self._due("scene", _SCENE_SECONDS)):
            self._moment = moment
            self._show_scene(session)
        if session.over and session.episode_number != self._ended:
            self._ended = session.episode_number
            if self._successes.value and session.recorder.score >= _SUCCESS:
                recorder = session.recorder  # what else is asked may lead elsewhere before it is kept
                session.ask(lambda: self._add_demonstration(recorder))
        if self._due("words", _WORDS_SECONDS):
            self._show_words(session)
        if self._due("plot", _PLOT_SECONDS) and moment != self._plotted:
            self._plotted = moment
            steps, predicted, followed = session.expected()
            self._plot.visible = bool(len(steps))
            if len(steps):
                self._plot.data = steps, predicted, followed

    def refresh(self, session: Session) -> None:
        """Bring all of the page up to date, now."""
        self._shown = dict.fromkeys(self._shown, 0.0)
        self.show(session)

    def _show_scene(self, session: Session) -> None:
        try:
            if session.env is not self._env:
                self._enter(session)
            elif self._scene is not None:
                self._scene = update_scene(self.server, self._scene, session.env)
        except RenderingUnavailable as error:
            session.problem = str(error)
        except Exception as error:  # a user's own simulator may draw anything: what cannot be shown is played unseen
            session.problem = f"{session.spec.name} cannot be shown: {type(error).__name__}: {error}"
            if (broken := self._scene) is not None:
                self._scene = None
                broken.remove()

    def _enter(self, session: Session) -> None:
        """Show another environment, from where it is seen best."""
        if self._scene is not None:
            self._scene.remove()
            self._scene = None
        self._env = session.env
        self._drives.content = words.plain(explain(session.spec))
        self._waits.visible = waits(session.spec)
        self._view = view_of(session.env)
        self.server.initial_camera.position = self._view.position
        self.server.initial_camera.look_at = self._view.look_at
        for client in self.server.get_clients().values():
            _look(client, self._view)
        self._scene = open_scene(self.server, session.env)

    def _show_words(self, session: Session) -> None:
        blocks = (
            (self._understood, words.understood(session)),
            (self._score, words.score(session)),
            (self._state, words.state(session)),
            (self._sentences, words.sentences(list(session.said))),
        )
        for block, content in blocks:
            if block.content != content:
                block.content = content
        # Only what has changed: a viewer's own choice, on its way here, must not be overwritten by the old one. One
        # that was refused changes back.
        if (chosen := (session.spec.name, session.mode, session.refusals)) != self._chosen:
            self._chosen = chosen
            self._task.value, self._who.value = session.spec.name, _NAMES[session.mode]
            self._hand.visible = session.mode == "hand"
            with self._lock:
                for field in self._keys.values():
                    field.visible = session.mode == "hand"

    def _due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._shown[what] < seconds:
            return False
        self._shown[what] = now
        return True

    # --- what can be asked ----------------------------------------------------------------------------------------

    def _build(self) -> None:
        gui, session = self.server.gui, self.session
        with gui.add_form(None) as form:
            self._text = gui.add_text("Tell it", session.sentence, hint="Press Enter; at any time.")
        form.on_submit(lambda _: self._tell(self._text.value))
        examples = [spec.instructions[0] for spec in session.tasks.values()][:_MOST_EXAMPLES]
        chosen = gui.add_dropdown("Examples", tuple(dict.fromkeys([_CHOOSE, *examples])))

        def take(event: Any) -> None:
            sentence, chosen.value = chosen.value, _CHOOSE  # so that the same may be taken again
            if sentence in examples:
                self._tell(sentence)

        chosen.on_update(self._by_viewer(take))
        self._understood, self._score, self._state = gui.add_html(""), gui.add_html(""), gui.add_html("")
        buttons = gui.add_button_group("Episode", ("Pause", "Go on", "New episode"))
        buttons.on_click(self._by_viewer(lambda _: self._press(buttons.value)))
        with gui.add_folder("How it is played"):
            self._build_choices(gui, session)
        self._build_hand(gui, session)
        with gui.add_folder("What the model expects"):
            self._plot = _plot(gui)
        with gui.add_folder("Keep it"):
            film_button = gui.add_button("Video of this episode", hint="An mp4, drawn again from the start.")
            film_button.on_click(lambda event: self._film(event.client))
            keep_button = gui.add_button(
                "Keep as a demonstration", hint="For eft adapt --demos; as far as it has come."
            )
            keep_button.on_click(lambda event: self._keep(event.client))
            self._successes = gui.add_checkbox(
                "Successes", False, hint="Keep every episode that ends with a score of 1, whoever acts."
            )
            self._files = gui.add_html("")
        with gui.add_folder("Said before"):
            self._sentences = gui.add_html("")

    def _build_choices(self, gui: viser.GuiApi, session: Session) -> None:
        self._task = gui.add_dropdown("Place", tuple(session.tasks), initial_value=session.spec.name)
        self._task.on_update(self._by_viewer(lambda _: self._choose(str(self._task.value))))
        self._who = gui.add_dropdown("Who acts", tuple(_NAMES.values()), initial_value=_NAMES[session.mode])
        self._who.on_update(self._by_viewer(lambda _: self._act_by(str(self._who.value))))
        speed = gui.add_dropdown("Speed", tuple(_SPEEDS), initial_value="real time")
        speed.on_update(self._by_viewer(lambda _: self._set("speed", _SPEEDS.get(str(speed.value), 1.0))))
        follow = gui.add_checkbox(
            "Go there", session.follow, hint="A sentence leads to the place of the task it means."
        )
        follow.on_update(self._by_viewer(lambda _: self._set("follow", bool(follow.value))))
        again = gui.add_checkbox("Again", session.again, hint="Begin the next episode when one is over.")
        again.on_update(self._by_viewer(lambda _: self._set("again", bool(again.value))))

    def _build_hand(self, gui: viser.GuiApi, session: Session) -> None:
        self._hand = gui.add_folder("Driven by hand", visible=False)
        with self._hand:
            self._drives = gui.add_html("")
            self._waits = gui.add_checkbox("Wait", session.waiting, hint="Time stands still while nothing is pushed.")
            self._waits.on_update(self._by_viewer(lambda _: self._set("waiting", bool(self._waits.value))))

    def _by_viewer(self, then: Callable[[Any], object]) -> Callable[[Any], None]:
        """Return a callback for what viewers change; what the page itself sets is no request."""

        def on_event(event: Any) -> None:
            if event.client is not None:
                then(event)

        return on_event

    def _set(self, name: str, value: Any) -> None:
        self.session.ask(lambda: setattr(self.session, name, value))

    def _tell(self, text: Any) -> None:
        sentence = clean(str(text))
        self._text.value = sentence
        self.session.ask(lambda: self.session.tell(sentence))

    def _choose(self, task: str) -> None:
        self._wanted = task

        def go() -> None:
            if task == self._wanted != self.session.spec.name:  # of choices that wait, the last
                self.session.choose(task)
                self._text.value = self.session.sentence

        self.session.ask(go)

    def _act_by(self, name: str) -> None:
        for mode in MODES:
            if _NAMES[mode] == name:
                self.session.ask(functools.partial(self.session.act_by, mode))

    def _press(self, button: str) -> None:
        def go() -> None:
            if button == "New episode":
                self.session.new_episode()
            self.session.paused = button == "Pause"

        self.session.ask(go)

    # --- keeping --------------------------------------------------------------------------------------------------

    def _add_demonstration(self, recorder: Recorder) -> Path:
        path, count = keep(self._output / "demos", recorder.episode())
        self._list(f"{path}: {count} demonstration{'s' if count > 1 else ''}", str(path))
        return path

    def _keep(self, client: viser.ClientHandle | None) -> None:
        def go() -> None:
            path = self._add_demonstration(self.session.recorder)
            if client is not None:
                client.send_file_download(f"{path.parent.name}-{path.name}", path.read_bytes())

        self.session.ask(lambda: _answer(client, "Kept as a demonstration", go))

    def _film(self, client: viser.ClientHandle | None) -> None:
        def snapshot() -> None:
            played, length = self.session.recorder, self.session.step_seconds
            arguments = played.spec, played.seed, list(played.actions), length
            threading.Thread(target=self._draw_film, args=(client, *arguments), daemon=True).start()

        self.session.ask(snapshot)

    def _draw_film(self, client: viser.ClientHandle | None, spec: Any, seed: int, actions: list, length: float) -> None:
        if not self._filming.acquire(blocking=False):
            return _tell(client, "One video at a time", "The one before is still being drawn.", "orange")
        try:
            if self._closed.is_set():
                return None
            name = f"{spec.name}-{seed}-{len(actions)}"

            def go() -> None:
                with reserved(self._output / "videos", name, ".mp4") as path:
                    film(path, spec, seed, actions, length, self._closed.is_set)
                self._list(str(path), str(path))
                if client is not None:
                    client.send_file_download(path.name, path.read_bytes())

            _answer(client, "The video is there", go)
        finally:
            self._filming.release()

    def _list(self, line: str, path: str) -> None:
        self._kept = [*(one for one in self._kept if not one.startswith(path)), line][-6:]
        self._files.content = words.plain("\n".join(self._kept))

    # --- viewers --------------------------------------------------------------------------------------------------

    def _welcome(self, client: viser.ClientHandle) -> None:
        """Look at the scene with a new viewer, and listen to the keys."""
        _look(client, self._view)
        field = client.gui.add_text("Keys", "", visible=self.session.mode == "hand")
        with self._lock:
            self._keys[client.client_id] = field
        field.on_update(lambda _: self._steer(client, str(field.value)))
        # viser hands scripts to its clients for plots; it has no call of its own for ours.
        script = _messages.RunJavascriptMessage(source=_KEYS.read_text(encoding="utf-8"))
        client.gui._websock_interface.queue_message(script)

    def _part(self, client: viser.ClientHandle) -> None:
        with self._lock:
            self._keys.pop(client.client_id, None)
        self.session.stick = self._hands.part(client.client_id)  # whoever held a key holds it no more

    def _steer(self, client: viser.ClientHandle, text: str) -> None:
        if (stick := read_stick(text)) is None:
            return
        ahead = np.asarray(client.camera.look_at) - np.asarray(client.camera.position)
        heading = math.atan2(-ahead[0], ahead[1])
        # At once, and not as a request: those wait their turn, and what was last asked has its answer still to be read.
        self.session.stick = self._hands.push(client.client_id, stick._replace(heading=heading))


def _plot(gui: viser.GuiApi) -> viser.GuiUplotHandle:
    nothing = np.zeros(1)
    return gui.add_uplot(
        (nothing, nothing, nothing),
        (
            viser.uplot.Series(label="step"),
            viser.uplot.Series(label="predicted return", stroke="#1c7ed6", width=2),
            viser.uplot.Series(label="what came", stroke="#e8590c", width=2),
        ),
        scales={"x": viser.uplot.Scale(time=False, auto=True), "y": viser.uplot.Scale(auto=True)},
        legend=viser.uplot.Legend(show=True),
        height=190,
    )


def _look(client: viser.ClientHandle, view: View) -> None:
    with client.atomic():
        client.camera.position, client.camera.look_at = view.position, view.look_at


def _answer(client: viser.ClientHandle | None, done: str, go: Callable[[], None]) -> None:
    """Do something, and tell the viewer who asked for it what came of it."""
    try:
        go()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return _tell(client, "That was not possible", str(error), "red")
    return _tell(client, done, "", "green")


def _tell(client: viser.ClientHandle | None, title: str, body: str, colour: Any) -> None:
    if client is not None:
        client.add_notification(title, body, color=colour, auto_close_seconds=None if colour == "red" else 6)
