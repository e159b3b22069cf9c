"""The loop behind the page, without a browser: what is told, played, kept and filmed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from pipeline.data.demos import read_episodes
from pipeline.importers import plain
from pipeline.page.forecast import came, forecast
from pipeline.page.record import film, keep
from pipeline.page.session import LONGEST_SENTENCE, Session, clean, place_of
from pipeline.page.understood import Understood, understand
from pipeline.play import told
from pipeline.tasks.registry import get
from pipeline.tasks.rendering import RenderingUnavailable
from tests.page.untrained import make_agent

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


@pytest.mark.parametrize("text", ["", "  \n\t ", "\x00\x1b"])
def test_an_empty_sentence_is_refused(session, text):
    session.ask(lambda: session.tell(text))
    session.obey()
    assert "the sentence is empty" in (session.problem or "")
    assert session.sentence == SWING.instructions[0]


def test_a_sentence_is_one_line_of_bounded_length():
    assert clean("lift\n\x00 it\x1b[31m") == "lift it [31m"
    assert len(clean("x" * 10_000)) == LONGEST_SENTENCE


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
        action = alike.act(obs, task=SWING.name)
        found = forecast(alike, obs, action, {"task": SWING.name}, True)
        assert found is not None
        return found.spread

    for head in alike.model.q_heads:
        head.blocks[-1].linear.weight.data.normal_()  # as made it is 0, so all would agree
    assert spread() > 0.01
    for head in alike.model.q_heads:
        head.load_state_dict(alike.model.q_heads[0].state_dict())
    alike.actor.refresh()
    assert spread() == pytest.approx(0, abs=1e-5)


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
