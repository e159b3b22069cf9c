"""Systems put together: which model, actor and replay belong to which sizes, pairs of systems, what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.learn.replay import ReplayBuffer
from pipeline.model.actor import Actor
from pipeline.model.world_model import WorldModel
from pipeline.run.ranks import Ranks
from pipeline.systems import build
from pipeline.systems.history.past import Past
from pipeline.systems.scalezero.curriculum import Curriculum
from tests.systems.test_staged_lora import SCALING
from tests.tiny import TINY_PLANNER

HISTORY = config.History(context=3, layers=1, heads=2, dim=16, mlp_dim=24, backbone="shared")
CLUSTERS = config.Clusters(parts=("encoder", "q"), num=2, max_num=2, warmup_updates=1, batches=1, points=1)
EXPERTS = config.Experts(("dynamics", "policy"), 4, 2, 8, True, "task", 1.0, 0.1)
CLIPPED = config.Clipped(
    plan=False, every=45, passes=1, batch_size=20, ratio=0.2, gae_lambda=0.9, bonus=1.0, bonus_limit=1.0
)
SYSTEMS: dict[str, dict[str, Any]] = {
    "history": {"history": HISTORY},
    "experts": {"experts": EXPERTS},
    "clusters": {"clusters": CLUSTERS},
    "tasks": {"weighting": "harmony", "task_id_coef": 0.5},
    "scaling": {"scaling": SCALING},
    "clipped": {"clipped": CLIPPED},
}
REFUSED = [{"history", "clusters"}, {"history", "clipped"}, {"scaling", "clipped"}]
FINETUNE = config.Finetune(
    env_steps=10, utd=0.1, batch_size=8, demo_fraction=0.5, imitate="none", lr_scale=1.0, envs_per_task=1,
    warmup_updates=0, seeding_episodes=1, constraint="evidence", evidence_memory=10, constraint_steps=1,
    constraint_decay=1, replay_capacity=100, log_every=1, save_every=1, eval_every=1, eval_episodes=1,
)  # fmt: skip
PRETRAIN = config.Pretrain(
    updates=10, batch_size=8, warmup_updates=0, log_every=1, save_every=1, eval_every=1, eval_episodes=1
)


def options(systems: tuple[str, ...]) -> tuple[config.Model, config.Learning, config.Scaling | None]:
    """The sections of params.yaml that ask for these systems."""
    found = {key: value for system in systems for key, value in SYSTEMS[system].items()}
    sections = {name: {key: found[key] for key in keys if key in found} for name, keys in {
        "model": ("history", "experts", "clusters"), "learning": ("weighting", "task_id_coef", "clipped"),
    }.items()}  # fmt: skip
    model = replace(TINY, mlp_dim=24, **sections["model"])
    return model, replace(LEARNING, **sections["learning"]), found.get("scaling")


def make_learner(systems: tuple[str, ...]) -> Learner:
    sizes, learning, scaling = options(systems)
    model, table = make_model(sizes), make_table()
    table = replace(table, columns=build.task_columns(sizes, len(table.names)))
    if sizes.clusters:
        table.columns["cluster"].copy_(torch.tensor([1, 0, 1]))
    extensions = build.online_extensions(model, table, learning, scaling, seed=1)
    for extension in extensions:
        extension.start(torch.Generator().manual_seed(0))
    return Learner(model, table, learning, extensions=extensions)


def train(learner: Learner, updates: range) -> None:
    draw = torch.Generator().manual_seed(5)
    for number in updates:
        batch = make_batch(learner.table, learner.model.config, 6, seed=number)
        if learner.model.config.history:
            obs, action = torch.randn(3, 6, TINY.obs_dim, generator=draw), torch.zeros(3, 6, TINY.action_dim)
            batch = batch._replace(past=Past(obs, action, torch.arange(6) % 4))
        learner.update(batch, "online", torch.Generator().manual_seed(number))
        for extension in learner.extensions:
            if isinstance(extension, Curriculum) and number == 1:
                extension._enter(1)


def go_together(systems: tuple[str, ...]) -> bool:
    return not any(refused <= set(systems) for refused in REFUSED)


PAIRS = [pair for pair in itertools.combinations(SYSTEMS, 2) if go_together(pair)]
# As many systems at once as go together: no further one could be turned on.
MOST = [
    systems
    for number in range(3, len(SYSTEMS) + 1)
    for systems in itertools.combinations(SYSTEMS, number)
    if go_together(systems) and not any(go_together((*systems, more)) for more in SYSTEMS if more not in systems)
]


def test_every_system_is_on_in_one_of_the_largest_combinations() -> None:
    assert set().union(*MOST) == set(SYSTEMS)
    assert max(map(len, MOST)) >= 4


@pytest.mark.parametrize("systems", [*PAIRS, *MOST], ids="-".join)
def test_systems_learn_act_and_are_resumed_together(systems: tuple[str, ...], tmp_path: Path) -> None:
    sizes, learning, scaling = options(systems)
    settings = replace(FINETUNE, scaling=scaling)
    build.check_finetuning(sizes, learning, settings, make_table().names, Ranks(), 3, has_demos=True)
    straight, stopped, resumed = (make_learner(systems) for _ in range(3))
    train(straight, range(4))
    train(stopped, range(2))
    save_file({name: value.clone() for name, value in state_tensors(stopped).items()}, tmp_path / "state")
    load_state_tensors(resumed, load_file(tmp_path / "state"))
    train(resumed, range(2, 4))
    train(stopped, range(2, 4))
    expected, found = state_tensors(stopped), state_tensors(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(value.isfinite().all() for value in state_tensors(straight).values())
    model = build.plain(straight.model)
    assert model.config == sizes
    assert list(model.state_dict()) == list(build.build_model(sizes).state_dict())
    actor = build.make_actor(model, straight.table, TINY_PLANNER)
    actor.reset(3, seed=0)
    assert actor.act(torch.randn(3, TINY.obs_dim), torch.arange(3), plan=True).isfinite().all()


def test_without_systems_there_is_the_core_alone() -> None:
    model = build.build_model(TINY)
    assert type(model) is WorldModel
    assert type(build.make_actor(model, make_table(), TINY_PLANNER)) is Actor
    make_replay = build.make_replay(TINY)
    assert isinstance(make_replay, partial)
    assert (make_replay.func, make_replay.keywords) == (ReplayBuffer, {"by_steps": False})
    assert build.online_extensions(model, make_table(), LEARNING) == []
    assert build.offline_extensions(model, make_table(), LEARNING) == []
    assert build.task_columns(TINY, 3) == build.column_limits(TINY) == {}


@pytest.mark.parametrize("systems", [(), *((system,) for system in ("history", "experts", "clusters"))], ids=str)
def test_a_model_knows_the_sizes_it_was_made_with(systems: tuple[str, ...]) -> None:
    sizes, _, _ = options(systems)
    model = build.build_model(sizes)
    assert model.config == model._hub_mixin_config == sizes


def check(systems: tuple[str, ...], **changes: Any) -> None:
    sizes, learning, scaling = options(systems)
    settings = replace(FINETUNE, scaling=scaling, **changes)
    build.check_finetuning(sizes, learning, settings, make_table().names, Ranks(), 3, has_demos=True)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learning\.clipped values single steps.*set one of the two to null"):
        check(("history", "clipped"))
    with pytest.raises(ValueError, match=r"learning\.clipped values single steps.*set one of the two to null"):
        make_learner(("history", "clipped"))  # adapting, which makes no other check
    with pytest.raises(ValueError, match=r"learning\.clipped learns from new episodes alone: set one of the two"):
        check(("scaling", "clipped"))
    both, _, _ = options(("history", "clusters"))
    with pytest.raises(ValueError, match=r"model\.clusters and model\.history were never tried together"):
        build.build_model(both)
    with pytest.raises(ValueError, match=r"model\.clusters and model\.history were never tried together"):
        build.check_pretraining(replace(both, clusters=replace(CLUSTERS, num="auto")), PRETRAIN, ["a", "b", "c"])


def test_targets_of_unknown_tasks_are_refused() -> None:
    sizes, learning, _ = options(())
    settings = replace(FINETUNE, scaling=replace(SCALING, targets={"task-9": 0.5}))
    with pytest.raises(ValueError, match="targets names 'task-9', which is not in tasks.train. Did you mean"):
        build.check_finetuning(sizes, learning, settings, make_table().names, Ranks(), 3, has_demos=True)


@pytest.mark.parametrize(
    ("num_envs", "demo_fraction", "has_demos"), [(4, 0.0, True), (4, 0.5, False), (5, 0.125, True)]
)
def test_stages_on_several_ranks_need_demonstrations_on_each(
    num_envs: int, demo_fraction: float, has_demos: bool
) -> None:
    sizes, learning, scaling = options(("scaling",))
    settings, ranks = replace(FINETUNE, scaling=scaling, demo_fraction=demo_fraction), Ranks()
    args = sizes, learning, settings, make_table().names
    build.check_finetuning(*args, ranks, num_envs, has_demos)  # one process has them, or nothing that rests for ever
    ranks.count = 2
    with pytest.raises(ValueError, match="needs demonstrations for each of them"):
        build.check_finetuning(*args, ranks, num_envs, has_demos)
    build.check_finetuning(sizes, learning, replace(settings, demo_fraction=0.5), args[3], ranks, num_envs, True)


def test_clusters_need_demonstrations_and_updates() -> None:
    sizes, _, _ = options(("clusters",))
    build.check_pretraining(sizes, PRETRAIN, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"b, c have none: set it to null, or leave these tasks out of tasks\.train"):
        build.check_pretraining(sizes, PRETRAIN, ["a", "b", "c"], ["b", "c"])
    with pytest.raises(ValueError, match=r"num is 2, but 1 tasks are trained"):
        build.check_pretraining(sizes, PRETRAIN, ["a"])
    with pytest.raises(ValueError, match=r"warmup_updates is 1 and pretrain\.updates 1"):
        build.check_pretraining(sizes, replace(PRETRAIN, updates=1), ["a", "b", "c"])


def test_a_control_takes_no_part_of_own_episodes() -> None:
    control = replace(config.load(config.Finetune, "tests/tiny.yaml"), control=True, teacher="off")
    check = partial(build.check_finetuning, TINY, LEARNING, tasks=["a"], ranks=Ranks(), num_envs=1, has_demos=True)
    check(settings=control)
    with pytest.raises(ValueError, match="finetune.control makes updates on demonstrations alone"):
        check(settings=replace(control, teacher="label"))


def test_a_model_that_reads_past_steps_takes_no_values_without_them() -> None:
    with pytest.raises(ValueError, match="model.history reads past steps"):
        build._check_learning(replace(TINY, history=HISTORY), replace(LEARNING, value_target="returns"))
