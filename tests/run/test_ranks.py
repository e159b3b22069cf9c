"""Several processes: who gets what, that they learn as one, and that all stop where one fails. Real gloo processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.ranks import Ranks, _raw
from tests.run.runs import GROWING, SCRIPT, Server, environment, positions, result, said


def some_rank(rank: int, count: int) -> Ranks:
    ranks = Ranks()
    ranks.rank, ranks.count = rank, count
    return ranks


def test_everything_is_shared_out_once_also_where_numbers_do_not_divide():
    shards = [some_rank(rank, 3).shard(range(8)) for rank in range(3)]
    assert shards == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (128, [1, 1], [64, 64]),
        (128, [2, 1], [85, 43]),
        (7, [1, 1, 1], [3, 2, 2]),
        (5, [0, 1], [0, 5]),
        (0, [1, 2], [0, 0]),
    ],
)
def test_shares_add_up_and_follow_the_weights(total, weights, shares):
    assert Ranks().shares(total, weights) == shares


@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=9).filter(any))
def test_shares_are_whole_and_less_than_one_off(total, weights):
    shares = Ranks().shares(total, weights)
    assert sum(shares) == total
    exact = [total * weight / sum(weights) for weight in weights]
    assert all(abs(share - part) < 1 for share, part in zip(shares, exact, strict=True))


def test_a_tensor_is_sent_as_its_bytes_also_a_single_value_out_of_a_table():
    table = np.zeros(2, [("x", "f4"), ("y", "i8"), ("z", "f8")])
    table["x"] = 1.5, 2.5
    for tensor in (torch.tensor(table["x"][1:]), torch.arange(6.0).view(2, 3)[1:], torch.tensor(True)):
        raw = _raw(tensor.contiguous())
        assert raw.numpy().tobytes() == tensor.numpy().tobytes()
        assert raw.data_ptr() == tensor.data_ptr()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.mark.slow
def test_two_processes_go_on_alike_and_a_third_number_says_what_differs(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, ranks=2) == [0, 0], said(whole) + said(whole, 1)
    first, second = result(whole), result(whole, 1)
    # Three tasks on two ranks.
    assert (first["tasks"], second["tasks"]) == ([0, 2], [1])
    assert first["demos_mapped"]
    assert second["demos_mapped"]
    for what in ("learner", "value_scale", "updates", "constraint"):
        assert first[what] == second[what], what
    assert sorted(path.name for path in whole.glob("metrics/*")) == ["losses.csv", "metrics.jsonl", "scores.csv"]

    codes = server.run(broken, ranks=2, fail_at=[1, 8])
    assert "the disk of this machine is gone" in said(broken, 1)
    assert "another process of this run has ended" in said(broken, 0)
    assert codes == [3, 2]
    assert positions(broken)
    assert server.run(broken, ranks=2) == [0, 0]
    assert (result(broken), result(broken, 1)) == (first, second)


@pytest.mark.slow
def test_two_processes_have_one_value_scale_and_share_out_the_demonstrations(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, ranks=2, returns=True) == [0, 0], said(whole) + said(whole, 1)
    first, second = result(whole), result(whole, 1)
    assert (first["tasks"], second["tasks"]) == ([0, 2], [1])
    assert first["learner"] == second["learner"]
    assert first["value_scale"] == second["value_scale"]
    assert server.run(broken, ranks=2, returns=True, fail_at=[1, 8]) == [3, 2]
    assert server.run(broken, ranks=2, returns=True) == [0, 0]
    assert (result(broken), result(broken, 1)) == (first, second)


@pytest.mark.slow
def test_two_processes_learn_from_labels_alike_also_where_one_has_none(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, ranks=2, labels=True) == [0, 0], said(whole) + said(whole, 1)
    first, second = result(whole), result(whole, 1)
    assert (first["imitation"], second["imitation"]) == ({"0": 1.0, "2": 1.0}, {"1": 0.0})
    assert first["learner"] == second["learner"]
    assert server.run(broken, ranks=2, labels=True, fail_at=[1, 8]) == [3, 2]
    shutil.copytree(broken, tmp_path / "shared out")
    assert server.run(broken, ranks=2, labels=True) == [0, 0], said(broken)
    assert (result(broken), result(broken, 1)) == (first, second)
    for count in (3, 1):  # on three, the second has no labels; one takes up what they leave
        folder = tmp_path / "shared out"
        done = {"fail_at": [1, 16]} if count == 3 else {}
        assert server.run(folder, ranks=count, labels=True, **done)[0] == (3 if done else 0), said(folder)
    found = result(tmp_path / "shared out")
    assert found["imitation"] == {"0": 1.0, "1": 0.0, "2": 1.0}


@pytest.mark.slow
def test_two_processes_grow_alike_also_where_one_has_nothing_to_play(server, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert server.run(whole, ranks=2, **GROWING) == [0, 0], said(whole) + said(whole, 1)
    first, second = result(whole), result(whole, 1)
    assert (first["tasks"], second["tasks"]) == ([0, 2], [])
    assert first["curriculum"]["stage"] == 2
    for what in ("learner", "updates", "curriculum", "stopped_at"):
        assert first[what] == second[what], what
    assert server.run(broken, ranks=2, fail_at=[1, 3], **GROWING) == [3, 2]
    assert server.run(broken, ranks=2, **GROWING) == [0, 0], said(broken)
    assert (result(broken), result(broken, 1)) == (first, second)


@pytest.mark.slow
def test_a_save_of_two_processes_is_taken_up_by_one_and_by_three(server, tmp_path):
    for count in (1, 3):
        folder = tmp_path / str(count)
        assert server.run(folder, ranks=2, fail_at=[0, 8])[0] == 2
        assert positions(folder)
        assert server.run(folder, ranks=count) == [0] * count, said(folder)
        assert f"goes on with {count} processes from a save of 2" in said(folder)
        found = [(result(folder, rank)["learner"], result(folder, rank)["constraint"]) for rank in range(count)]
        assert found == found[:1] * count
        assert sum(len(result(folder, rank)["tasks"]) for rank in range(count)) >= 3


@pytest.mark.slow
def test_all_stop_before_the_step_where_one_has_a_loss_that_is_not_finite(server, tmp_path):
    started = time.monotonic()
    assert server.run(tmp_path, ranks=2, nan_at=[1, 6]) == [2, 2]
    assert time.monotonic() - started < 60
    for rank in (0, 1):
        assert "all ranks stopped before the optimiser's step; rank 1: update 6 is not finite" in said(tmp_path, rank)
        assert "reward values that are not finite, of pendulum-" in said(tmp_path, rank)
    assert positions(tmp_path)


@pytest.mark.slow
def test_torchrun_starts_them_and_accelerate_is_caught_starting_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPT), '{"env_steps": 60}']
    done = subprocess.run(launch, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert result(tmp_path)["learner"] == result(tmp_path, 1)["learner"]
    accelerate = Path(sys.executable).with_name("accelerate")
    launch = [str(accelerate), "launch", "--cpu", "--num_processes", "2", str(SCRIPT), "{}"]
    done = subprocess.run(launch, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode
    assert "was asked for 2 processes and has started one" in done.stderr


@pytest.mark.slow
def test_two_processes_improve_one_policy_from_the_episodes_of_both(server, tmp_path):
    assert server.run(tmp_path, ranks=2, clipped=False) == [0, 0], said(tmp_path) + said(tmp_path, 1)
    assert result(tmp_path)["learner"] == result(tmp_path, 1)["learner"]
    assert '"train/start_kl":' in (tmp_path / "metrics/metrics.jsonl").read_text()
    other = tmp_path / "other"
    assert server.run(other, ranks=2, clipped=False, fail_at=[0, 8])[0] == 2
    assert positions(other)
    assert server.run(other, ranks=1, clipped=False) == [0], said(other)
