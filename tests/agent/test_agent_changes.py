"""What changes an agent or a folder: nothing is lost by saving, by what is refused, or among threads."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from tests.tiny_agent import (
    ENCODER,
    NEW,
    PLANNER,
    SPECS,
    acts,
    adapted,
    embeddings_of,
    make_agent,
    make_spec,
    obs_for,
)


def change(name: str, **values) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


# --- into a folder of the user's --------------------------------------------------------------------------------------


@pytest.fixture
def proj(tmp_path: Path) -> Path:
    folder = tmp_path / "proj"
    for name in ("thesis.md", "task_embeddings/notes.md", "adapters/mine.txt", "autoencoder/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("work")
    return folder


def work_of(folder: Path) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == b"work"]
    return sorted(path.relative_to(folder).as_posix() for path in found)


@pytest.mark.parametrize("where", ["proj", "link", "."])
def test_saving_into_a_folder_adds_files_and_removes_none(
    checkpoint: Path, tmp_path: Path, proj: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = adapted(checkpoint, tmp_path / "adapter")
    work = work_of(proj)
    (tmp_path / "link").symlink_to(proj)
    monkeypatch.chdir(proj if where == "." else tmp_path)
    for seed in (1, 0):  # the second replaces the first
        make_agent(seed).save_pretrained(where)
    assert work_of(proj) == work
    assert Agent.from_pretrained(where).base == Agent.from_pretrained(checkpoint).base
    with pytest.raises(ValueError, match="holds a checkpoint, which would be damaged"):
        trained.save_adapter(where, "pull")
    trained.save_adapter(Path(where, "adapters"), "pull")
    assert work_of(proj) == work
    assert Agent.from_pretrained(where).add_adapter(where, subfolder="adapters") == "pull"
    with pytest.raises(ValueError, match="holds an adapter, which would be damaged"):
        make_agent().save_pretrained(Path(where, "adapters"))
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.rglob("*.partial"))


def test_an_agent_is_saved_over_the_checkpoint_it_came_from(checkpoint: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    agent.add_task(NEW, embeddings_of([NEW]), 0.97)
    agent.save_pretrained(checkpoint)
    assert list(Agent.from_pretrained(checkpoint).tasks) == ["walk", "reach", "push", "pull"]


@pytest.mark.parametrize("dies_at", ["model.safetensors", "tasks.json"])
def test_a_save_that_a_crash_cut_off_is_ended_by_the_next_reader(
    checkpoint: Path, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == checkpoint / dies_at:
            raise KeyboardInterrupt
        return replace(self, target)

    new = make_agent(1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(checkpoint)
    weights, found = new.model.state_dict(), Agent.from_pretrained(checkpoint).model.state_dict()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not list(checkpoint.glob(".*"))


def test_a_full_disk_is_explained_wherever_an_agent_is_saved(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = adapted(checkpoint, tmp_path / "adapter")

    def full(*_: object, **__: object) -> None:  # as safetensors says it
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    for save in (make_agent().save_pretrained, lambda folder: trained.save_adapter(folder, "pull")):
        with pytest.raises(OSError, match="no space left while writing .*Free some space and run the same"):
            save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert not list(tmp_path.rglob("*.partial"))


# --- what is refused changes nothing ----------------------------------------------------------------------------------


def state_of(agent: Agent) -> tuple:
    table = agent.table
    kept = table.names, table.discount.tolist(), table.constraint.tolist(), agent.embeddings.names, list(agent.tasks)
    trained = [name for name, parameter in agent.model.named_parameters() if parameter.requires_grad]
    return *kept, agent.adapters, trained, dict(agent._said), *(acts(agent, spec).tobytes() for spec in SPECS)


WIDE, FOREIGN = make_spec("wide", "w", 7, 2), embed(HashedNgrams(32), ["pull"], [["a", "b"]], 2)
ODD = torch.full((1, 6), torch.nan), torch.ones(1, 6)
REFUSED: dict[str, Callable[[Agent], object]] = {
    "discount": lambda agent: agent.add_task(NEW, embeddings_of([NEW]), 5.0),
    "nan discount": lambda agent: agent.add_task(NEW, embeddings_of([NEW]), float("nan")),
    "width": lambda agent: agent.add_task(WIDE, embeddings_of([WIDE]), 0.9),
    "actions": lambda agent: agent.add_task(dataclasses.replace(NEW, action_dim=4), embeddings_of([NEW]), 0.9),
    "no text": lambda agent: agent.add_task(NEW, embeddings_of(SPECS), 0.9),
    "encoder": lambda agent: agent.add_task(NEW, FOREIGN, 0.9),
    "known": lambda agent: agent.add_task(SPECS[0], embeddings_of(SPECS), 0.9),
    "observation": lambda agent: agent.act(np.full(4, np.nan), instruction="jump", action_dim=2),
    "environments": lambda agent: agent.act(np.ones((3, 4)), instruction="jump", action_dim=2),
    "too wide": lambda agent: agent.act(np.ones(9), instruction="jump", action_dim=2),
    "picture": lambda agent: agent.act(np.ones(4), instruction="jump", action_dim=2, picture=np.zeros((8, 8, 3))),
    "too many actions": lambda agent: agent.act(np.ones(4), instruction="jump", action_dim=9),
    "no environment": lambda agent: agent.reset(0),
    "negative": lambda agent: agent.reset(-2),
    "rank": lambda agent: agent.create_adapter("walk", ["policy"], rank=0, alpha=1.0),
    "part": lambda agent: agent.create_adapter("walk", ["polcy"], rank=1, alpha=1.0),
    "unknown": lambda agent: agent.create_adapter("wlak", ["policy"], rank=1, alpha=1.0),
    "grown": lambda agent: agent.grown(1, 1),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_refused_call_changes_nothing_and_the_right_one_works_after_it(agent: Agent, refused: str) -> None:
    agent.encoder = ENCODER
    before = state_of(agent)
    for _ in range(2):
        agent.reset(1)
        with pytest.raises(ValueError):  # noqa: PT011  # of what, other tests say
            REFUSED[refused](agent)
        assert agent.num_envs == 1
    assert state_of(agent) == before
    agent.add_task(NEW, embeddings_of([NEW]), 0.99)
    agent.reset()
    assert agent.act(obs_for(NEW), task="pull").shape == (2,)
    assert agent.act(np.ones(4), instruction="A small body. jump.", action_dim=2).shape == (2,)
    agent.create_adapter("walk", ["policy"], rank=1, alpha=1.0)


@pytest.mark.parametrize("given", [ODD, (torch.zeros(1, 5), torch.ones(1, 5)), (torch.zeros(1, 6), torch.zeros(1, 6))])
def test_statistics_that_do_not_fit_are_refused_and_change_nothing(given: tuple) -> None:
    made = make_agent()
    table = dataclasses.replace(made.table, obs_mean=torch.zeros(3, 6), obs_std=torch.ones(3, 6))
    agent = Agent(made.model, SPECS, made.embeddings, table, PLANNER)
    before, new = state_of(agent), dataclasses.replace(NEW, embodiment="A body of another kind.")
    with pytest.raises(ValueError, match="statistics|an observation std"):
        agent.add_task(new, embeddings_of([new]), 0.9, given)
    assert state_of(agent) == before
    agent.add_task(new, embeddings_of([new]), 0.9, (torch.zeros(1, 6), torch.ones(1, 6)))


@pytest.mark.parametrize("damage", ["weights", "config", "discount", "encoder"])
def test_a_refused_adapter_leaves_no_task_behind(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    adapted(checkpoint, tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "damaged")
    if damage == "weights":
        save_file({"a": torch.zeros(1)}, tmp_path / "damaged/adapter_model.safetensors")
    elif damage == "config":
        (tmp_path / "damaged/adapter_config.json").unlink()
    elif damage == "discount":
        change("task.json", discount=0.0)(tmp_path / "damaged")
    else:
        path = tmp_path / "damaged/task_embeddings/texts.json"
        path.write_text(path.read_text().replace("hashed-ngrams-16", "hashed-ngrams-32"))
    agent = Agent.from_pretrained(checkpoint)
    before = state_of(agent)
    for _ in range(2):
        with pytest.raises(ValueError, match="adapter|discount|embedded by"):
            agent.add_adapter(tmp_path / "damaged")
        assert state_of(agent) == before
    assert agent.add_adapter(tmp_path / "adapter") == "pull"
    after = state_of(agent)
    with pytest.raises(ValueError, match="already an adapter called 'pull'"):
        agent.add_adapter(tmp_path / "adapter")
    assert state_of(agent) == after


# --- threads ----------------------------------------------------------------------------------------------------------


def in_threads(work: Callable[[int], object], count: int = 4) -> list:
    """What a function returns for 0 to `count` - 1, run in as many threads that switch as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(work, range(count)))
    finally:
        sys.setswitchinterval(interval)


