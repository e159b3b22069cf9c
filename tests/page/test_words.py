"""What the page says: nothing from outside becomes HTML."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.page import words
from pipeline.page.forecast import Forecast
from pipeline.page.session import Said
from pipeline.page.understood import Understood

EVIL = "<img src=x onerror=alert(1)> & <b>"


def session(**more: Any) -> Any:
    found = Understood(EVIL, "near", ((EVIL, 0.5),))
    recorder = SimpleNamespace(score=0.5, episode_return=3.0, __len__=None)
    values: dict[str, Any] = {
        "sentence": EVIL, "understood": found, "spec": SimpleNamespace(name=EVIL + "x", episode_length=9),
        "recorder": recorder, "problem": None, "paused": False, "over": False, "mode": "plan", "forecasts": [],
        "compute_seconds": 0.01, "step_seconds": 0.02, "speed": 1.0, "realtime": 1.5,
    }  # fmt: skip
    return SimpleNamespace(**{**values, **more})


@pytest.mark.parametrize(
    "html",
    [
        words.understood(session()),
        words.understood(session(understood=Understood(None, "near"))),
        words.state(session(problem=EVIL)),
        words.sentences([Said(EVIL, Understood(EVIL, "own"), EVIL, 0.5)]),
        words.plain(EVIL),
    ],
)
def test_texts_are_escaped(html):
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &lt;b&gt;" in html


def test_members_that_disagree_are_marked():
    assert "disagree by 30 %" in words.state(session(forecasts=[Forecast(1.0, 0.3, True, 0.9)]))
    assert "disagree" not in words.state(session(forecasts=[Forecast(1.0, 0.05, True, 0.9)]))


def test_a_late_page_says_so():
    assert "Slower than real time (0.3 ×). Planning takes 10 ms" in words.state(session(realtime=0.3))
    assert "Slower than asked for (1.5 ×)" in words.state(session(speed=2.0))
    assert "Slower" not in words.state(session())
    assert "Slower" not in words.state(session(speed=float("inf"), realtime=0.3))
    assert "the policy acts alone" in words.state(session(forecasts=[Forecast(1.0, 0.0, False, 0.9)]))
