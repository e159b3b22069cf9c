"""Experts that are asked where the environments are: what they saw, how long it lasts, what happens where they fail."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipeline.demonstrate.experts import open_expert
from pipeline.demonstrate.scripted import Script
from pipeline.tasks import registry
from pipeline.tasks.labels import Labels
from pipeline.tasks.vector import TaskFailure, VectorEnv, WorkerError
from tests.experts import open_bad

pytestmark = pytest.mark.slow  # simulators or processes run for real

OBS, ACTION = 40, 6
SPECS = registry.get(["mw-faucet-open", "pendulum-spin", "mw-reach"])  # the first expert stops where it is successful
SCRIPTED = Labels({"mw-faucet-open": "scripted", "mw-reach": "scripted"}, partial(open_expert, teachers=None))


def make_envs(num_workers: int = 0, labels: Labels | None = SCRIPTED) -> VectorEnv:
    return VectorEnv(SPECS, OBS, ACTION, 7, num_workers, labels=labels)


def asked(obs: np.ndarray, success: np.ndarray) -> np.ndarray:
    """What the scripts of the tasks say in states (3, O); nothing of the second."""
    said = np.zeros((3, ACTION), np.float32)
    for row in (0, 2):
        said[row, :4] = Script(SPECS[row].env_id).act(obs[row, :39], bool(success[row]))
    return said


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_label_is_what_the_expert_does_in_the_state_before_the_step(num_workers):
    draw, succeeded = np.random.default_rng(0), 0
    with make_envs(num_workers) as envs:
        obs, success = envs.reset(), np.zeros(3, bool)
        for number in range(210):  # two episodes and the beginning of a third
            wanted = asked(obs, success)
            wild = draw.uniform(-1, 1, (3, ACTION)).astype(np.float32)
            # The expert acts in the first episode, anything in the second.
            step = envs.step(wanted if number < 100 else wild)
            np.testing.assert_array_equal(step.label, wanted)
            assert step.label.dtype == np.float32
            succeeded += int(success[0])
            obs, success = step.obs, step.success & ~(step.terminated | step.truncated)
    assert succeeded > 10, "nothing was asked in a successful state"


def test_without_labels_nobody_is_asked_and_nothing_is_sent():
    with make_envs(labels=None) as envs:
        envs.reset()
        step = envs.step(np.zeros((3, ACTION), np.float32))
    assert step.label.shape == (3, 0)
    assert envs.labels is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_whether_a_state_is_successful_outlasts_a_rest_and_a_restore(num_workers):
    played, last = [], []
    with make_envs() as envs:
        obs, success = envs.reset(), np.zeros(3, bool)
        while not success[0]:
            played.append(asked(obs, success))
            step = envs.step(played[-1])
            obs, success = step.obs, step.success
        wanted = asked(obs, success)
        assert not np.array_equal(wanted[0], asked(obs, np.zeros(3, bool))[0]), "success makes no difference here"
        envs.begin_step(wanted, np.array([False, True, True]))
        envs.end_step()
        np.testing.assert_array_equal(envs.step(wanted).label[0], wanted[0])
        last = [np.stack(played)[:, row] for row in range(3)]
    with make_envs(num_workers) as envs:
        envs.restore(np.zeros(3, np.int64), last)
        np.testing.assert_array_equal(envs.step(wanted).label, wanted)


FAULTS = {"nan": "expert gave the action .nan., expected 1 finite", "shape": "expert gave the action .0.0, 0.0, 0.0.",
          "raises": "expert failed: ZeroDivisionError: no way"}  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_expert_that_keeps_failing_ends_the_run_and_its_task_is_named(trouble, fault, num_workers):
    labels = Labels({"sick": "scripted"}, partial(open_bad, fault, 0.0))
    with (
        VectorEnv([trouble("fine"), trouble("sick")], 3, 1, 4, num_workers, labels=labels) as envs,
        pytest.raises(TaskFailure, match=f"task sick failed 4 times.*task sick: its {FAULTS[fault]}"),
    ):
        envs.reset()
        for _ in range(12):
            envs.step(np.zeros((2, 1), np.float32))


def test_an_expert_that_fails_now_and_then_loses_that_episode_alone(trouble, caplog):
    labels = Labels({"sick": "scripted"}, partial(open_bad, "nan", 0.7))
    with VectorEnv([trouble("sick")], 3, 1, 1, 0, labels=labels) as envs, caplog.at_level(logging.WARNING):
        start, ended, lost = envs.reset()[0, 0], 0, 0
        for _ in range(40):
            step = envs.step(np.zeros((1, 1), np.float32))
            if not step.lost[0]:
                assert step.label.tolist() == [[0.25]]
            ended += int(step.truncated[0])
            lost += int(step.lost[0])
            assert not (step.truncated[0] and start >= 0.7)
            start = step.obs[0, 0]
    assert ended
    assert lost
    assert "its expert gave" in caplog.text


@pytest.mark.parametrize(("num_workers", "error"), [(0, ValueError), (1, WorkerError)])
def test_an_expert_that_cannot_be_opened_is_named_with_its_task(num_workers, error):
    labels = Labels({"pendulum-spin": "scripted"}, SCRIPTED.open_expert)
    with pytest.raises(error, match="pendulum-spin has no expert that can be asked in every state"):
        make_envs(num_workers, labels)


def test_a_worker_that_asks_experts_never_imports_torch():
    with make_envs(1) as envs:
        envs.reset()
        maps = Path(f"/proc/{envs._workers[0]._process.pid}/maps")
        if not maps.exists():
            pytest.skip("needs /proc")
        assert "libtorch" not in maps.read_text()


def test_workers_are_told_in_json_and_by_name(tmp_path):
    """Nothing is pickled: a worker finds the function by its name."""
    told = json.loads(json.dumps(Labels({"mw-reach": "scripted"}, partial(open_expert, teachers=tmp_path)).to_orders()))
    found = Labels.from_orders(told)
    assert found.kinds == {"mw-reach": "scripted"}
    assert found.open_expert.func is open_expert
    assert found.open_expert.keywords == {"teachers": str(tmp_path)}
    with pytest.raises(ValueError, match="must be a function of a module"):
        Labels({}, lambda spec, env: None).to_orders()