def test_threads_give_one_agent_new_instructions(agent: Agent) -> None:
    def text(thread: int, number: int) -> str:
        return f"A small body. do {number} things in way {thread}."

    def act(agent: Agent, thread: int, number: int) -> np.ndarray:
        return agent.act(np.ones(4), instruction=text(thread, number), action_dim=2, plan=False)

    agent.encoder = ENCODER
    found = in_threads(lambda thread: [act(agent, thread, number) for number in range(4)])
    assert len(agent.table.names) == len(set(agent.table.names)) == 3 + 16
    assert agent.embeddings.names == agent.table.names
    alone = make_agent()
    alone.encoder = ENCODER
    for thread in range(4):
        for number in range(4):
            assert np.array_equal(found[thread][number], act(alone, thread, number))


def test_threads_act_with_adapters_and_add_tasks_at_once(checkpoint: Path, tmp_path: Path) -> None:
    for seed, spec in enumerate(SPECS[:2]):
        adapted(checkpoint, tmp_path / spec.name, spec, seed)
    agent = Agent.from_pretrained(checkpoint)
    for spec in SPECS[:2]:
        agent.add_adapter(tmp_path / spec.name)
    agents = [agent.with_planner(PLANNER) for _ in range(4)]  # each with episodes of its own
    told = [SPECS[0], SPECS[1], SPECS[2], SPECS[0]]
    expected = [acts(agent, spec) for spec in told]

    def work(thread: int) -> list[bool]:
        same = []
        for number in range(5):
            new = make_spec(f"new-{thread}-{number}", f"do {number} things in way {thread}", 4, 2)
            agent.add_task(new, embeddings_of([new]), 0.9)
            same.append(np.array_equal(acts(agents[thread], told[thread]), expected[thread]))
        return same

    assert in_threads(work) == [[True] * 5] * 4
    assert len(agent.tasks) == len(agent.table.names) == 3 + 20


