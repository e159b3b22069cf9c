"""The benchmark of online learning's start: the running score, and what is claimed of it."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.dip import claims, measure, merge, reduced_dmc, running_score, ways
from pipeline import config
from pipeline.results import Curve
from pipeline.tasks import registry

ROUND = Curve([10, 20, 30, 40, 50, 60, 70, 80], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
RARE = Curve([20, 40, 60, 80], [0.5, 0.5, 0.5, 0.5])  # its episodes are longer


def test_the_running_score_weighs_tasks_alike_however_often_they_end():
    assert running_score([ROUND, RARE], 80) == [
        (20, 0.75), (30, 0.5), (40, 0.25), (50, 0.5), (60, 0.75), (70, 0.75), (80, 0.75)
    ]  # fmt: skip


def test_a_step_at_which_some_task_was_not_played_lately_has_no_score():
    assert [step for step, _ in running_score([ROUND, Curve([80], [0.5])], 80)] == [80]


def a_run(score: float) -> dict:
    return {"env_steps": 80, "eval/score": [[0, 40, 80], [0.5, score, score]], "online/a": list(ROUND),
            "online/b": list(RARE), "online/score": list(RARE), "online/episodes_sum": list(RARE)}  # fmt: skip


def test_the_lowest_running_score_is_held_against_that_of_a_policy_that_does_not_learn():
    one = {"seed": 1} | measure(a_run(0.8))
    assert (one["before"], one["lowest"], one["last"]) == (0.5, 0.25, 0.75)
    assert one["evaluated"] == pytest.approx(0.7)
    still = one | {"running": [(step, 0.5 if step < 40 else 1.0) for step, _ in one["running"]]}
    made = claims({"pretrained": [still], "evidence": [one], "published": [{"seed": 1} | measure(a_run(0.6))]})
    lowest = made["lowest_running_score_of_pretrained"]
    assert (lowest["value"], lowest["of_published"], lowest["of_tied"]) == (0.25, 0.25, None)
    assert lowest["of_evaluated_before"] == {"pretrained": 1.0, "evidence": 0.5, "published": 0.5, "tied": None}
    assert not lowest["holds"]
    assert made["end_minus_published_schedule"]["value"] == pytest.approx(0.1333, abs=1e-4)
    assert made["end_minus_published_schedule"]["holds"]


def test_what_was_not_run_does_not_hold():
    assert [figure["holds"] for figure in claims({}).values()] == [False, False]


def test_runs_of_before_stay_and_claims_are_made_over_the_seeds_that_all_ways_have():
    run = {"shape": "abc", "before": 0.5, "lowest": 0.5, "last": 0.5}
    runs = {
        way: [run | {"seed": seed, "running": [(20, score)], "evaluated": score} for seed, score in scores.items()]
        for way, scores in {"pretrained": {1: 0.5, 2: 0.5}, "evidence": {1: 0.4, 2: 0.1}}.items()
    }
    short = [
        run | {"seed": 2, "shape": "of other parameters"},
        {key: value for key, value in run.items() if key != "shape"} | {"seed": 3},
        run | {"seed": 1, "running": [(20, 0.2)], "evaluated": 0.2},
    ]
    merged = merge({"published": short, "evidence": [run | {"seed": 2}]}, runs, "abc")
    assert {way: [one["seed"] for one in ones] for way, ones in merged.items()} == {
        "pretrained": [1, 2], "evidence": [1, 2], "published": [1]
    }  # fmt: skip
    assert merged["evidence"][1]["evaluated"] == 0.1
    made = claims(merged | {"tied": [run | {"seed": 3, "running": [(20, 0.4)], "evaluated": 0.4}]})
    assert made["lowest_running_score_of_pretrained"]["of_tied"] is None
    assert made["lowest_running_score_of_pretrained"]["value"] == 0.8
    assert made["end_minus_published_schedule"]["value"] == 0.2


def test_what_is_compared_is_a_valid_section():
    settings = config.load(config.Finetune)
    for changed in ways(1000).values():
        assert dataclasses.replace(settings, **changed).constraint == changed["constraint"]


def test_the_reduced_base_of_dmc_is_valid_and_has_its_tasks():
    params = config.read_params()
    changed = reduced_dmc()
    tasks = config.parse(config.Tasks, params["tasks"] | changed["tasks"], "tasks")
    demos = config.parse(config.Demos, params["demos"] | changed["demos"], "demos")
    assert len(registry.get(tasks.train)) == 21
    assert demos.missing == "go_on"


def test_a_run_too_short_for_a_running_score_says_so():
    one = {"env_steps": 80, "eval/score": ([0], [0.5]), "online/a": ([80], [0.5]), "online/b": ([], [])}
    with pytest.raises(ValueError, match=r"no quarter of 80 .* raise finetune.env_steps"):
        measure(one)
