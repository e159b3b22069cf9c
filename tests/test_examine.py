"""Demonstrations looked at: what is found, and that nothing is found in good ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.adapt import introduce
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.config import Learning, load
from pipeline.data.demos import write_episodes
from pipeline.data.episode import Episode
from pipeline.examine import Limits, Reference, apart, examine, unlike
from pipeline.tasks.spec import TaskSpec
from tests.tiny_agent import NEW, PLANNER, SIZES, SPECS, embeddings_of, make_agent

SPEC = SPECS[1]  # reach: observes 6 values, takes 3 action dims, 50 steps
ROOT = Path(__file__).parent.parent


def play(
    spec: TaskSpec = SPEC, count: int = 6, length: int = 20, seed: int = 0,
    change: Callable[[np.ndarray], np.ndarray] = lambda obs: obs,
) -> list[Episode]:  # fmt: skip
    """Made-up demonstrations: positions around half a metre that move by centimetres."""
    rng = np.random.default_rng(seed)
    episodes = []
    for number in range(count):
        obs = change(0.5 + 0.05 * rng.normal(size=(length + 1, spec.obs_dim))).astype(np.float32)
        action = rng.uniform(-1, 1, (length, spec.action_dim)).astype(np.float32)
        reward = rng.uniform(0, 20, length).astype(np.float32)
        total = float(reward.sum(dtype=np.float64))
        score = spec.evaluate(total, True)
        episodes.append(Episode(spec.name, obs, action, action, reward, False, True, score, total, number, "hand"))
    return episodes


def found(episodes: list[Episode], known: Reference | None = None) -> list[str]:
    examined = examine(SPEC.name, episodes, SPEC, known, Limits.of(SIZES, PLANNER))
    return [f"{'FAIL' if finding.wrong else 'note'} {finding.text}" for finding in examined.findings]


def body(seed: int = 1) -> Reference:
    return Reference.of("the body", play(count=20, seed=seed))


def test_good_demonstrations_give_no_finding() -> None:
    assert found(play(), body()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda obs: 1000 * obs, r"varies [\d.e+]+ times as much as the body\. Other units"),
        (lambda obs: obs / 1000, "of the observed values lie more than|varies 0.001 times"),
        (lambda obs: obs + np.eye(6)[2], r"in dims 2; dim 2 is 1\.\S+ ± \S+ here and 0\.\S+ ± \S+ there\. Other units"),
    ],
    ids=["millimetres", "kilometres", "shifted by a metre"],
)
def test_other_units_are_seen_beside_a_known_body(change, message: str) -> None:
    texts = found(play(change=change), body())
    assert texts[0].startswith("FAIL")
    assert any(re.search(message, text) for text in texts), texts


def test_outliers_and_tasks_that_use_a_part_of_the_space_are_like_the_body() -> None:
    obs = np.concatenate([episode.obs for episode in play()])
    obs[0, 0] = 100.0
    assert unlike(obs, body()) == []
    obs = np.concatenate([episode.obs for episode in play()])
    obs[:, 3] = 0.55  # a goal that stands still
    assert unlike(obs, body()) == []


def test_one_dim_of_many_that_no_other_task_moves_so_is_said_and_not_wrong() -> None:
    obs = np.concatenate([episode.obs for episode in play()]).repeat(3, 1)  # of 18 dims
    known = Reference("the body", body().mean.repeat(3), body().std.repeat(3))
    obs[:, 4] += 1
    (finding,) = unlike(obs, known)
    assert not finding.wrong
    assert "6 % of the observed values" in finding.text
    assert "in dims 4;" in finding.text


def partly(change: Callable[[np.ndarray], np.ndarray], which: slice) -> list[Episode]:
    episodes = play(count=8)
    for number in range(*which.indices(8)):
        episodes[number] = dataclasses.replace(episodes[number], obs=change(episodes[number].obs).astype(np.float32))
    return episodes


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (partly(lambda obs: 1000 * obs, slice(4, 8)), r"vary [\d.]+e\+0[23] times (more|less) than the others"),
        (partly(np.rad2deg, slice(3, 5)), r"episodes 3-4 vary \d+ times more than the others"),
        (partly(lambda obs: obs + np.eye(6)[2] + np.eye(6)[4], slice(4, 8)), "dims 2, 4: another origin"),
        (partly(lambda obs: obs - 2, slice(0, 2)), "episodes 0-1 lie far from all others in observation dims 0-5:"),
    ],
    ids=["half in millimetres", "two in degrees", "half shifted", "two shifted"],
)
def test_episodes_unlike_the_others_are_named(episodes: list[Episode], message: str) -> None:
    assert any(re.search(message, finding.text) for finding in apart(episodes)), apart(episodes)


@pytest.mark.parametrize("seed", range(20))
def test_goals_of_each_episode_are_no_other_origin(seed: int) -> None:
    goals = np.random.default_rng(seed).uniform(-1, 1, (10, 2))
    episodes = play(count=10, seed=seed)
    for number, goal in enumerate(goals):
        obs = np.concatenate([episodes[number].obs[:, :4], np.tile(goal, (21, 1))], 1).astype(np.float32)
        episodes[number] = dataclasses.replace(episodes[number], obs=obs)
    assert apart(episodes) == []


def test_adapting_says_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    episodes = [dataclasses.replace(one, action=one.action / 1000) for one in partly(lambda obs: obs - 2, slice(0, 2))]
    introduce(make_agent(), SPEC, embeddings_of([SPEC]), episodes, load(Learning, ROOT / "params.yaml"), 0)
    said = capsys.readouterr().err
    assert "adapt reach: episodes 0-1 lie far from all others" in said
    assert "adapt reach: no action is larger than 0.001" in said


def with_one(**values) -> list[Episode]:
    episodes = play()
    return [dataclasses.replace(episodes[0], **values), *episodes[1:]]


def shortened(to: int) -> list[Episode]:
    one = play()[0]
    reward = one.reward[:to]
    total = float(reward.sum(dtype=np.float64))
    return with_one(
        obs=one.obs[: to + 1], action=one.action[:to], expert_action=one.expert_action[:to], reward=reward,
        episode_return=total, score=SPEC.evaluate(total, True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (shortened(2), "note episodes 0 are shorter than planner.horizon 3: learning leaves them out"),
        (shortened(2)[:1], "FAIL episodes 0 are shorter than planner.horizon 3: learning refuses them"),
        ([*play(), play()[2]], "FAIL 1 episodes are copies of others: 2, 6"),
        (play(length=60), "FAIL episodes 0-5 are longer than the task's 50 steps"),
        (with_one(task="walk"), "FAIL filed under reach, and of walk"),
        (with_one(score=0.5), "FAIL the scores of episodes 0 are not those of the rule 'return/1000'"),
        (with_one(reward=np.full(20, 500, np.float32), episode_return=1e4, score=1.0),
         "FAIL rewards reach 500, the model tells them up to 147.4"),
        (play(change=lambda obs: np.where(np.arange(6) == 4, 1e-5 * obs, obs)),
         "note observation dims 4 vary by less than 0.001"),
        (play(change=lambda obs: np.where(np.arange(6) > 3, 2.0, obs)), "note observation dims 4-5 never change"),
    ],
    ids=["short", "all short", "copy", "long", "other task", "score", "rewards", "hardly", "still"],
)  # fmt: skip
def test_what_is_found(episodes: list[Episode], message: str) -> None:
    assert any(text.startswith(message) for text in found(episodes)), found(episodes)


def test_actions_and_rewards_that_say_nothing() -> None:
    small = [
        dataclasses.replace(one, action=one.action / 50, reward=np.zeros(20, np.float32), episode_return=0, score=0)
        for one in play()
    ]
    texts = found(small)
    assert any("no action is larger than 0.02" in text for text in texts)
    assert any("every reward is 0" in text for text in texts)
    assert any("episodes 0-5 end with a score of 0" in text for text in texts)


# --- adapting ---------------------------------------------------------------------------------------------------------


def test_an_unknown_reward_is_said_and_hides_nothing_else() -> None:
    bare = {"reward": np.full(20, np.nan, np.float32), "episode_return": np.nan, "score": np.nan}
    some = [dataclasses.replace(episode, **bare) if number < 2 else episode for number, episode in enumerate(play())]
    expected = "note reward unknown in 2 of 6 episodes: policy and dynamics learn from them, reward and value do not"
    assert found(some, body()) == [expected]
    some[5] = dataclasses.replace(some[5], score=0.9)
    assert any("the scores of episodes 5 are not those of the rule" in one for one in found(some))
    assert any(
        "reward unknown in all episodes" in one for one in found([dataclasses.replace(one, **bare) for one in some])
    )


def normalising_agent() -> Agent:
    """An agent that knows how its one body observes."""
    plain, reference = make_agent(), body()
    rows = len(plain.table.names)
    table = dataclasses.replace(
        plain.table,
        obs_mean=torch.tensor(reference.mean, dtype=torch.float32).expand(rows, -1).contiguous(),
        obs_std=torch.tensor(reference.std, dtype=torch.float32).expand(rows, -1).contiguous(),
    )
    return Agent(plain.model, SPECS, plain.embeddings, table, PLANNER)


@pytest.mark.parametrize("spec", [NEW, SPECS[2]], ids=["new task", "known task"])
def test_adapting_says_that_demonstrations_are_in_other_units(spec: TaskSpec, capsys) -> None:
    learning = load(Learning, ROOT / "tests/tiny.yaml")
    agent = normalising_agent()
    introduce(agent, spec, embeddings_of([spec]), play(spec), learning, 0)
    assert "Other units" not in capsys.readouterr().err
    agent = normalising_agent()
    introduce(agent, spec, embeddings_of([spec]), play(spec, change=lambda obs: 1000 * obs), learning, 0)
    assert f"adapt {spec.name}: 100 % of the observed values lie more than 10" in capsys.readouterr().err


# --- the command ------------------------------------------------------------------------------------------------------

TASK = """\
{{name: {name}, suite: gymnasium, env_id: Pendulum-v1, embodiment: A small body., instructions: ["{name}."],
 obs_dim: 6, action_dim: 3, action_repeat: 1, episode_length: 50, score: return/1000}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Two tasks of one body, and demonstrations of both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"mine/{name}.yaml").write_text(TASK.format(name=name))
        spec = dataclasses.replace(SPEC, name=name)
        write_episodes(f"mine/demos/{name}/episodes.parquet", play(spec, seed=ord(name[0])))
    return tmp_path


