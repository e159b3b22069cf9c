"""The loop behind the page, without a browser: what is told, played, kept and filmed."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.demos import read_episodes
from pipeline.importers import plain
from pipeline.page.forecast import came, forecasting
from pipeline.page.hand import Stick
from pipeline.page.record import Recorder, film, keep, reserved
from pipeline.page.session import LONGEST_SENTENCE, Session, clean, place_of
from pipeline.page.understood import Understood, understand
from pipeline.play import told
from pipeline.tasks.registry import get
from pipeline.tasks.rendering import RenderingUnavailable
from tests.page.untrained import make_agent
from tests.pixels.test_agent_on_images import make_agent as make_agent_on_images

pytestmark = pytest.mark.slow  # simulators run for real

SWING, SPIN, CUP = (replace(spec, episode_length=6) for spec in get(["pendulum-swingup", "pendulum-spin", "cup-catch"]))


@pytest.fixture(scope="module")
def agent():
    return make_agent([SWING, SPIN, CUP])


@pytest.fixture
def session(agent):
    session = Session(agent, SWING, agent.tasks)
    yield session
    session.close()


def play(session: Session, steps: int) -> None:
    for _ in range(steps):
        session.step()


# --- playing ----------------------------------------------------------------------------------------------------------


def test_an_episode_ends_and_the_next_has_the_next_seed(session, monkeypatch):
    play(session, 6)
    assert session.over
    assert session.recorder.score == SWING.evaluate(session.recorder.episode_return, False)
    assert not session.ready()  # a moment of rest
    monkeypatch.setattr("pipeline.page.session._REST", 0.0)
    assert session.ready()
    assert (len(session.recorder), session.recorder.seed, session.over) == (0, 1, False)
    session.act_by("hand")
    play(session, 6)
    assert not session.ready()  # until it is kept, or given up


def test_an_episode_is_the_one_that_eft_act_plays(agent):
    from pipeline.play import play as play_episodes

    (other,) = play_episodes(agent, SWING, None, plan=True, seeds=[3])
    session = Session(agent, SWING, agent.tasks, seed=3)
    play(session, 6)
    assert session.recorder.episode_return == pytest.approx(other.episode_return, abs=1e-5)
    session.close()


def test_a_step_that_fails_pauses_and_says_why_and_a_new_episode_mends_it(session, monkeypatch):
    monkeypatch.setattr(session.env.simulator, "step", lambda action: 1 / 0)
    assert not session.advance()
    assert session.paused
    assert "ZeroDivisionError" in (session.problem or "")
    monkeypatch.undo()
    session.ask(session.new_episode)
    session.ask(lambda: setattr(session, "paused", False))
    session.obey()
    assert session.advance()
    assert session.problem is None


def test_nothing_moves_while_nobody_watches(session):
    rounds = iter(range(5))
    session.run(lambda _: None, stop=lambda: next(rounds, None) is None, watched=lambda: False)
    assert len(session.recorder) == 0


def test_steps_take_the_time_of_the_simulator(session):
    play(session, 1)
    assert session.step_seconds == pytest.approx(0.04)  # two steps of 20 ms
    session.speed = math.inf
    session._take_time(0.001)
    assert session.ready()
    session.speed = 0.5
    session._take_time(0.001)
    assert not session.ready()


# --- sentences --------------------------------------------------------------------------------------------------------


def test_a_sentence_changes_in_the_middle_of_an_episode(session):
    play(session, 3)
    before = session.env
    session.tell(SPIN.instructions[0])
    assert (session.understood.task, session.understood.how) == ("pendulum-spin", "own")
    assert (session.env is before, len(session.recorder)) == (True, 3)  # the same pole, where it was
    play(session, 1)
    assert session.agent.table.names == ("pendulum-swingup", "pendulum-spin", "cup-catch")  # no new row: it is known
    assert [said.text for said in session.said] == [SWING.instructions[0], SPIN.instructions[0]]


def test_a_sentence_leads_to_the_place_it_is_about_unless_told_to_stay(session):
    session.follow = False
    session.tell(CUP.instructions[0])
    assert session.spec.name == "pendulum-swingup"
    session.follow = True
    session.tell(CUP.instructions[0])
    assert (session.spec.name, session.env.task.name) == ("cup-catch", "cup-catch")
    play(session, 1)
    assert session.recorder.episode().obs.shape == (2, CUP.obs_dim)


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x1b", "\u200b\ufeff\u200d \u202e", "\ud800"])
def test_an_empty_sentence_is_refused(session, text):
    session.ask(lambda: session.tell(text))
    session.obey()
    assert "the sentence is empty" in (session.problem or "")
    assert session.sentence == SWING.instructions[0]


def test_who_asks_without_end_does_not_stop_the_page(session, monkeypatch):
    monkeypatch.setattr("pipeline.page.session._OBEYING", 0.0)
    done: list[int] = []
    for number in range(300):
        session.ask(lambda number=number: done.append(number))
    assert "200 requests wait already" in (session.problem or "")
    session.obey()
    assert done == []
    monkeypatch.setattr("pipeline.page.session._OBEYING", 60.0)
    session.obey()
    assert done == list(range(200))


def test_a_sentence_is_one_line_of_bounded_length():
    assert clean("lift\n\x00 it\x1b[31m") == "lift it [31m"
    assert len(clean("x" * 10_000)) == LONGEST_SENTENCE
    assert clean("open\u202e it\u2066 \U0001f469\u200d\U0001f527") == "open it \U0001f469\u200d\U0001f527"
    assert clean("öffne die Tür\u00a0bitte, 窓を開けて") == "öffne die Tür bitte, 窓を開けて"


def test_a_task_whose_simulator_is_missing_changes_nothing(session):
    session.tasks["other"] = replace(SWING, name="other", env_id="pendulum/none")
    before = session.env
    for name in ("other", "never heard of"):
        session.ask(lambda name=name: session.choose(name))
        session.obey()
        assert session.problem
        assert session.env is before
    assert session.advance()


def test_an_unknown_sentence_is_read_as_the_nearest_task(agent):
    found = understand(agent, "catch that ball in the cup", SWING)
    assert (found.task, found.how) == ("cup-catch", "near")
    assert found.near[0][0] == "cup-catch"
    assert found.near[0][1] >= found.near[1][1]


def test_a_sentence_for_this_place_is_read_as_a_task_of_its_body(agent):
    found = understand(agent, "catch that ball in the cup", SWING, here=True)
    assert found.task in ("pendulum-swingup", "pendulum-spin")


def test_a_task_of_one_s_own_is_told_in_its_own_place(agent, session):
    own = replace(SWING, name="own", instructions=("Catch the ball in the cup slowly.",))
    session.tasks["own"] = own
    session.choose("own")
    session.tell("catch the ball in the cup slowly")
    assert session.spec.name == "own"


def test_the_page_takes_a_sentence_for_what_the_agent_takes_it_for(agent, session, monkeypatch):
    """In the place at hand a sentence may be clear that is not clear among the tasks of all bodies."""

    def hear(text, *widths):
        task = "pendulum-spin" if text.startswith(SWING.embodiment) and widths == (SWING.obs_dim, 1) else None
        return SimpleNamespace(task=task, probability=0.8, runner_up=None, runner_up_probability=0.0)

    monkeypatch.setattr(type(agent), "understand", staticmethod(hear), raising=False)
    embeddings = copy.copy(agent.embeddings)
    object.__setattr__(embeddings, "head", object())
    monkeypatch.setattr(agent, "embeddings", embeddings)
    session.tell("Whirl about!")
    assert session.understood.task == "pendulum-spin"
    assert session._told == {"task": "pendulum-spin"}


def test_an_agent_that_understands_words_itself_is_asked(agent, session, monkeypatch):
    heard = []

    def hear(text, *widths):
        heard.append((text, *widths))
        return SimpleNamespace(task="pendulum-spin", probability=0.9, runner_up="cup-catch", runner_up_probability=0.1)

    monkeypatch.setattr(type(agent), "understand", staticmethod(hear), raising=False)
    embeddings = copy.copy(agent.embeddings)
    object.__setattr__(embeddings, "head", object())
    monkeypatch.setattr(agent, "embeddings", embeddings)
    session.tell("Whirl about!")
    assert session.understood == Understood("pendulum-spin", "head", (("pendulum-spin", 0.9), ("cup-catch", 0.1)))
    assert session._told == {"task": "pendulum-spin"}
    session.follow = False
    session.tell("Whirl about here!")
    assert heard == [("Whirl about!",), (f"{SWING.embodiment} Whirl about here!", SWING.obs_dim, SWING.action_dim)]
    play(session, 1)
    assert session.forecasts[-1] is not None


def test_what_shares_a_place():
    assert place_of(SWING) == place_of(SPIN) != place_of(CUP)
    desk, other = get(["rd-push-red", "rd-open-slide"])
    assert place_of(desk) == place_of(other)
    window, door = get(["mw-window-open", "mw-door-open"])
    assert place_of(window) != place_of(door)


# --- what the model expects -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plan", "policy"])
def test_the_model_says_what_it_expects(agent, mode):
    session = Session(agent, SWING, agent.tasks, mode)
    play(session, 4)
    steps, predicted, followed = session.expected()
    assert steps.tolist() == [0, 1, 2, 3]
    assert np.isfinite(predicted).all()
    assert predicted[-1] == followed[-1]
    assert all(one is not None and one.planned == (mode == "plan") for one in session.forecasts)
    session.close()


def test_members_that_agree_have_no_spread(agent):
    alike = make_agent([SWING])
    obs = np.ones(SWING.obs_dim, np.float32)

    def spread() -> float:
        with forecasting(alike) as found:
            alike.act(obs, task=SWING.name)
        return found[0].spread

    for head in alike.model.q_heads:
        head.blocks[-1].linear.weight.data.normal_()  # as made it is 0, so all would agree
    assert spread() > 0.01
    for head in alike.model.q_heads:
        head.load_state_dict(alike.model.q_heads[0].state_dict())
    alike.actor.refresh()
    assert spread() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("backbone", ["dynamics", "shared"])
def test_a_model_with_a_past_expects_something_and_knows_what_a_hand_has_done(backbone):
    history = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=16, backbone=backbone)
    agent = make_agent([SWING], history=history)
    session = Session(agent, SWING, agent.tasks)
    play(session, 2)
    session.act_by("hand")
    session.stick = Stick(x=-0.5)
    play(session, 1)
    session.act_by("policy")
    play(session, 1)
    assert [one is not None and np.isfinite(one.value) for one in session.forecasts] == [True, True, False, True]
    past: Any = agent.actor.past(None)
    assert int(past.length[0]) == 3
    np.testing.assert_allclose(past.action[:, 0], np.stack(session.recorder.actions[-3:]), atol=1e-6)
    np.testing.assert_allclose(past.obs[:, 0], np.stack(session.recorder.obs[-4:-1]), atol=1e-6)
    session.close()


def test_a_model_that_sees_expects_something(painter, encoder_folder):
    agent = make_agent_on_images(painter, encoder_folder)
    session = Session(agent, painter, agent.tasks)
    play(session, 3)
    assert all(one is not None and np.isfinite(one.value) for one in session.forecasts)
    assert len(session.expected()[0]) == 3
    session.close()


def test_what_is_expected_is_what_the_adapter_expects(tmp_path: Path):
    make_agent([SWING, SPIN]).save_pretrained(tmp_path)
    agent = Agent.from_pretrained(tmp_path)
    agent.create_adapter(SWING.name, ["q"], rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    agent.actor.refresh()

    def expected(agent: Agent, task: str) -> float:
        with forecasting(agent) as found:
            agent.act(np.ones(SWING.obs_dim, np.float32), task=task, plan=False)
        return found[0].value

    bare = Agent.from_pretrained(tmp_path)
    assert expected(agent, SWING.name) != pytest.approx(expected(bare, SWING.name), abs=1e-4)
    assert expected(agent, SPIN.name) == pytest.approx(expected(bare, SPIN.name), abs=1e-6)


def test_after_a_hand_a_plan_begins_anew(session):
    play(session, 2)
    assert not session.agent.actor.state_tensors()["is_first"].any()
    session.act_by("hand")
    play(session, 1)
    session.act_by("plan")
    assert session.agent.actor.state_tensors()["is_first"].all()


def test_what_came_is_the_rewards_and_then_the_latest_prediction():
    assert came([5.0, 6.0, 7.0], [1.0, 2.0, 9.0], 0.5, terminated=False).tolist() == [1 + 0.5 * 5.5, 2 + 0.5 * 7, 7]
    assert came([5.0, 6.0, 7.0], [1.0, 2.0, 9.0], 0.5, terminated=True).tolist() == [1 + 0.5 * 6.5, 2 + 0.5 * 9, 9]


def test_a_hand_expects_nothing_and_a_new_sentence_begins_anew(session):
    session.act_by("hand")
    play(session, 2)
    assert len(session.expected()[0]) == 0
    session.act_by("plan")
    play(session, 2)
    assert session.expected()[0].tolist() == [2, 3]
    session.tell(SPIN.instructions[0])
    play(session, 1)
    assert session.expected()[0].tolist() == [4]
    assert session.expected()[2][0] == session.expected()[1][0]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_kept_episodes_are_demonstrations(session, tmp_path: Path):
    for number, mode in enumerate(("plan", "policy", "hand"), 1):
        session.act_by(mode)
        play(session, 6)
        path, count = keep(tmp_path, session.recorder.episode())
        assert count == number
        session.new_episode()
    session.act_by("plan")
    play(session, 1)
    session.act_by("hand")
    play(session, 1)  # as far as it has come
    keep(tmp_path, session.recorder.episode())
    episodes = read_episodes(path, "the test")
    assert [episode.method for episode in episodes] == ["plan", "policy", "hand", "plan+hand"]
    assert [len(episode.action) for episode in episodes] == [6, 6, 6, 2]
    assert path == tmp_path / "pendulum-swingup/episodes.parquet"
    read = plain.read_demos(path, SWING)  # `eft import plain` takes them as well
    assert len(read.episodes) == 4


def test_an_episode_is_kept_once_and_never_without_steps(session, tmp_path: Path):
    with pytest.raises(ValueError, match="nothing was played yet"):
        session.recorder.episode()
    play(session, 2)
    keep(tmp_path, session.recorder.episode())
    with pytest.raises(ValueError, match="already"):
        keep(tmp_path, session.recorder.episode())


def test_pages_that_share_a_folder_lose_no_episode(tmp_path: Path):
    def add(seed: int) -> None:
        recorder = Recorder(SWING, seed, np.full(3, seed, np.float32))
        recorder.add(np.zeros(1), np.zeros(3), 0.0, False, False, "hand")
        keep(tmp_path, recorder.episode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    assert {one.seed for one in read_episodes(tmp_path / SWING.name / "episodes.parquet", "the test")} == set(range(16))


def test_no_video_replaces_another(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("a film")
    with reserved(tmp_path, "a", ".mp4") as second, reserved(tmp_path, "a", ".mp4") as third:
        assert (second.name, third.name) == ("a-2.mp4", "a-3.mp4")
        second.write_text("another")
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a-2.mp4"}  # what was not written leaves nothing


def test_an_episode_plays_again_as_it_was(session, tmp_path: Path):
    play(session, 6)
    played = session.recorder
    try:
        film(tmp_path / "x.mp4", SWING, played.seed, played.actions, 0.04, lambda: False)
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    with av.open(str(tmp_path / "x.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 7
        assert video.streams.video[0].average_rate == 25


def test_a_video_that_is_given_up_leaves_no_file(session, tmp_path: Path):
    play(session, 6)
    answers = iter([False, True])
    try:
        with pytest.raises(InterruptedError):
            film(tmp_path / "x.mp4", SWING, 0, session.recorder.actions, 0.04, lambda: next(answers))
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    assert list(tmp_path.iterdir()) == []


def test_told_is_the_task_or_a_text_that_begins_with_the_body(agent):
    assert told(agent, SWING, None) == {"task": "pendulum-swingup"}
    assert told(agent, SWING, "Rest.") == {
        "instruction": f"{SWING.embodiment} Rest.",
        "action_dim": 1,
        "literal": False,
    }
