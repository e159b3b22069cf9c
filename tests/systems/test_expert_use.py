"""Which tasks use which experts: counts add up, a collapse is said once, and again only when it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.run.metrics import MetricsLog
from pipeline.systems.scalezero.expert_use import Experts, RouterWatch, count_use, overall, tables


def test_counts_are_parts_of_all_choices():
    task = torch.tensor([1, 0, 1])
    chosen = torch.tensor([[0, 2], [1, 0], [0, 1], [2, 1], [1, 0], [0, 2]])  # two calls of three slices
    (found,) = count_use({"dynamics": chosen}, task, 3, 3).values()
    assert (found * 12).tolist() == [[2, 2, 0], [3, 2, 3], [0, 0, 0]]


def test_tables_have_the_tasks_that_had_rows_and_give_the_overall_share_back():
    counts = np.array([[0.1, 0.3], [0.0, 0.0], [0.6, 0.0]])
    found = tables({"experts/q.0": counts}, ["a", "b", "c"])
    assert found == {"expert_use/q.0": {"a": [0.1, 0.3], "c": [0.6, 0.0]}}
    shares = overall({"step": 10, "train/loss": 1.0, **found})
    assert list(shares) == ["q.0"]
    assert shares["q.0"].tolist() == pytest.approx([0.7, 0.3])


def see(watch: RouterWatch, *share: float) -> list[str]:
    return watch.see({"dynamics": np.array(share)})


def test_a_collapse_is_said_once_and_again_only_when_it_changes():
    watch = RouterWatch()
    assert see(watch, 0.5, 0.4, 0.1) == []
    (line,) = see(watch, 0.02, 0.95, 0.03)
    assert "the router of dynamics has collapsed: expert 1 takes 95% of the rows of all tasks" in line
    assert see(watch, 0.01, 0.97, 0.02) == []
    (line,) = see(watch, 0.94, 0.03, 0.03)
    assert "expert 0 takes 94%" in line
    (line,) = see(watch, 0.4, 0.35, 0.25)
    assert "spreads its rows again: 25% to 40% per expert" in line
    assert see(watch, 0.4, 0.3, 0.3) == []


def test_an_expert_that_is_dead_for_long_is_said_once():
    watch = RouterWatch()
    said = [see(watch, 0.5, 0.5, 0.0) for _ in range(8)]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert "no row has gone to expert 2 for 5 log lines" in said[4][0]
    assert len(see(watch, 0.5, 0.4, 0.1)) == 1
    assert RouterWatch().see({"q.0": np.array([1.0])}) == []  # a single expert takes everything


SETTINGS = config.Experts(("dynamics",), 3, 1, 8, True, "latent", 1.0, 0.1)
DEAD = {"experts/dynamics": np.array([[0.5, 0.5, 0.0]])}


def test_averages_become_tables_shares_and_lines():
    extension = Experts(SETTINGS)
    found = [extension.describe(DEAD | {"other/table": np.ones(4)}, ["a"]) for _ in range(6)]
    assert found[0].tables == {"expert_use/dynamics": {"a": [0.5, 0.5, 0.0]}}
    assert found[0].metrics == {"experts/dynamics_largest_share": 0.5, "experts/dynamics_smallest_share": 0.0}
    assert [len(one.lines) for one in found] == [0, 0, 0, 0, 1, 0]
    assert extension.describe({}, ["a"]) == ({}, {}, [])


def test_a_resumed_run_says_what_an_undisturbed_one_would(tmp_path):
    log, straight = MetricsLog(tmp_path / "run"), Experts(SETTINGS)
    said = []
    for position in range(10, 80, 10):
        found = straight.describe(DEAD, ["a"])
        said.append(found.lines)
        log.write(position, {"train/loss": 1.0, **found.metrics}, found.tables)
        log.write(position, {"eval/score": 1.0})  # a row without a table says nothing of the router
    for saved in (40, 50):  # before and after the line was said
        resumed = Experts(SETTINGS)
        resumed.read_log([row for row in log.rows() if row["step"] <= saved])
        assert [resumed.describe(DEAD, ["a"]).lines for _ in range(saved, 70, 10)] == said[saved // 10 :]
    assert [len(lines) for lines in said] == [0, 0, 0, 0, 1, 0, 0]