def test_the_command_prints_a_table_and_writes_a_page(folder: Path, capsys) -> None:
    command = ["check-data", "mine/demos", "--folder", "mine", "--page", "page.html"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "one" in shown
    assert "ok    nothing was found" in shown
    page = Path("page.html").read_text()
    assert page.count("<svg") == 10
    assert not any(text in page for text in ("http://", "https://", "<script", "src="))
    evil = dataclasses.replace(SPEC, name="two")
    write_episodes("mine/demos/two/episodes.parquet", play(evil, seed=3, change=lambda obs: 1000 * obs))
    assert main(command) == 2
    shown = capsys.readouterr().out
    assert "FAIL  two: " in shown
    assert "the demonstrations of one (same body)" in shown
    assert "Other units" in Path("page.html").read_text()


def test_the_command_finds_demonstrations_filed_twice(folder: Path, capsys) -> None:
    twice = [
        dataclasses.replace(episode, task="two") for episode in play(dataclasses.replace(SPEC, name="one"), seed=111)
    ]
    write_episodes("mine/demos/two/episodes.parquet", [*play(dataclasses.replace(SPEC, name="two"), seed=1), twice[3]])
    assert main(["check-data", "mine/demos", "--folder", "mine", "--page", "page.html"]) == 2
    shown = capsys.readouterr().out
    assert "FAIL  one: 1 episodes are also filed under two" in shown
    assert "FAIL  two: 1 episodes are also filed under one" in shown
    page = Path("page.html").read_text()
    assert page.count("also filed under") == 2
    assert page.count("Every action dim") == 2


def test_the_command_goes_on_past_a_file_that_cannot_be_read(folder: Path, capsys) -> None:
    Path("mine/demos/two/episodes.parquet").write_bytes(b"PAR1 <b>not</b> parquet")
    assert main(["check-data", "mine/demos", "--folder", "mine", "--page", "page.html"]) == 2
    shown = capsys.readouterr().out
    assert "FAIL  mine/demos/two/episodes.parquet is not readable parquet" in shown
    assert "\none " in shown
    assert main(["check-data", "mine", "--folder", "mine"]) == 2
    assert "neither mine/episodes.parquet nor mine/TASK/episodes.parquet" in capsys.readouterr().err


def test_the_command_compares_with_a_checkpoint(folder: Path, capsys) -> None:
    normalising_agent().save_pretrained("agent")
    command = ["check-data", "mine/demos/one", "--folder", "mine", "--checkpoint", "agent", "--page", "page.html"]
    assert main(command) == 0
    write_episodes(
        "mine/demos/one/episodes.parquet", play(dataclasses.replace(SPEC, name="one"), change=lambda o: o + 1)
    )
    assert main(command) == 2
    assert "what the checkpoint knows of the body of walk" in capsys.readouterr().out
