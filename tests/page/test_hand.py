"""Driving by hand: what keys and sticks do to each body, and that a browser may send anything."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.page.hand import Hands, Stick, explain, read_stick, steer, waits
from pipeline.tasks.registry import get, load_catalogue


@pytest.mark.parametrize("spec", load_catalogue().values(), ids=lambda spec: spec.name)
def test_every_body_can_be_driven(spec):
    for stick in (Stick(), Stick(1, 1, 1, 1, True, 0.3), Stick(-1, -1, -1, -1)):
        action = steer(spec, stick)
        assert action.shape == (spec.action_dim,)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
    assert explain(spec)


def test_arrows_go_where_the_viewer_looks():
    (spec,) = get(["mw-reach"])
    ahead, aside = Stick(y=1), Stick(x=1)
    np.testing.assert_allclose(steer(spec, ahead)[:2], [0, 1], atol=1e-6)
    turned = math.pi / 2  # the viewer looks along -x
    np.testing.assert_allclose(steer(spec, ahead._replace(heading=turned))[:2], [-1, 0], atol=1e-6)
    np.testing.assert_allclose(steer(spec, aside._replace(heading=turned))[:2], [0, 1], atol=1e-6)


def test_the_gripper_closes_and_opens():
    arm, desk = get(["mw-reach", "rd-push-red"])
    assert [steer(arm, Stick(grip=grip))[3] for grip in (False, True)] == [-1, 1]
    assert [steer(desk, Stick(grip=grip))[4] for grip in (False, True)] == [1, -1]


def test_a_console_s_joystick():
    (pong,) = get(["atari-pong"])
    np.testing.assert_allclose(steer(pong, Stick(y=1, grip=True)), [1, 0.5, 1], atol=1e-6)
    assert steer(pong, Stick())[0] == -1  # in the middle


def test_time_waits_for_arms_alone():
    arm, point, walker = get(["mw-reach", "og-point-maze", "walker-walk"])
    assert [waits(spec) for spec in (arm, point, walker)] == [True, True, False]


@pytest.mark.parametrize(
    "text", ["", "1 2 3", "a b c d e", "nan 0 0 0 0", "inf 0 0 0 0", "<b>", "1 " * 50, "0 0 0 0 0 0", "1e999 0 0 0 0"]
)
def test_what_is_no_stick_is_ignored(text):
    assert read_stick(text) is None


def test_a_stick_is_cut_to_its_range_and_rests_in_the_middle():
    assert read_stick("9 -9 0.1 -0.5 1") == Stick(1.0, -1.0, 0.0, -0.5, True)
    assert not Stick(grip=True).moved
    assert Stick(turn=0.2).moved


def test_who_comes_or_leaves_takes_the_body_out_of_nobody_s_hands():
    hands = Hands()
    up = Stick(y=1.0, grip=True)
    assert hands.push(1, up) == up
    assert hands.push(2, Stick()) == up  # a page that has just opened: nothing is pushed there
    assert hands.push(2, Stick(grip=True)) == up._replace(grip=False)  # its gripper key opens what the first has closed
    assert hands.part(2) == up._replace(grip=False)
    assert hands.push(3, Stick(x=-1.0)) == Stick(x=-1.0)  # whoever begins to push drives
    assert hands.push(1, Stick(grip=True)) == Stick(x=-1.0)
    assert hands.part(3) == Stick()
    left = Stick(x=-1.0, grip=True)
    assert hands.push(1, left) == left._replace(grip=False)
    hands.push(4, Stick(x=1.0))
    assert hands.push(1, up) == Stick(x=1.0)  # a key that is held longer takes it back from nobody
    hands.push(4, Stick())
    assert hands.push(1, left) == left._replace(grip=False)  # until the other lets go
