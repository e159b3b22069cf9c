"""The page in a real browser: a sentence is typed, and what comes of it is seen."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.browser import PATIENCE, NoBrowser, Viewer, chromium, serving
from pipeline.data.demos import read_episodes
from pipeline.demonstrate.scripted import Script
from pipeline.page.session import Session
from pipeline.tasks.physics import mujoco_of
from pipeline.tasks.registry import get, make
from tests.page.untrained import make_agent

pytest.importorskip("viser", reason="the page needs the extra: pip install 'eft[play]'")

from pipeline.page.page import Page

pytestmark = pytest.mark.slow  # a server and a browser run for real

ROOT = Path(__file__).parent.parent.parent
SMALL = 700, 420  # pixels: it is drawn in software
EVIL = "<img src=x onerror=\"document.title='broken in'\"> catch the ball"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    specs = get(["og-point-maze", "pendulum-swingup", "cup-catch", "pygame-pong"])
    folder = tmp_path_factory.mktemp("page") / "checkpoint"
    make_agent([replace(spec, episode_length=2000) for spec in specs]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as browser:
            yield browser
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page(checkpoint, browser):
    with serving(checkpoint, "--by", "policy", "--output", str(checkpoint.parent / "kept"), cwd=ROOT) as (address, _):
        yield address


def steps(viewer: Viewer) -> int:
    text = viewer.tab.evaluate("document.body.innerText")
    return int(text.split(" of 2000")[0].rpartition("step ")[2])


def shown(viewer: Viewer) -> np.ndarray:
    """The picture of the scene, in grey, without the panel."""
    import io

    from PIL import Image

    png = viewer.tab.locator("canvas").first.screenshot(timeout=300_000)
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float)


def test_a_sentence_is_typed_and_the_robot_seen_doing_something_else(page, browser):
    viewer = Viewer(browser, page, SMALL)
    viewer.see("its own words for og-point-maze")
    before = steps(viewer)
    viewer.see("score")
    maze = shown(viewer)
    assert maze.std() > 10  # something is drawn
    viewer.tell("swing that pole up")
    viewer.see("read as pendulum-swingup")
    assert viewer.score() <= 1
    viewer.tab.wait_for_timeout(2000)
    pole = shown(viewer)
    assert np.abs(maze - pole).mean() > 3  # it is elsewhere
    viewer.press("Pause")
    viewer.see("Paused.")
    stood = steps(viewer)
    viewer.tab.wait_for_timeout(500)
    assert steps(viewer) == stood
    viewer.press("Go on")
    viewer.miss(f"step {stood} of 2000")
    assert before >= 0
    assert viewer.errors == []
    viewer.close()


def test_a_window_is_asked_for_in_a_person_s_words_and_seen_to_open(server, browser, tmp_path, monkeypatch):
    """Meta-World's own script acts in the place of a trained model."""
    agent, script = make_agent(get(["mw-reach", "mw-window-open"])), Script("window-open-v3")
    monkeypatch.setattr(agent, "act", lambda obs, **_: script.act(obs, success=False).astype(np.float32))
    session = Session(agent, agent.tasks["mw-reach"], agent.tasks, "policy")
    page, ended = Page(server, session, "test", tmp_path), threading.Event()
    loop = threading.Thread(target=session.run, args=(page.show, ended.is_set, page.watched))
    loop.start()
    try:
        viewer = Viewer(browser, f"http://127.0.0.1:{server.get_port()}", SMALL)
        viewer.see("its own words for mw-reach")
        viewer.press("Pause")
        viewer.tell("could you open that window for me")
        viewer.see("read as mw-window-open")
        viewer.tab.wait_for_function(
            "() => document.querySelector('[data-eft=score]').innerText === '1.00'", timeout=1000 * PATIENCE
        )
        viewer.press("Pause")
        viewer.see("Paused.")
        model, data = mujoco_of(session.env)
        pane = model.body("windowb_b").id
        moved = np.asarray(page._scene._frames[pane].position) - start_of(session, pane)
        assert np.abs(moved).max() > 0.05  # m, in what the browser draws too
        np.testing.assert_allclose(page._scene._frames[pane].position, data.xpos[pane], atol=1e-4)
        assert viewer.errors == []
        viewer.close()
    finally:
        ended.set()
        loop.join()
        session.close()


