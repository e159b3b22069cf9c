"""What the page says, as HTML in which every text from outside is escaped."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from pipeline.page.session import Said

if TYPE_CHECKING:
    from pipeline.page.session import Session

UNSURE = 0.1  # of the predicted return: by more than this the Q members disagree where the model is out of its depth
_LATE = 0.85  # of the speed that was asked for
_GREEN, _AMBER, _RED, _BLUE = "#2b8a3e", "#b35c00", "#c92a2a", "#1c7ed6"


def understood(session: Session) -> str:
    """Say what the sentence is taken for."""
    found = session.understood
    near = ", ".join(f"{escape(name)} {value:.2f}" for name, value in found.near)
    if found.task is None:
        what = f"means nothing that this checkpoint knows{f'; nearest: {near}' if near else ''}"
    elif found.how == "own":
        what = f"its own words for <b>{escape(found.task)}</b>"
    elif found.how == "head":
        what = f"understood as <b>{escape(found.task)}</b> <span style='opacity:.65'>(probability: {near})</span>"
    else:
        what = f"read as <b>{escape(found.task)}</b> <span style='opacity:.65'>(cosine: {near})</span>"
    place = ""
    if found.task != session.spec.name:
        place = f"<br>The place, and the score, are those of <b>{escape(session.spec.name)}</b>."
    return _block(f"<i>{escape(session.sentence)}</i><br>{what}{place}")


def score(session: Session) -> str:
    """Show score, return and step."""
    played = session.recorder
    colour = _GREEN if played.score >= 0.995 else _BLUE
    state = "over" if session.over else f"step {len(played)} of {session.spec.episode_length}"
    return _block(
        f"<div style='display:flex;align-items:baseline;gap:.6em'><span style='font-size:1.7em;font-weight:600;"
        f"color:{colour}' data-eft='score'>{played.score:.2f}</span><span>score</span>"
        f"<span style='margin-left:auto;opacity:.75'>return {played.episode_return:.1f} · {state}</span></div>"
        f"<div style='height:.5em;border-radius:.25em;background:rgba(128,128,128,.25);overflow:hidden'>"
        f"<div style='height:100%;width:{100 * played.score:.1f}%;background:{colour}'></div></div>"
    )


def state(session: Session) -> str:
    """Say what goes on: a problem, a late clock, doubt of the model."""
    lines = []
    if session.problem:
        lines.append(_note(_RED, escape(session.problem)))
    expected = session.forecasts[-1] if session.forecasts else None
    if expected is not None and expected.spread > UNSURE:
        lines.append(
            _note(_RED, f"The Q members disagree by {100 * expected.spread:.0f} %: the model is out of what it knows.")
        )
    lines.append(_pace(session))
    return _block("".join(lines))


def sentences(said: list[Said]) -> str:
    """List the last sentences, the newest first."""
    rows = "".join(
        f"<tr><td style='padding-right:.8em;vertical-align:top'>{one.score:.2f}</td><td>{escape(one.text)}"
        f"<br><span style='opacity:.6'>in {escape(one.scene)}</span></td></tr>"
        for one in reversed(said)
    )
    return _block(f"<table style='border-collapse:collapse'>{rows}</table>")


def plain(text: str) -> str:
    """Show a text that may hold anything."""
    return _block(escape(text).replace("\n", "<br>"))


def _pace(session: Session) -> str:
    if session.paused:
        return "<span style='opacity:.75'>Paused.</span>"
    if session.over:
        return "<span style='opacity:.75'>The episode is over. Keep it, or begin a new one.</span>"
    lasts = f"step lasts {1000 * session.step_seconds:.0f} ms."
    who = {"plan": "Planning", "policy": "The policy", "hand": ""}[session.mode]
    if session.mode == "plan" and session.forecasts and session.forecasts[-1] and not session.forecasts[-1].planned:
        who = "Here the policy acts alone, as it scored better than plans: it"
    times = f"{who} takes {1000 * session.compute_seconds:.0f} ms, a {lasts}" if who else f"A {lasts}"
    if math.isinf(session.speed) or session.realtime >= _LATE * session.speed:
        return f"<span style='opacity:.75'>{times}</span>"
    slow = "Slower than real time" if session.realtime < _LATE else "Slower than asked for"
    return _note(_AMBER, f"{slow} ({session.realtime:.1f} ×). {times}")


def _note(colour: str, text: str) -> str:
    return f"<div style='color:{colour};font-weight:500'>{text}</div>"


def _block(content: str) -> str:
    return f"<div style='padding:0 .75em .6em;font-size:.875em;line-height:1.4;overflow-wrap:anywhere'>{content}</div>"
