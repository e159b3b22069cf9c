"""The prediction of larger runs: a case done by hand, and what more hardware can and cannot do."""

import dataclasses

import pytest
import torch

from benchmarks.scaling import (
    Run,
    UnitCosts,
    all_reduce,
    assumed_costs,
    counted,
    line,
    predict,
    show,
    show_costs,
    tables,
)

COSTS = UnitCosts(
    env_step={"a": 0.002, "b": 0.004}, plan_call=0.01, plan_env=0.001, update_call=0.02, update_slice=0.0001,
    gradient_bytes=1e9, bytes_per_second=1e11, latency=0.0, save=10.0,
)  # fmt: skip
RUN = Run(num_envs=100, domains={"a": 0.5, "b": 0.5}, batch_size=200, utd=0.01, save_every=100_000)


def test_one_device_by_hand():
    found = predict(COSTS, RUN, gpus=1, cores=11)
    assert found["act"] == pytest.approx(0.01 + 0.1)
    assert found["environments"] == pytest.approx(10 * 0.003)  # ten workers, ten environments each
    assert found["update"] == pytest.approx(0.02 + 0.02)  # one update per step of 100 environments
    assert found["all_reduce"] == 0
    assert found["save"] == pytest.approx(0.01)
    assert found["env_steps_per_second"] == pytest.approx(100 / (0.11 + 0.04 + 0.01))
    assert found["hours_for_100m"] == pytest.approx(1e8 / found["env_steps_per_second"] / 3600)
    assert found["bottleneck"] == "act"


def test_two_devices_share_plans_and_slices_and_pay_for_the_gradients():
    found = predict(COSTS, RUN, gpus=2, cores=12)
    assert found["act"] == pytest.approx(0.01 + 0.05)
    assert found["update"] == pytest.approx(0.02 + 0.01)
    assert found["all_reduce"] == pytest.approx(2 * 0.01)


def test_what_is_hidden_is_no_bottleneck():
    slow = dataclasses.replace(COSTS, env_step={"a": 1.0, "b": 1.0})
    assert predict(slow, RUN, 1, 16)["bottleneck"] == "environments"
    assert predict(slow, RUN, 1, 16)["env_steps_per_second"] < predict(slow, RUN, 1, 64)["env_steps_per_second"]
    # More cores than environments do nothing.
    assert predict(slow, RUN, 1, 128) == predict(slow, RUN, 1, 256)


def test_a_line_goes_through_both_measurements():
    call, each = line((1, 0.5), (8, 1.2))
    assert call + each == pytest.approx(0.5)
    assert call + 8 * each == pytest.approx(1.2)


def test_products_and_what_is_launched_are_counted_also_backwards():
    weight, rows = torch.randn(32, 16, requires_grad=True), torch.randn(64, 32)

    def work() -> None:
        (rows @ weight).view(-1).sum().backward()

    found = counted(work)
    assert found["flops"] == 2 * 2 * 64 * 32 * 16  # the product, and the gradient of the weight
    assert found["operations"] >= 3


def test_what_a_device_would_take_follows_from_what_it_computes():
    computed = {
        "plan": [(1, {"operations": 100, "flops": 1e9}), (8, {"operations": 100, "flops": 8e9})],
        "update": [(32, {"operations": 300, "flops": 32e9}), (256, {"operations": 300, "flops": 256e9})],
    }
    found = assumed_costs(computed, flops=1e12, launch=1e-5)
    assert found["plan_call"] == pytest.approx(1e-3)
    assert found["plan_env"] == pytest.approx(1e-3)
    assert found["update_call"] == pytest.approx(3e-3)
    assert found["update_slice"] == pytest.approx(1e-3)


def test_a_slow_network_is_shown_beside_the_assumed_one():
    rows = tables(COSTS, RUN, dataclasses.replace(COSTS, bytes_per_second=1e9, latency=0.001))
    alone, two = rows[0], next(row for row in rows if row["gpus"] == 2)
    assert alone["by_gloo"] == alone["env_steps_per_second"]
    slower = two["all_reduce"] + 2 * (0.001 + 1.0) - 2 * 0.01
    learning = two["update"] + slower
    assert two["by_gloo"] == pytest.approx(100 / (two["act"] + max(two["environments"], learning) + two["save"]))
    assert all(line.count("|") == 12 for line in show(rows).splitlines())
    assert "env_steps/s by gloo" not in show(tables(COSTS, RUN))
    told = show_costs(COSTS, {"backend": "gloo", "latency": 0.001, "bytes_per_second": 1e9})
    assert "| an all-reduce of 1000 MB between two GPUs, assumed | 10.000 |" in told
    assert "| an all-reduce of 1000 MB between two processes by gloo, measured | 1001.000 |" in told


@pytest.mark.slow
def test_an_all_reduce_between_two_processes_is_measured():
    found = all_reduce(4e6, torch.device("cpu"))
    assert found["backend"] == "gloo"
    assert 0 < found["latency"] < 1
    assert 1e6 < found["bytes_per_second"] < 1e12