def start_of(session: Session, body: int) -> np.ndarray:
    """Where a body was as the episode began."""
    env = make(session.spec, session.spec.obs_dim, session.spec.action_dim)
    env.reset(seed=session.recorder.seed)
    place = mujoco_of(env)[1].xpos[body].copy()
    env.close()
    return place


def test_what_a_viewer_types_is_text_to_all_others_too(page, browser):
    first, second = (Viewer(browser, page, SMALL) for _ in range(2))
    first.tell(EVIL)
    for viewer in (first, second):
        viewer.see(EVIL)
        assert viewer.tab.title() != "broken in"
        assert viewer.tab.locator("img[src=x]").count() == 0
    first.close()  # whoever leaves stops nothing
    now = steps(second)
    second.miss(f"step {now} of 2000")
    second.close()


def test_games_show_their_images(page, browser):
    viewer = Viewer(browser, page, SMALL)
    viewer.choose("Place", "pygame-pong")
    viewer.see("its own words for pygame-pong")
    viewer.tab.wait_for_timeout(2000)
    assert shown(viewer).std() > 10
    viewer.close()


def test_a_hand_drives_with_keys_and_its_episode_is_kept(page, browser, checkpoint):
    viewer = Viewer(browser, page, SMALL)
    viewer.choose("Place", "og-point-maze")
    viewer.see("its own words for og-point-maze")
    viewer.choose("Who acts", "my hand")
    viewer.see("Arrows move the point.")
    viewer.press("New episode")
    viewer.see("step 0 of 2000")
    viewer.tab.wait_for_timeout(500)
    assert steps(viewer) == 0  # time waits for the hand
    viewer.tab.mouse.click(300, 500)
    viewer.tab.keyboard.down("ArrowUp")
    viewer.tab.keyboard.press("Space")
    viewer.miss("step 0 of 2000")
    viewer.tab.wait_for_timeout(1000)
    viewer.tab.keyboard.up("ArrowUp")
    viewer.tab.wait_for_timeout(1000)
    assert viewer.field("Keys").input_value() == "0.00 0.00 0.00 0.00 1"
    pad = "{axes: [0, -1, 0, 0], buttons: [{pressed: true}]}"  # up is negative there
    viewer.tab.evaluate(f"navigator.getGamepads = () => [null, {pad}]")
    viewer.tab.wait_for_timeout(1000)
    assert viewer.field("Keys").input_value() == "0.00 1.00 0.00 0.00 0"
    viewer.tab.evaluate("navigator.getGamepads = () => []")
    viewer.press("Keep as a demonstration")
    viewer.see("episodes.parquet: 1 demonstration")
    (episode,) = read_episodes(checkpoint.parent / "kept/demos/og-point-maze/episodes.parquet", "the test")
    assert episode.method == "hand"
    assert episode.action[0, 1] > 0.9  # ahead, as the viewer looks
    viewer.press("Video of this episode")
    viewer.tab.wait_for_function(
        "() => /The video is there|That was not possible/.test(document.body.innerText)", timeout=300_000
    )
    viewer.choose("Who acts", "policy alone")
    assert viewer.errors == []
    viewer.close()


def test_a_browser_that_sends_what_no_page_would_stops_nothing(page, browser):
    import msgspec
    import viser
    from websockets.sync.client import connect

    protocol = f"viser-v{viser.__version__}"
    for message in (
        b"",
        b"\xff" * 50,
        msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": "x", "updates": {}}),
    ):
        with connect(page.replace("http", "ws"), subprotocols=[protocol]) as socket:
            socket.send(message)
    viewer = Viewer(browser, page, SMALL)
    viewer.see("score")
    viewer.close()


def test_ctrl_c_ends_it_and_leaves_nothing(checkpoint, browser):
    with serving(checkpoint, "--by", "policy", cwd=ROOT) as (address, process):
        viewer = Viewer(browser, address, SMALL)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(child.is_running() for child in children)
        viewer.close()
    port = address.rpartition(":")[2]
    with serving(checkpoint, "--by", "policy", "--port", port, cwd=ROOT) as (again, _):
        assert again == address  # the port is free again
        busy = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "play", str(checkpoint), "--port", port],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert busy.returncode == 2
        assert f"eft play: cannot listen at 127.0.0.1:{port}: Address already in use" in busy.stderr
        assert "--port" in busy.stderr
