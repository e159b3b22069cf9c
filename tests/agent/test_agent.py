"""The agent a user holds: loading, acting, unknown tasks, adapters, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import config
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.language.encoder import HashedNgrams
from pipeline.model.world_model import WorldModel
from pipeline.tasks.spec import TaskSpec
from tests.tiny_agent import (
    ENCODER,
    PLANNER,
    SIZES,
    SPECS,
    embeddings_of,
    make_agent,
    make_spec,
    obs_for,
)

# --- saving and loading -----------------------------------------------------------------------------------------------


def test_saved_and_loaded_acts_the_same(agent: Agent, checkpoint: Path) -> None:
    loaded = Agent.from_pretrained(checkpoint)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json", "model.safetensors", "task_embeddings", "tasks.json",
    ]  # fmt: skip
    assert loaded.tasks == agent.tasks
    assert loaded.planner == PLANNER
    assert torch.equal(loaded.table.discount, agent.table.discount)
    for spec in SPECS:
        agent.reset(seed=1)
        loaded.reset(seed=1)
        for step in range(3):
            obs = obs_for(spec, seed=step)
            assert np.array_equal(loaded.act(obs, task=spec.name), agent.act(obs, task=spec.name))


def test_a_termination_head_that_saw_no_action_is_refused_by_its_name(tmp_path: Path) -> None:
    sizes = dataclasses.replace(SIZES, termination=True)
    make_agent(sizes=sizes).save_pretrained(tmp_path)
    assert Agent.from_pretrained(tmp_path).model.config == sizes
    weights, key = load_file(tmp_path / "model.safetensors"), "termination_head.0.linear.weight"
    save_file(weights | {key: weights[key][:, : -sizes.action_dim].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"termination head is of an older version .* Train it anew"):
        Agent.from_pretrained(tmp_path)


def test_the_weights_also_load_as_a_plain_hub_model(agent: Agent, checkpoint: Path) -> None:
    model = WorldModel.from_pretrained(checkpoint)
    assert model.config == SIZES
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), agent.model.parameters(), strict=True))


@pytest.mark.parametrize("router", ["latent", "task"])
def test_an_agent_with_experts_is_saved_loaded_and_grown(tmp_path: Path, router) -> None:
    experts = config.Experts(("dynamics", "reward", "policy", "q"), 4, 2, 8, True, router, 0.5, 0.1)
    agent = make_agent(sizes=dataclasses.replace(SIZES, experts=experts))
    agent.save_pretrained(tmp_path)
    loaded = Agent.from_pretrained(tmp_path)
    assert loaded.model.config.experts == experts
    with pytest.raises(RuntimeError, match="experts"):  # and not weights at random
        WorldModel.from_pretrained(tmp_path)
    found = []
    for one in (agent, loaded, loaded.grown(8, 4)):
        one.reset(seed=3)
        found.append(one.act(obs_for(SPECS[1]), task="reach"))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].shape == (3,)


def test_a_checkpoint_from_before_there_were_options_is_read(agent: Agent, checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("experts") is None
    path.write_text(json.dumps(values))
    assert Agent.from_pretrained(checkpoint).model.config == agent.model.config


def test_a_checkpoint_holds_no_path_of_this_machine(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*.json"):
        assert str(checkpoint.parent) not in path.read_text()


def _change(name: str, **values) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


def _spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["q_heads.0.0.linear.weight"][0, 0] = float("nan")
    save_file(state, path)


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tasks.json").unlink(), r"tasks\.json does not exist"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (_cut_weights, r"model\.safetensors does not hold"),
        (_spoil_weights, r"q_heads\.0\.0\.linear\.weight holds values that are not finite"),
        (_change("config.json", mlp_dim=32), r"does not hold the weights that config\.json describes"),
        (_change("config.json", mlp_dim=10**12), r"does not hold the weights that config\.json describes"),
        (_change("config.json", latent_dim=8 * 10**30), r"does not hold the weights|valid integer"),
        (_change("config.json", num_q=10**9), "more layers"),
        (_change("config.json", surprise=1), "`surprise` is not a parameter"),
        (_change("tasks.json", format=2), "format 2"),
        (_change("tasks.json", tasks=[]), "mixed up"),
        (_change("tasks.json", tasks=[{"task": {"name": "walk"}, "discount": 0.9}]), "task 0: `suite` is missing"),
        (_change("tasks.json", planner={"horizon": 3}), "planner: `iterations` is missing"),
        (_change("tasks.json", tasks=None), "`tasks` is None"),
    ],
)
def test_damaged_checkpoints_say_what_is_wrong(checkpoint: Path, damage, message: str) -> None:
    damage(checkpoint)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Agent.from_pretrained(checkpoint)


def test_sources_that_do_not_exist(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="neither a folder that exists nor a repo id"):
        Agent.from_pretrained("/no/such/folder")
    with pytest.raises(ValueError, match="has no revisions"):
        Agent.from_pretrained(checkpoint, revision="main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="could not be had from the Hub"):
        Agent.from_pretrained("nobody/nothing")


# --- acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("num_envs", [None, 1, 4])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_actions_have_the_task_s_own_width(
    agent: Agent, spec: TaskSpec, num_envs: int | None, plan: bool, explore: bool
) -> None:
    agent.reset(num_envs or 1, seed=0)
    action = agent.act(obs_for(spec, num_envs), task=spec.name, plan=plan, explore=explore)
    assert action.shape == ((spec.action_dim,) if num_envs is None else (num_envs, spec.action_dim))
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1
    assert np.abs(action).max() > 0


def test_padded_and_unpadded_observations_are_the_same(agent: Agent) -> None:
    obs = obs_for(SPECS[0])
    agent.reset(seed=3)
    first = agent.act(obs, task="walk")
    agent.reset(seed=3)
    assert np.array_equal(agent.act(np.pad(obs, (0, 2)), task="walk"), first)


def test_a_seed_makes_planning_reproducible_and_steps_differ(agent: Agent) -> None:
    obs = obs_for(SPECS[1])

    def play(seed: int | None) -> np.ndarray:
        agent.reset(seed=seed)
        return np.stack([agent.act(obs, task="reach") for _ in range(3)])

    assert np.array_equal(play(5), play(5))
    assert not np.array_equal(play(5), play(6))
    assert not np.array_equal(play(None), play(None))


@pytest.mark.parametrize("plan", [True, False])
def test_observations_that_are_too_large_are_refused_and_not_kept(agent: Agent, plan: bool) -> None:
    fine, huge = obs_for(SPECS[0]), np.full(4, 3e38)
    agent.reset(seed=0)
    expected = [agent.act(fine, task="walk", plan=plan) for _ in range(2)]
    agent.reset(seed=0)
    found = [agent.act(fine, task="walk", plan=plan)]
    with pytest.raises(ValueError, match=r"not finite from `obs`, whose values reach 3e\+38"):
        agent.act(huge, task="walk", plan=plan)
    found.append(agent.act(fine, task="walk", plan=plan))
    assert np.array_equal(found, expected)
    assert np.isfinite(agent.act(np.full(4, 1e25), task="walk", plan=plan)).all()


_HISTORY = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=16, backbone="dynamics")
_EXPERTS = config.Experts(("dynamics", "policy"), 4, 2, 8, True, "latent", 0.5, 0.1)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("option", [{}, {"history": _HISTORY}, {"experts": _EXPERTS}], ids=["plain", "past", "experts"])
def test_an_agent_acts_the_same_whatever_torch_s_default_dtype(
    tmp_path: Path, option: dict, dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    agent = make_agent(sizes=dataclasses.replace(SIZES, **option))
    statistics = torch.linspace(-1, 1, 18).view(3, 6)
    agent.actor.table = dataclasses.replace(agent.table, obs_mean=statistics, obs_std=statistics.exp())
    agent.save_pretrained(tmp_path / "base")
    agent = Agent.from_pretrained(tmp_path / "base")

    def found(agent: Agent) -> list[np.ndarray]:
        agent.encoder, steps = ENCODER, []
        for told in ({"task": "walk"}, {"instruction": "Jump.", "action_dim": 2}):
            for plan, explore in ((True, True), (False, True), (True, False)):
                agent.reset(seed=0)
                steps += [agent.act(obs_for(SPECS[0]), **told, plan=plan, explore=explore) for _ in range(2)]
        return steps

    expected, wider = found(agent), found(agent.grown(8, 3))
    default_dtype(dtype)
    loaded = Agent.from_pretrained(tmp_path / "base")
    for one in (agent, loaded):
        assert np.array_equal(found(one), expected)
        assert np.array_equal(found(one.grown(8, 3)), wider)
    loaded.create_adapter("walk", ["encoder", "policy", "dynamics"][: 2 if option else 3], rank=2, alpha=4.0)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    assert np.array_equal(found(loaded), expected)  # a new adapter changes nothing yet
    loaded.save_adapter(tmp_path / "adapter", "walk")
    agent.save_pretrained(tmp_path / "again")
    default_dtype(torch.float32)
    assert Agent.from_pretrained(tmp_path / "again").base == Agent.from_pretrained(tmp_path / "base").base


def test_another_planner_changes_the_plan_s_length(agent: Agent) -> None:
    longer = agent.with_planner(config.Planner(**{**vars(PLANNER), "horizon": 5}))
    assert longer.actor.state_tensors()["prev_mean"].shape[0] == 5
    assert agent.actor.state_tensors()["prev_mean"].shape[0] == 3
    assert longer.model is agent.model
    longer.act(obs_for(SPECS[0]), task="walk")


# --- instructions -----------------------------------------------------------------------------------------------------


def test_a_known_text_is_the_known_task(agent: Agent) -> None:
    obs = obs_for(SPECS[1])
    agent.reset(seed=0)
    by_name = agent.act(obs, task="reach")
    agent.reset(seed=0)
    assert np.array_equal(agent.act(obs, instruction="A small body. reach the goal quickly."), by_name)


def test_a_new_instruction_acts_with_its_own_vector(agent: Agent, checkpoint: Path) -> None:
    obs = np.ones(4, dtype=np.float32)
    agent.reset(seed=0)
    walk = agent.act(obs, task="walk", plan=False)
    jump = agent.act(obs, instruction="A small body. jump.", action_dim=2, plan=False)
    spin = agent.act(obs, instruction="A small body. spin around.", action_dim=2, plan=False)
    assert jump.shape == (2,)
    assert not np.array_equal(jump, walk)
    assert not np.array_equal(jump, spin)
    assert agent.act(obs, instruction="A small body. jump.", action_dim=3).shape == (3,)
    rows = len(agent.table.names)
    agent.act(obs, instruction="A small body. jump.", action_dim=2)
    assert len(agent.table.names) == rows
    agent.save_pretrained(checkpoint)
    assert list(Agent.from_pretrained(checkpoint).tasks) == ["walk", "reach", "push"]


def test_a_known_instruction_needs_no_body_and_no_capitals(agent: Agent) -> None:
    obs = obs_for(SPECS[1])
    by_name = agent.act(obs, task="reach", plan=False)
    rows = len(agent.table.names)
    assert np.array_equal(agent.act(obs, instruction="Reach the goal", plan=False), by_name)
    assert len(agent.table.names) == rows


def test_a_new_instruction_is_for_the_body_that_observes_as_much(agent: Agent) -> None:
    obs = np.ones(4, dtype=np.float32)
    short = agent.act(obs, instruction="jump", plan=False)
    assert np.array_equal(short, agent.act(obs, instruction="A small body. jump", action_dim=2, plan=False))
    assert short.shape == (2,)


def test_another_encoder_is_refused(agent: Agent) -> None:
    agent.encoder = HashedNgrams(32)
    with pytest.raises(ValueError, match=r"trained with the text encoder hashed-ngrams-16, but hashed-ngrams-32"):
        agent.act(np.ones(4), instruction="A small body. jump.", action_dim=2)


@pytest.mark.parametrize(
    ("obs", "told", "message"),
    [
        (np.ones(4), {"task": "wlak"}, "Did you mean `walk`"),
        (np.ones(4), {}, "one of the two"),
        (np.ones(4), {"task": "walk", "instruction": "walk"}, "one of the two"),
        (np.ones(4), {"task": "walk", "action_dim": 3}, "2 action dims, not action_dim=3"),
        (np.ones(3), {"instruction": "A small body. jump."}, "`action_dim` is needed"),
        (np.ones(4), {"instruction": "jump", "action_dim": 9}, "9 action dims, the model takes 1 to 3"),
        (np.ones(4), {"instruction": "jump", "action_dim": 0}, "0 action dims"),
        (np.ones(5), {"task": "walk"}, r"shape \(5,\); expected 4 \(or 6, zero-padded\)"),
        (np.ones(7), {"instruction": "A small body. jump.", "action_dim": 1}, "expected 1 to 6"),
        (np.ones((1, 1, 4)), {"task": "walk"}, r"shape \(1, 1, 4\)"),
        (np.ones((3, 4)), {"task": "walk"}, r"agent\.reset\(num_envs=3\)"),
        (np.full(4, np.nan), {"task": "walk"}, "not finite"),
    ],
)
def test_what_cannot_be_done_is_said(agent: Agent, obs: np.ndarray, told: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent.act(obs, **told)


def test_an_agent_says_what_it_is(agent: Agent) -> None:
    known = "3 tasks: walk, reach, push; obs_dim 6, action_dim 3"
    assert repr(agent) == f"Agent({known}; 1 envs on cpu)"
    agent.create_adapter("walk", ["policy"], rank=1, alpha=1.0)
    agent.reset(8)
    assert repr(agent) == f"Agent({known}; adapters: walk; 8 envs on cpu)"


def test_parts_of_different_tasks_are_refused(agent: Agent) -> None:
    with pytest.raises(ValueError, match="same tasks in the same order"):
        Agent(WorldModel(SIZES), SPECS[::-1], agent.embeddings, agent.table, PLANNER)


def test_tasks_that_do_not_fit_are_refused(agent: Agent) -> None:
    with pytest.raises(ValueError, match="known already"):
        agent.add_task(SPECS[0], embeddings_of([SPECS[0]]), 0.9)
    for spec, message in [(make_spec("wide", "w", 7, 2), "7 observation"), (make_spec("wide", "w", 2, 4), "4 action")]:
        with pytest.raises(ValueError, match=message):
            agent.add_task(spec, embeddings_of([spec]), 0.9)
    assert list(agent.tasks) == ["walk", "reach", "push"]


@pytest.mark.parametrize("backbone", ["dynamics", "shared"])
def test_a_saved_agent_with_history_acts_on_its_past_as_before(backbone: str, tmp_path: Path):
    history = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=16, backbone=backbone)  # pyright: ignore
    agent = make_agent(sizes=dataclasses.replace(SIZES, history=history))
    agent.save_pretrained(tmp_path / "checkpoint")
    loaded = Agent.from_pretrained(tmp_path / "checkpoint")
    assert loaded.model.config == agent.model.config
    last = []
    for first in (0, 0, 7):  # the third sees another first observation
        for actor in (agent, loaded):
            actor.reset(2, seed=5)
            seen = [obs_for(SPECS[0], 2, seed=seed) for seed in (first, 1, 2)]
            for obs in seen[:2]:
                actor.act(obs, task="walk", plan=False)
            last.append(actor.act(seen[2], task="walk"))
    assert all(np.array_equal(last[0], other) for other in last[:4])
    assert not np.array_equal(last[0], last[4])
    assert np.array_equal(last[4], last[5])


# --- networks per cluster of tasks ------------------------------------------------------------------------------------


@pytest.fixture
def clustered(tmp_path: Path) -> Path:
    """A checkpoint whose tasks are in the clusters 1, 0 and 1."""
    clusters = config.Clusters(
        parts=("encoder", "policy"), num=2, max_num=2, warmup_updates=1, batches=1, points=1
    )  # fmt: skip
    agent = make_agent(sizes=dataclasses.replace(SIZES, clusters=clusters))
    agent.table.columns["cluster"].copy_(torch.tensor([1, 0, 1]))
    agent.save_pretrained(tmp_path / "clustered")
    return tmp_path / "clustered"


def test_clusters_are_saved_and_a_new_task_joins_the_nearest_one(clustered: Path, tmp_path: Path, capsys) -> None:
    agent = Agent.from_pretrained(clustered)
    assert agent.table.columns["cluster"].tolist() == [1, 0, 1]
    assert agent.model.config.clusters is not None
    agent.encoder = ENCODER
    near = make_spec("reach-far", "reach the far goal", 6, 3)
    agent.add_task(near, embeddings_of([near]), 0.9)
    assert agent.nearest_tasks("reach-far", 1)[0][0] == "reach"
    agent.reset()
    agent.act(obs_for(SPECS[0]), instruction=SPECS[0].text(0) + " Walk, walk!", action_dim=2)
    assert agent.table.columns["cluster"].tolist() == [1, 0, 1, 0, 1]
    agent.create_adapter("reach-far", ("encoder", "dynamics"), rank=1, alpha=1.0)
    changed = {name.split(".lora_")[0] for name, value in agent.model.named_parameters() if value.requires_grad}
    assert changed == {"encoder.0.0.linear", "encoder.0.1.linear", *(f"dynamics.{i}.linear" for i in range(3))}
    agent.save_adapter(tmp_path / "adapter", "reach-far")
    other = Agent.from_pretrained(clustered)
    assert other.add_adapter(tmp_path / "adapter") == "reach-far"
    assert other.table.columns["cluster"].tolist() == [1, 0, 1, 0]
    assert main(["info", str(clustered)]) == 0
    assert re.search(
        r"clusters +2, each with its own encoder, policy\n +0 +reach\n +1 +walk, push", capsys.readouterr().out
    )


@pytest.mark.parametrize("wrong", [2, -1, None, True, "0"])
def test_an_impossible_cluster_is_refused(clustered: Path, wrong: object) -> None:
    path = clustered / "tasks.json"
    content = json.loads(path.read_text())
    content["tasks"][1]["cluster"] = wrong
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"`cluster` of each task must be a number from 0 to 1"):
        Agent.from_pretrained(clustered)


@pytest.mark.parametrize("num", [10**9, "auto"])
def test_an_impossible_number_of_clusters_is_refused(clustered: Path, num: object) -> None:
    path = clustered / "config.json"
    content = json.loads(path.read_text())
    content["clusters"]["num"] = num
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not hold the weights that config\.json describes"):
        Agent.from_pretrained(clustered)
