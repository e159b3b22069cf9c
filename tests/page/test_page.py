"""The page without a browser: what it does where something is missing, and who is let in."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.data.demos import read_episodes
from pipeline.page.session import Session
from pipeline.tasks.registry import get
from pipeline.tasks.rendering import RenderingUnavailable
from tests.page.untrained import make_agent

pytest.importorskip("viser", reason="the page needs the extra: pip install 'eft[play]'")

from pipeline.page.page import Page, serve

pytestmark = pytest.mark.slow  # a server and simulators run for real


@pytest.fixture
def session():
    agent = make_agent(get(["pygame-pong", "pendulum-swingup"]))
    session = Session(agent, agent.tasks["pygame-pong"], agent.tasks)
    yield session
    session.close()


def test_a_simulator_that_cannot_draw_is_played_unseen(server, session, monkeypatch, tmp_path: Path):
    def render():
        raise RenderingUnavailable("cannot draw: no driver")

    monkeypatch.setattr(session.env, "render", render)
    page = Page(server, session, "test", tmp_path)
    assert session.problem == "cannot draw: no driver"
    page.refresh(session)
    assert "cannot draw: no driver" in page._state.content
    assert session.advance()
    page.refresh(session)
    session.choose("pendulum-swingup")
    page.refresh(session)
    assert page._scene is not None


def test_every_success_is_kept_once_if_that_is_wanted(server, tmp_path: Path):
    (spec,) = get(["pendulum-swingup"])
    spec = replace(spec, episode_length=3, score="clip((return+1000)/1000,0,1)")  # which every episode reaches
    agent = make_agent([spec])
    session = Session(agent, spec, agent.tasks)
    page = Page(server, session, "test", tmp_path)
    for wanted, expected in ((False, 0), (True, 1), (True, 2)):
        page._successes.value = wanted
        while not session.over:
            session.step()
        for _ in range(3):
            page.refresh(session)
            session.obey()
        path = tmp_path / "demos/pendulum-swingup/episodes.parquet"
        assert (len(read_episodes(path, "the test")) if path.exists() else 0) == expected
        session.new_episode()
    session.close()


def test_a_success_is_kept_though_the_page_is_led_elsewhere(server, tmp_path: Path):
    specs = get(["pendulum-swingup", "pendulum-spin"])
    specs = [replace(spec, episode_length=3, score="clip((return+1000)/1000,0,1)") for spec in specs]
    agent = make_agent(specs)
    session = Session(agent, specs[0], agent.tasks)
    page = Page(server, session, "test", tmp_path)
    page._successes.value = True
    while not session.over:
        session.step()
    session.ask(lambda: session.choose("pendulum-spin"))
    page.refresh(session)
    for _ in range(2):  # each at least one request
        session.obey()
    assert session.spec.name == "pendulum-spin"
    assert len(read_episodes(tmp_path / "demos/pendulum-swingup/episodes.parquet", "the test")) == 1
    session.close()


def test_what_a_simulator_draws_amiss_stops_nothing(server, session, monkeypatch, tmp_path: Path):
    page = Page(server, session, "test", tmp_path)
    assert page._scene is not None
    monkeypatch.setattr(session.env, "render", lambda: "no image")
    assert session.advance()
    page.refresh(session)
    assert "pygame-pong cannot be shown" in page._state.content
    assert session.advance()
    page.refresh(session)
    session.choose("pendulum-swingup")
    page.refresh(session)
    assert page._scene is not None


def test_a_place_that_is_refused_is_not_the_one_that_is_shown(server, session, tmp_path: Path):
    session.tasks["elsewhere"] = replace(session.tasks["pendulum-swingup"], name="elsewhere", env_id="pendulum/none")
    page = Page(server, session, "test", tmp_path)
    for _ in range(2):  # the second time with the same reason
        page._task.value = "elsewhere"  # as the viewer has it
        page._choose("elsewhere")
        session.obey()
        page.refresh(session)
        assert page._task.value == "pygame-pong"
        assert "pendulum" in page._state.content


def test_of_quick_choices_of_a_place_the_last_counts(server, session, monkeypatch, tmp_path: Path):
    page, opened = Page(server, session, "test", tmp_path), []
    monkeypatch.setattr(session, "choose", opened.append)
    for task in ("pendulum-swingup", "pygame-pong", "pendulum-swingup"):
        page._choose(task)
    page._choose("cup-catch")
    session.obey()
    assert opened == ["cup-catch"]


def test_a_new_episode_that_does_not_begin_says_why(server, session, monkeypatch, tmp_path: Path):
    page = Page(server, session, "test", tmp_path)

    def reset(**_):
        raise RuntimeError("stuck")

    monkeypatch.setattr(session.env, "reset", reset)
    session.paused = True
    page._press("New episode")
    session.obey()
    assert session.problem == "stuck"
    assert session.paused


def test_nobody_opens_a_tunnel(server):
    assert server.request_share_url() is None


def test_it_listens_at_this_machine_alone(server):
    with socket.socket() as probe:
        probe.settimeout(5)
        assert probe.connect_ex(("127.0.0.1", server.get_port())) == 0
    with socket.socket() as other, pytest.raises(OSError):  # noqa: PT011  # refused, or there is no such address
        other.settimeout(5)
        other.connect(("127.0.0.2", server.get_port()))


def test_other_sites_in_the_same_browser_are_not_heard(server):
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Origin, Subprotocol

    protocols = [Subprotocol(f"viser-v{viser.__version__}")]
    address = f"ws://127.0.0.1:{server.get_port()}"
    for site in ("http://elsewhere.example", "http://127.0.0.1.elsewhere.example", "null"):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=Origin(site), subprotocols=protocols)
    for site in (f"http://127.0.0.1:{server.get_port()}", "http://localhost:9000"):  # the latter through a tunnel
        connect(address, origin=Origin(site), subprotocols=protocols).close()


def test_a_busy_port_is_named_and_a_free_one_is_found(server):
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{server.get_port()}: Address already in use"):
        serve("127.0.0.1", server.get_port(), "test")
    with contextlib.redirect_stdout(io.StringIO()):
        second = serve("127.0.0.1", None, "test")
    assert second.get_port() != server.get_port()
    with contextlib.redirect_stdout(io.StringIO()):
        second.stop()
    with pytest.raises(OSError, match="Change --host"):
        serve("192.0.2.1", None, "test")


def test_without_the_extra_it_says_what_to_install():
    code = "import sys; sys.modules['viser'] = None; from pipeline.cli import main; sys.exit(main(['play', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'eft[play]'" in done.stderr


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_is_a_number(port, capsys):
    with pytest.raises(SystemExit):
        main(["play", "x", "--port", port])
    assert "expected a number from 1 to 65535" in capsys.readouterr().err
