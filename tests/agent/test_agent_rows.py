"""Acting in environments of several tasks at once, episodes that begin one by one, and instructions without end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.known_tasks import MAX_SAID
from pipeline.model.task_table import FREE
from pipeline.systems.m3po.actor import M3poActor
from tests.tiny_agent import ENCODER, NEW, PLANNER, SIZES, SPECS, adapted, embeddings_of, make_agent, obs_for

WITH_PAST = dataclasses.replace(
    SIZES, history=config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=16, backbone="dynamics")
)
ROWS = (SPECS[1], NEW, SPECS[0], NEW, SPECS[2], SPECS[0])


@pytest.fixture
def agent(checkpoint: Path, tmp_path: Path) -> Agent:
    """It knows four tasks; `pull` and `walk` have adapters."""
    for seed, spec in enumerate((NEW, SPECS[0])):
        adapted(checkpoint, tmp_path / spec.name, spec, seed)
    agent = Agent.from_pretrained(checkpoint)
    for spec in (NEW, SPECS[0]):
        agent.add_adapter(tmp_path / spec.name)
    agent.encoder = ENCODER
    return agent


def batch_of(step: int, width: int = 6) -> np.ndarray:
    """Observations of `ROWS`, zero-padded."""
    padded = np.zeros((len(ROWS), width), np.float32)
    for row, (obs, spec) in enumerate(zip(padded, ROWS, strict=True)):
        obs[: spec.obs_dim] = obs_for(spec, seed=10 * step + row)
    return padded


# --- several tasks in one batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["task", "instruction"])
def test_each_row_acts_on_its_own_task_by_its_own_adapter(agent: Agent, by: str) -> None:
    told: dict[str, Any] = {"task": [spec.name for spec in ROWS]}
    if by == "instruction":
        told = {"instruction": [spec.instructions[0] for spec in ROWS], "action_dim": [s.action_dim for s in ROWS]}
    agent.reset(len(ROWS), seed=0)
    for step in range(2):
        found = agent.act(batch_of(step), **told, plan=False)
        assert found.shape == (len(ROWS), 3)
        for row, spec in enumerate(ROWS):
            agent.reset(1)
            alone = agent.act(batch_of(step)[row, : spec.obs_dim], task=spec.name, plan=False)
            np.testing.assert_allclose(found[row, : spec.action_dim], alone, rtol=1e-4, atol=1e-6)
            assert not found[row, spec.action_dim :].any()
        agent.reset(len(ROWS), seed=0)


def test_plans_go_on_row_by_row(agent: Agent) -> None:
    tasks = [spec.name for spec in ROWS]

    def play() -> np.ndarray:
        agent.reset(len(ROWS), seed=4)
        return np.stack([agent.act(batch_of(step), task=tasks, explore=True) for step in range(3)])

    found = play()
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1).all()
    assert np.array_equal(found, play())
    mean, is_first = (agent.actor.state_tensors()[name] for name in ("prev_mean", "is_first"))
    assert not is_first.any()
    assert all(mean[:, row, : spec.action_dim].abs().min() > 0 for row, spec in enumerate(ROWS))
    agent.reset(2, seed=4)
    one = agent.act(batch_of(0)[:1].repeat(2, 0), task=["reach", "reach"])
    agent.reset(2, seed=4)
    assert np.array_equal(one, agent.act(batch_of(0)[:1].repeat(2, 0), task="reach"))


def test_instructions_that_are_new_go_by_row_too(agent: Agent) -> None:
    texts, widths = ["Jump.", "Turn.", "Jump."], [2, 3, 2]
    agent.reset(3)
    obs = np.ones((3, 4), np.float32)
    found = agent.act(obs, instruction=texts, action_dim=widths, plan=False)
    assert agent.table.names[4:] == ("Jump. (2 action dims)", "Turn. (3 action dims)")
    assert np.array_equal(found[0], found[2])
    for row, (text, width) in enumerate(zip(texts, widths, strict=True)):
        agent.reset()
        alone = agent.act(obs[row], instruction=text, action_dim=width, plan=False)
        np.testing.assert_allclose(found[row, :width], alone, rtol=1e-4, atol=1e-6)


def test_log_probabilities_stay_beside_their_actions(agent: Agent) -> None:
    tasks = [spec.name for spec in ROWS]
    actor = M3poActor(agent.model, agent.table, PLANNER, "torch", agent._adapters)
    actor.reset(len(ROWS), seed=0)
    actor.act(torch.from_numpy(batch_of(0)), actor.rows(tasks), torch.tensor([True, False] * 3), True)
    found = actor.columns["log_prob"]
    assert found.shape == (len(ROWS),)
    assert found.isfinite().all()
    assert len(set(found.tolist())) == len(ROWS)


@pytest.mark.parametrize(
    ("width", "told", "message"),
    [
        (6, {"task": ["walk", "reach"]}, r"`task` has 2 entries for 3 environments"),
        (6, {"instruction": ["a", "b", "c"], "action_dim": [1]}, r"`action_dim` has 1 entries for 3"),
        (6, {"task": ["walk", "reach", "no"]}, "does not know the task 'no'"),
        (5, {"task": ["walk", "reach", "push"]}, r"expected 6 \(or 6, zero-padded\)"),
        (6, {"task": ["walk", "reach", "push"]}, "more than the 4 values of walk: beyond them it must be zero"),
        (6, {"task": "walk"}, "more than the 4 values of walk"),
        (4, {"instruction": ["A small body. walk.", "Jump.", "Fly."], "action_dim": [2, 2, 9]}, "9 action dims"),
    ],
)
def test_what_does_not_fit_a_row_is_said(agent: Agent, width: int, told: dict, message: str) -> None:
    agent.reset(3, seed=0)
    before = agent.table.names
    with pytest.raises(ValueError, match=message):
        agent.act(np.ones((3, width)), **told)
    assert agent.table.names == before


# --- episodes that begin one by one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [False, True])
def test_one_environment_begins_an_episode_and_the_others_go_on(history: bool) -> None:
    option = {}
    if history:
        option["history"] = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=16, backbone="dynamics")
    agent = make_agent(sizes=dataclasses.replace(SIZES, **option))
    agent.table.constraint.fill_(FREE)  # plans that start from the last ones
    seen = [obs_for(SPECS[0], 3, seed=seed) for seed in range(3)]

    def play(begin: Callable[[], object]) -> np.ndarray:
        agent.reset(3, seed=0)
        for obs in seen[:2]:
            agent.act(obs, task="walk")
        begin()
        return agent.act(seen[2], task="walk")

    on, anew = play(lambda: None), play(lambda: agent.reset(envs=[2]))
    assert np.array_equal(on[:2], anew[:2])
    assert not np.array_equal(on[2], anew[2])
    assert np.array_equal(anew, play(lambda: agent.reset(envs=np.flatnonzero([False, False, True]))))
    assert np.array_equal(on, play(lambda: agent.reset(envs=[])))
    assert agent.num_envs == 3


@pytest.mark.parametrize("envs", [[3], [-1], [True, False], [0.5], ["0"], [[0]]])
def test_environments_that_are_not_there_do_not_begin(agent: Agent, envs: Any) -> None:
    agent.reset(3, seed=0)
    with pytest.raises(ValueError, match="numbers from 0 to 2"):
        agent.reset(envs=envs)
    with pytest.raises(ValueError, match="number and seed stay"):
        agent.reset(seed=1, envs=[0])


# --- instructions without end -----------------------------------------------------------------------------------------


def test_any_number_of_instructions_takes_bounded_memory(agent: Agent) -> None:
    obs, first = np.ones(4), agent.act(np.ones(4), instruction="Do 0.", action_dim=2, plan=False)
    for number in range(3 * MAX_SAID):
        agent.act(obs, instruction=f"Do {number}.", action_dim=2, plan=False)
        agent.act(obs, instruction="Stay.", action_dim=2, plan=False)  # said again and again, it stays
    assert len(agent.table.names) == len(agent.embeddings.names) == 4 + MAX_SAID
    assert len(agent._said) == MAX_SAID
    assert agent.table.names[:4] == ("walk", "reach", "push", "pull")
    assert "Stay. (2 action dims)" in agent.table.names
    assert np.array_equal(agent.act(obs, instruction="Do 0.", action_dim=2, plan=False), first)
    assert agent.act(obs_for(NEW), task="pull", plan=False).shape == (2,)


def test_a_row_that_another_instruction_takes_over_is_computed_anew(agent: Agent) -> None:
    texts = [f"Do {number}." for number in range(MAX_SAID + 3)]
    for text in texts:
        agent.act(np.ones(4), instruction=text, action_dim=2, plan=False)
        fresh = agent.with_planner(PLANNER).act(np.ones(4), instruction=text, action_dim=2, plan=False)
        assert np.array_equal(agent.act(np.ones(4), instruction=text, action_dim=2, plan=False), fresh)


def test_one_call_may_give_more_instructions_than_are_remembered(agent: Agent) -> None:
    count = MAX_SAID + 10
    agent.reset(count)
    texts = [f"Do {number}." for number in range(count)]
    found = agent.act(np.ones((count, 4)), instruction=texts, action_dim=2, plan=False)
    assert len(np.unique(found, axis=0)) == count
    assert np.array_equal(agent.act(np.ones((count, 4)), instruction=texts, action_dim=2, plan=False), found)
    agent.act(np.ones((count, 4)), instruction="Stop.", action_dim=2, plan=False)
    assert len(agent.table.names) == 4 + MAX_SAID


@pytest.mark.parametrize("sizes", [SIZES, WITH_PAST], ids=["present", "past"])
@pytest.mark.parametrize("plan", [True, False])
def test_rows_without_adapter_act_to_the_bit_as_if_there_were_none(tmp_path: Path, plan: bool, sizes: Any) -> None:
    make_agent(sizes=sizes).save_pretrained(tmp_path / "base")
    texts = [(f"pull {n}.", f"pull {n} hard.") for n in range(10)]
    news = [dataclasses.replace(NEW, name=f"pull-{n}", instructions=text) for n, text in enumerate(texts)]
    bare, many = (Agent.from_pretrained(tmp_path / "base") for _ in range(2))
    for seed, spec in enumerate(news):
        adapted(tmp_path / "base", tmp_path / spec.name, spec, seed)
        many.add_adapter(tmp_path / spec.name)
        bare.add_task(spec, embeddings_of([spec]), 0.97)
    rows = [news[0], SPECS[0], news[7], SPECS[1], news[0], SPECS[2], SPECS[0]]
    own, found = [1, 3, 5, 6], {}
    for name, agent in (("bare", bare), ("many", many)):
        agent.reset(len(rows), seed=5)
        steps = []
        for step in range(4):
            obs = np.zeros((len(rows), 6), np.float32)
            for row, spec in enumerate(rows):
                obs[row, : spec.obs_dim] = obs_for(spec, seed=10 * step + row)
            steps.append(agent.act(obs, task=[spec.name for spec in rows], plan=plan, explore=True))
            if step == 1:
                agent.reset(envs=[1, 2])
        found[name] = np.stack(steps)
    assert np.array_equal(found["bare"][:, own], found["many"][:, own])
    assert (np.abs(found["bare"] - found["many"])[:, [0, 2, 4]].max((1, 2)) > 1e-3).all()
    assert not np.array_equal(found["many"][:, 0], found["many"][:, 4])  # two of one adapter draw different noise
    again = []
    for _ in range(2):
        many.reset(len(rows), seed=5)
        again.append(many.act(obs, task=[spec.name for spec in rows], plan=plan, explore=True))
    assert np.array_equal(*again)


# --- numbers as people have them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_a_seed_of_another_library_is_the_same_seed(agent: Agent, seed: Any) -> None:
    found = []
    for given in (3, seed):
        agent.reset(np.int64(2), seed=given)
        found.append(agent.act(batch_of(0)[:1].repeat(2, 0), task="reach", explore=True))
    assert np.array_equal(*found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 3.0}, r"`seed` is 3\.0: expected a whole number"),
        ({"seed": np.random.default_rng(0)}, "`seed` is Generator.*: expected a whole number"),
        ({"seed": 2**70}, r"`seed` is \d+: expected a whole number from"),
        ({"num_envs": "3"}, "`num_envs` is '3': expected a whole number"),
        ({"num_envs": 0}, "`num_envs` is 0: expected a whole number from 1"),
    ],
)
def test_what_is_no_whole_number_is_refused_and_changes_nothing(agent: Agent, given: Any, message: str) -> None:
    agent.reset(2, seed=1)
    with pytest.raises(ValueError, match=message):
        agent.reset(**given)
    assert agent.num_envs == 2
    assert len(agent.actor.state_tensors()["is_first"]) == 2


@pytest.mark.parametrize(
    "envs", [np.array([False, True, False]), [False, True, False], 1, np.int64(1), torch.tensor([1])]
)
def test_episodes_begin_where_a_mask_or_a_number_says(agent: Agent, envs: Any) -> None:
    agent.reset(3, seed=0)
    agent.act(batch_of(0)[:1].repeat(3, 0), task="reach")
    agent.reset(envs=envs)
    assert agent.actor.state_tensors()["is_first"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="or 3 times True or False"):
        agent.reset(envs=[True, False])


def test_tasks_and_instructions_can_be_mixed_row_by_row(agent: Agent) -> None:
    agent.reset(len(ROWS), seed=0)
    expected = agent.act(batch_of(0), task=[spec.name for spec in ROWS], plan=False)
    tasks = [spec.name if row % 2 else None for row, spec in enumerate(ROWS)]
    texts = (None if row % 2 else spec.instructions[0] for row, spec in enumerate(ROWS))
    found = agent.act(batch_of(0), task=tasks, instruction=texts, plan=False, action_dim=[s.action_dim for s in ROWS])
    assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="one of the two for environment 2"):
        agent.act(batch_of(0), task=["reach", "pull", None, "pull", "push", "walk"])
