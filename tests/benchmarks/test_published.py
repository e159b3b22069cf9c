"""The benchmark of learning from nothing: tiny real runs, what is claimed of curves, and the published values."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import published, results
from benchmarks.published import SEEDS, STEPS, TASKS
from benchmarks.published_figure import draw
from pipeline.files import write_json


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def curve(score: float, steps: int = STEPS) -> dict[str, float]:
    return {"0": 0.0, str(steps): score}


def run(task: str, seed: int, score: float, steps: int = STEPS) -> dict:
    made = {"task": task, "seed": seed, "env_steps": steps, "curve": curve(score, steps)}
    return made | {"seconds": 1.0, "commit": "0", "machine": {}}


def runs(*made: dict) -> published.Runs:
    return {(one["task"], one["seed"]): one for one in made}


def test_published_values_are_three_seeds_of_every_task_at_the_compared_step():
    found = published.read_published()
    assert set(found) == set(TASKS)
    for seeds in found.values():
        assert len(seeds) == len(SEEDS)
        assert all(points.keys() >= {"0", str(STEPS)} for points in seeds.values())
        assert all(0 <= score <= 1 for points in seeds.values() for score in points.values())
    notes = json.loads(published.PUBLISHED.read_text(encoding="utf-8"))
    assert "github.com/nicklashansen/tdmpc2" in notes["source"]
    assert notes["licence"].startswith("MIT")


def test_a_curve_counts_when_all_seeds_got_to_the_end():
    values = {task: {seed: curve(score) for seed, score in zip("123", (0.8, 0.9, 1.0), strict=True)} for task in TASKS}
    done = [run(task, seed, 0.8) for task in TASKS[:3] for seed in SEEDS]
    made = published.claims(published.summed_up(runs(*done), values))
    assert made[TASKS[0]] == {"value": 0.8, "target": 0.8, "better": "above", "holds": True}  # 0.9 - 0.1
    assert made["curves_as_published"]["holds"]
    assert made[TASKS[3]]["value"] is None
    assert not made[TASKS[3]]["holds"]
    short = [*done[:-1], run(TASKS[2], SEEDS[-1], 1.0, STEPS // 2)]
    rows = published.summed_up(runs(*short), values)
    assert rows[2]["score"] is None
    assert rows[2]["seeds"]["3"] == {"env_steps": STEPS // 2, "score": 1.0}
    assert published.claims(rows)["curves_as_published"] == {"value": 2, "target": 3, "better": "above", "holds": False}
    assert published.claims(published.summed_up({}, values))["curves_as_published"]["value"] is None


def test_runs_that_are_in_the_file_are_not_made_again_unless_longer_ones_are_asked_for(folder, monkeypatch):
    made = []

    def learn(task, seed, size, env_steps, where):
        made.append((task, seed, env_steps))
        return run(task, seed, 0.5, env_steps)

    monkeypatch.setattr(published, "learn", learn)
    words = ["--tasks", "mw-reach", "--seeds", "1", "2"]
    published.main([*words, "--env-steps", "1000"])
    published.main([*words, "--env-steps", "1000"])
    assert made == [("mw-reach", 1, 1000), ("mw-reach", 2, 1000)]
    published.main(["--tasks", "mw-reach", "--seeds", "2"])
    assert made[2:] == [("mw-reach", 2, STEPS)]
    found = json.loads((folder / "published.json").read_text(encoding="utf-8"))
    assert [(one["seed"], one["env_steps"]) for one in found["runs"]] == [(1, 1000), (2, STEPS)]
    assert not found["claims"]["curves_as_published"]["holds"]
    # Another process has written meanwhile: what is longer stays.
    published.remember(runs(run("mw-reach", 2, 0.1, 500)), published.read_published(), published.shape(published.SIZE))
    found = json.loads((folder / "published.json").read_text(encoding="utf-8"))
    assert [(one["seed"], one["env_steps"]) for one in found["runs"]] == [(1, 1000), (2, STEPS)]
    found["runs"][1]["shape"] = "made by other settings"
    write_json(folder / "published.json", found)
    assert set(published.recall(published.shape(published.SIZE))) == {("mw-reach", 1)}


def test_the_figure_shows_every_task_and_what_was_learned():
    svg = draw(published.read_published(), [run("mw-reach", 1, 0.5), run("mw-reach", 2, 1.0, 1000)], STEPS)
    texts = set(ElementTree.fromstring(svg).itertext())
    assert {*TASKS, "published", "ours", "agent steps", "50k"} <= texts
    assert "ours" not in draw(published.read_published(), [], STEPS)


@pytest.mark.slow
def test_a_tiny_run_acts_at_random_then_by_plans_and_goes_on_where_it_stopped(folder, monkeypatch):
    asked = []
    plain = published.Actor.act

    def act(self, obs, rows, plan, explore=False, *rest):
        found = plain(self, obs, rows, plan, explore, *rest)
        asked.append((explore, bool(torch.as_tensor(plan).all()), float(found.abs().max())))
        return found

    monkeypatch.setattr(published.Actor, "act", act)
    place = folder / ".resume/published/tiny"
    short = published.learn("mw-reach", 1, published.DRY, 110, place)
    assert list(short["curve"]) == ["0", "100", "110"]
    judged = [planned for explored, planned, _ in asked if not explored]
    assert judged
    assert all(judged)
    played = [(planned, size) for explored, planned, size in asked if explored]
    assert [planned for planned, _ in played] == [False] * 100 + [True] * 10
    assert max(size for _, size in played[:100]) > 0.95  # an untrained policy's actions are near 0
    longer = published.learn("mw-reach", 1, published.DRY, 120, place)
    assert list(longer["curve"])[:2] == ["0", "100"]
    assert longer["env_steps"] == 120
    assert len([1 for explored, *_ in asked if explored]) == 120
