"""Adapters on an agent: each acts on its own task; what is refused, and what goes on training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.agent import Agent
from pipeline.model.products import Mode
from tests.tiny_agent import (
    NEW,
    PLANNER,
    SIZES,
    SPECS,
    acts,
    adapted,
    make_agent,
    make_spec,
    obs_for,
)


def test_an_adapter_brings_its_task_and_leaves_the_others(checkpoint: Path, tmp_path: Path) -> None:
    trained = adapted(checkpoint, tmp_path / "adapter")
    agent = Agent.from_pretrained(checkpoint)
    obs = obs_for(SPECS[0])
    agent.reset(seed=0)
    base = agent.act(obs, task="walk")
    assert agent.add_adapter(tmp_path / "adapter") == "pull"
    assert agent.tasks["pull"] == NEW
    assert agent.table.discount[-1] == pytest.approx(0.97)
    agent.reset(seed=0)
    trained.reset(seed=0)
    assert np.array_equal(agent.act(obs_for(NEW), task="pull"), trained.act(obs_for(NEW), task="pull"))
    agent.reset(seed=0)
    assert np.array_equal(agent.act(obs, task="walk"), base)


@pytest.mark.parametrize("mode", ["torch", None], ids=["torch", "chosen"])
def test_each_adapter_acts_on_its_own_task_and_the_base_on_all_others_to_the_bit(
    checkpoint: Path, tmp_path: Path, mode: Mode | None
) -> None:
    base = Agent.from_pretrained(checkpoint, mode=mode)
    expected = {spec.name: acts(base, spec) for spec in (SPECS[0], SPECS[2])}
    for seed, spec in enumerate((NEW, SPECS[1])):  # a task that is new, and one that the base knows
        adapted(checkpoint, tmp_path / spec.name, spec, seed)
        alone = Agent.from_pretrained(checkpoint, mode=mode)
        alone.add_adapter(tmp_path / spec.name)
        expected[spec.name] = acts(alone, spec)
    assert not np.array_equal(expected["reach"], acts(base, SPECS[1]))
    agent = Agent.from_pretrained(checkpoint, mode=mode)
    for spec in (NEW, SPECS[1]):
        agent.add_adapter(tmp_path / spec.name)
    other = agent.with_planner(PLANNER)  # shares the model, in which they take turns
    for spec in (SPECS[0], NEW, SPECS[1], SPECS[2], SPECS[1], SPECS[0], NEW):
        for one in (agent, other):
            assert np.array_equal(acts(one, spec), expected[spec.name]), spec.name
        said = acts(agent, spec, instruction=f"A small body. {spec.instructions[0]}")
        assert np.array_equal(said, expected[spec.name]), spec.name


def test_step_by_step_another_task_does_not_change_what_an_adapter_does(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "pull", NEW, 0)
    agent = Agent.from_pretrained(checkpoint)
    agent.add_adapter(tmp_path / "pull")
    expected = {spec.name: agent.act(obs_for(spec), task=spec.name, plan=False) for spec in (NEW, *SPECS)}
    for spec in (NEW, *SPECS, NEW, *SPECS[::-1]):
        assert np.array_equal(agent.act(obs_for(spec), task=spec.name, plan=False), expected[spec.name])


def test_an_adapter_acts_by_the_agent_s_actors_too(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "pull", NEW, 0)
    base, agent = Agent.from_pretrained(checkpoint), Agent.from_pretrained(checkpoint)
    agent.add_adapter(tmp_path / "pull")
    obs = torch.ones(2, SIZES.obs_dim)
    for phrasing in ("canonical", "unseen"):
        found = []
        for actor in (agent.conditioned(phrasing), base.conditioned(phrasing)):
            actor.reset(2, seed=0)
            found.append(actor.act(obs, actor.rows(["walk", "reach"]), plan=True))
        assert torch.equal(*found)
    agent.actor.reset(2, seed=0)
    both = agent.actor.act(obs, agent.actor.rows(["walk", "pull"]), plan=False)
    for row, task in enumerate(("walk", "pull")):
        agent.actor.reset(1, seed=0)
        alone = agent.actor.act(obs[:1], agent.actor.rows([task]), plan=False)
        assert torch.allclose(both[row], alone[0], atol=1e-6)


def test_acting_on_another_task_does_not_end_training(checkpoint: Path, tmp_path: Path) -> None:
    agent, base = adapted(checkpoint, tmp_path / "pull", NEW, 0), Agent.from_pretrained(checkpoint)
    trained = [name for name, parameter in agent.model.named_parameters() if parameter.requires_grad]
    state = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    assert np.array_equal(acts(agent, SPECS[0]), acts(base, SPECS[0]))
    assert [name for name, parameter in agent.model.named_parameters() if parameter.requires_grad] == trained
    assert agent._adapters.active == "pull"
    assert all(torch.equal(state[name], tensor) for name, tensor in agent.model.state_dict().items())


NAMES = ["forward", "clear", "pop", "float", "train", "update", "type", "cpu", "lora", "a", "of", "default"]


def test_a_task_of_any_name_may_have_an_adapter(checkpoint: Path, tmp_path: Path) -> None:
    specs = [make_spec(name, f"do {name}", 5, 2) for name in NAMES]
    expected = {}
    for seed, spec in enumerate(specs):
        trained = adapted(checkpoint, tmp_path / spec.name, spec, seed)
        expected[spec.name] = acts(trained, spec)
    agent = Agent.from_pretrained(checkpoint)
    for spec in specs:
        assert agent.add_adapter(tmp_path / spec.name) == spec.name
    assert agent.adapters == tuple(NAMES)
    for spec in specs:
        assert np.array_equal(acts(agent, spec), expected[spec.name])
    assert acts(agent, SPECS[0]).shape == (3, 4, 2)


def test_adapters_lie_in_subfolders_too(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, checkpoint / "adapters" / "pull")
    agent = Agent.from_pretrained(checkpoint)
    assert agent.add_adapter(checkpoint, subfolder="adapters/pull") == "pull"


def test_an_adapter_goes_on_training(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "adapter")
    agent = Agent.from_pretrained(checkpoint)
    agent.add_adapter(tmp_path / "adapter", trainable=True)
    assert any(parameter.requires_grad for parameter in agent.model.parameters())


def test_an_adapter_of_another_base_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "adapter")
    make_agent(seed=1).save_pretrained(tmp_path / "other")
    agent = Agent.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on the base weights"):
        agent.add_adapter(tmp_path / "adapter")
    assert "pull" not in agent.tasks


def test_an_adapter_of_another_encoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "adapter")
    path = tmp_path / "adapter" / "task_embeddings" / "texts.json"
    path.write_text(path.read_text().replace("hashed-ngrams-16", "hashed-ngrams-32"))
    with pytest.raises(ValueError, match=r"hashed-ngrams-32.*hashed-ngrams-16"):
        Agent.from_pretrained(checkpoint).add_adapter(tmp_path / "adapter")


def test_a_folder_without_adapter_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    with pytest.raises(FileNotFoundError, match=r"task\.json"):
        agent.add_adapter(tmp_path)
    adapted(checkpoint, tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter" / "task_embeddings")
    with pytest.raises(FileNotFoundError, match=r"texts\.json"):
        agent.add_adapter(tmp_path / "adapter")


def test_an_adapted_agent_is_not_saved_as_a_base(checkpoint: Path, tmp_path: Path) -> None:
    agent = adapted(checkpoint, tmp_path / "adapter")
    with pytest.raises(ValueError, match="Save each with `save_adapter`"):
        agent.save_pretrained(tmp_path / "out")


def test_an_adapter_needs_a_saved_base(agent: Agent, tmp_path: Path) -> None:
    agent.create_adapter("walk", ["policy"], rank=2, alpha=4.0)
    with pytest.raises(ValueError, match="load the agent from a checkpoint"):
        agent.save_adapter(tmp_path / "adapter", "walk")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"r": 2, \xff' + b"x" * 100_000], ids=["without end", "no text"])
def test_a_damaged_configuration_is_told_shortly(content: bytes, checkpoint: Path, tmp_path: Path) -> None:
    adapted(checkpoint, tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_bytes(content)
    agent = Agent.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"adapter_config\.json is not the configuration of an adapter") as refused:
        agent.add_adapter(tmp_path / "adapter")
    assert len(str(refused.value)) < 400