def test_a_grown_agent_keeps_everything_but_sizes_and_base(checkpoint: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    agent.encoder, agent.commit = HashedNgrams(16), "0" * 40
    agent.act(obs_for(SPECS[0]), instruction="jump", action_dim=2)
    agent.add_task(NEW, embeddings_of([NEW]), 0.97)
    agent.act(obs_for(SPECS[0]), instruction="turn around", action_dim=2)
    grown = agent.grown(9, 5)
    sized = {"model", "actor", "base", "commit", "_lock", "_adapters"}
    for name, value in vars(agent).items():
        assert name in sized or value == getattr(grown, name), name
    assert grown.table.names == agent.table.names
    told = [{"task": "pull"}, {"instruction": "jump", "action_dim": 2}, {"instruction": "climb", "action_dim": 3}]
    for one in told:
        assert grown.act(obs_for(NEW), **one, plan=False) == pytest.approx(
            agent.act(obs_for(NEW), **one, plan=False), rel=1e-4, abs=1e-6
        )
    before = state_of(agent)
    grown.reset(1)
    grown.act(np.ones(9), instruction="fly", action_dim=5)
    grown.create_adapter("walk", ["policy"], rank=1, alpha=1.0)
    assert state_of(agent) == before


def test_an_agent_is_copied_whole(agent: Agent) -> None:
    before, twin = state_of(agent), copy.deepcopy(agent)
    twin.create_adapter("walk", ["policy"], rank=1, alpha=1.0)
    twin.add_task(NEW, embeddings_of([NEW]), 0.9)
    assert state_of(agent) == before
