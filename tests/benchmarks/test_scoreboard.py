"""The scoreboard: tasks are played once and kept, and only tasks that are the simulator's own are compared."""

from __future__ import annotations

import json

import pytest

from benchmarks import results, scoreboard
from pipeline.cli import main as cli
from pipeline.tasks.registry import get, load_catalogue
from tests.page.untrained import make_agent


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scoreboard, "PAGE", tmp_path / "scoreboard.md")
    make_agent(get(["pendulum-swingup", "pygame-pong"])).save_pretrained("checkpoint")
    return tmp_path


@pytest.mark.slow
def test_what_was_played_is_kept_and_becomes_a_page_and_a_card(home, monkeypatch, capsys):
    scoreboard.main(["play", "labels", "checkpoint", "--episodes", "2"])
    content = json.loads((home / "results/base.json").read_text())
    assert {"labels.dmcontrol", "labels.tasks", "labels.all"} == set(content["claims"])
    assert not content["claims"]["labels.tasks"]["holds"]  # two are no hundred and fifty
    part = content["parts"]["labels"]
    assert set(part["tasks"]) == {"pendulum-swingup", "pygame-pong"}
    monkeypatch.setattr(scoreboard, "played", None)  # would fail if anything were played again
    scoreboard.main(["play", "labels", "checkpoint", "--episodes", "2"])
    scoreboard.main(["page"])
    lines = (home / "scoreboard.md").read_text().splitlines()
    own = next(line for line in lines if line.startswith("| miniarcade (ours)"))
    compared = next(line for line in lines if line.startswith("| dmcontrol "))
    assert own.rstrip("| ").endswith(")")  # nothing of others after our own interval
    published = scoreboard.published()["bc_single"]["pendulum-swingup"]
    assert f" {published:.2f} |" in compared
    of_all = scoreboard.published()["newt_100M"]["dmcontrol"]
    assert f" {of_all:.2f} |" not in compared  # one task is not the domain

    (home / "params.yaml").write_text("seed: 1\n")
    scoreboard.main(["ship", "labels", "checkpoint", "params.yaml", "base"])
    assert (home / "base/params.yaml").read_text() == "seed: 1\n"
    assert "| pendulum-swingup | 0." in (home / "base/README.md").read_text()
    assert '"constraint": "policy"' in (home / "base/tasks.json").read_text()
    assert '"constraint": "tied"' in (home / "checkpoint/tasks.json").read_text()
    cli(["info", "base"])
    said = capsys.readouterr().out
    assert f"{part['tasks']['pygame-pong'][0]:.3f}" in said
    make_agent(get(["pendulum-swingup", "pygame-pong"]), latent_dim=32).save_pretrained("other")
    with pytest.raises(ValueError, match="play it first"):
        scoreboard.main(["ship", "labels", "other", "params.yaml", "base"])


def test_a_domain_is_compared_by_its_own_tasks_where_each_is_published():
    scores = {"dmcontrol": 0.5, "walker-walk": 0.9, "walker-run": 0.3}
    assert scoreboard.domain_score(scores, "dmcontrol", ["walker-walk", "walker-run"], False) == pytest.approx(0.6)
    assert scoreboard.domain_score(scores, "dmcontrol", ["walker-walk", "cheetah-run"], True) == 0.5
    assert scoreboard.domain_score(scores, "dmcontrol", ["walker-walk", "cheetah-run"], False) is None
    assert scoreboard.domain_score({}, "dmcontrol", ["walker-walk"], True) is None
    theirs, arm = scoreboard.published(), [name for name in load_catalogue() if name.startswith("mw-")]
    assert scoreboard.is_whole("metaworld", arm, theirs)
    assert not scoreboard.is_whole("metaworld", [name for name in arm if name != "mw-reach"], theirs)


def test_a_part_of_the_tasks_holds_no_claim():
    assert scoreboard.claimed({"mw-reach": [1.0]}, {"metaworld": ["mw-reach"]}, whole=False) == {}
    claims = scoreboard.claimed({"mw-reach": [1.0]}, {"metaworld": ["mw-reach"]}, whole=True)
    assert claims["metaworld"]["holds"]
    assert not claims["tasks"]["holds"]
