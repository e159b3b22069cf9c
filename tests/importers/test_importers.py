"""Imports of files that the real packages wrote: tensordict 0.10, Minari 0.5.4, LeRobot 0.4.4 (form v3.0)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import golden
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.data.demos import load_demos
from pipeline.importers import lerobot, minari, newt
from pipeline.importers.episodes import Reading, import_episodes
from pipeline.language.encoder import CLIP
from pipeline.tasks.spec import SUCCESS, TaskSpec

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT, FIXTURE = DATA / "newt_tiny_checkpoint.pt", DATA / "newt_tiny.safetensors"


def make_spec(name: str, obs_dim: int, action_dim: int, length: int, score: str = "return/1000") -> TaskSpec:
    return TaskSpec(
        name=name, suite="gymnasium", env_id="Pendulum-v1", embodiment="A body.", instructions=(f"do {name}",),
        obs_dim=obs_dim, action_dim=action_dim, action_repeat=1, episode_length=length, score=score,
    )  # fmt: skip


PENDULUM = make_spec("pendulum", 3, 1, 6, "clip((return+15)/15,0,1)")
PUSH = make_spec("push", 6, 2, 9, SUCCESS)


# --- Newt's demonstrations --------------------------------------------------------------------------------------------


def newt_columns() -> dict[str, torch.Tensor]:
    return newt._load(DATA / "newt_demos.pt")


def save(columns: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    torch.save({"_tensordict": columns}, tmp_path / "demos.pt")
    return tmp_path / "demos.pt"


def test_newt_demonstrations_are_cut_at_their_nan_rows(tmp_path: Path) -> None:
    spec = make_spec("walk", 4, 2, 5)
    report = import_episodes(newt.read_demos(DATA / "newt_demos.pt", spec), spec, "walk.pt", None, Reading(), tmp_path)
    assert (report.found, report.kept, report.steps, report.left_out) == (2, 2, 10, [])
    assert report.ignored == ["feat", "value"]
    columns = newt_columns()
    episodes = load_demos(tmp_path, "walk")
    for number, episode in enumerate(episodes):
        rows = slice(6 * number, 6 * number + 6)
        assert np.array_equal(episode.obs, columns["obs"][rows].numpy())
        assert np.array_equal(episode.action, columns["action"][rows][1:].numpy())
        assert np.array_equal(episode.reward, columns["reward"][rows][1:].numpy())
    assert json.loads((tmp_path / "walk/import.json").read_text())["sha256"].keys() == {"newt_demos.pt"}


def test_newt_s_padding_is_taken_off_and_must_be_zero(tmp_path: Path) -> None:
    columns, spec = newt_columns(), make_spec("walk", 4, 2, 5)
    columns["obs"] = torch.nn.functional.pad(columns["obs"], (0, 124))
    columns["action"] = torch.nn.functional.pad(columns["action"], (0, 14))
    columns["action"][[0, 6]] = torch.nan
    source = newt.read_demos(save(columns, tmp_path), spec)
    assert import_episodes(source, spec, "x", None, Reading(), tmp_path).kept == 2
    assert load_demos(tmp_path, "walk")[0].obs.shape == (6, 4)
    columns["obs"][7, 100] = 1
    report = import_episodes(newt.read_demos(save(columns, tmp_path), spec), spec, "x", None, Reading(), tmp_path)
    assert [entry["episode"] for entry in report.left_out] == [1]
    assert "not only zeros" in str(report.left_out[0]["reason"])


def test_newt_episodes_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    columns, spec = newt_columns(), make_spec("walk", 4, 2, 5)
    columns["action"][6] = 0.5
    report = import_episodes(newt.read_demos(save(columns, tmp_path), spec), spec, "x", None, Reading(), tmp_path)
    assert "NaN was expected" in str(report.left_out[0]["reason"])
    columns["reward"][3] = torch.nan
    with pytest.raises(ValueError, match=r"none of the 2 episodes(.|\n)*its reward is missing at step 2"):
        import_episodes(newt.read_demos(save(columns, tmp_path), spec), spec, "x", None, Reading(), tmp_path)
    with pytest.raises(ValueError, match="at most 4"):
        short = make_spec("walk", 4, 2, 4)
        import_episodes(newt.read_demos(DATA / "newt_demos.pt", short), short, "x", None, Reading(), tmp_path)


def test_a_newt_episode_whose_end_is_missing_is_left_out(tmp_path: Path) -> None:
    columns, spec = newt_columns(), make_spec("walk", 4, 2, 5)
    columns["terminated"] = torch.zeros(12)
    columns["terminated"][[0, 6, 9]] = torch.nan
    report = import_episodes(newt.read_demos(save(columns, tmp_path), spec), spec, "x", None, Reading(), tmp_path)
    assert report.left_out == [{"episode": 1, "reason": "`terminated` is missing at step 2"}]


def test_success_is_only_taken_for_granted_where_the_generator_grants_it(tmp_path: Path) -> None:
    granted, other = make_spec("mw-reach", 4, 2, 5, SUCCESS), make_spec("og-ant", 4, 2, 5, SUCCESS)
    report = import_episodes(newt.read_demos(DATA / "newt_demos.pt", granted), granted, "x", None, Reading(), tmp_path)
    assert "keeps no others" in report.notes[0]
    assert load_demos(tmp_path, "mw-reach")[0].score == 1
    with pytest.raises(ValueError, match="say --successful"):
        import_episodes(newt.read_demos(DATA / "newt_demos.pt", other), other, "x", None, Reading(), tmp_path)
    import_episodes(
        newt.read_demos(DATA / "newt_demos.pt", other), other, "x", None, Reading(successful=True), tmp_path
    )


# --- Newt's checkpoints -----------------------------------------------------------------------------------------------


def three() -> dict[str, TaskSpec]:
    specs = [make_spec(name, 24, width, 50) for name, width in (("a", 6), ("b", 2), ("c", 1))]
    return {spec.name: spec for spec in specs}


def test_the_golden_numbers_come_out_of_the_imported_model(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('["a", "b", "c"]')
    agent, left_out = newt.import_checkpoint(CHECKPOINT, three(), tmp_path / "tasks.json")
    agent.save_pretrained(tmp_path / "agent")
    loaded = Agent.from_pretrained(tmp_path / "agent")
    assert (list(loaded.tasks), left_out) == (["a", "b", "c"], [])
    fixture = golden.Fixture(FIXTURE, CHECKPOINT)
    fixture.newt = fixture.newt._replace(state_dict=dict(loaded.model.state_dict()), model=loaded.model.config)
    errors = golden.compare(fixture)
    assert {key: value for key, value in errors.items() if value > golden.TOLERANCE} == {}
    assert torch.equal(loaded.table.embeddings[:, 0], fixture.newt.task_embeddings)
    assert torch.equal(loaded.table.action_mask, fixture.newt.action_mask)
    assert loaded.embeddings.encoder == CLIP
    assert loaded.act(np.zeros(24), instruction="Do b.").shape == (2,)


def test_rows_are_named_by_their_vectors(tmp_path: Path) -> None:
    vectors = torch.load(CHECKPOINT, weights_only=True)["model"]["_task_emb.weight"]
    # In another order, with one more; two tasks share a vector, as those of one text do.
    entries = {"c": vectors[2], "other": -vectors[0], "a": vectors[0], "b": vectors[1]}
    content = {name: {"instruction": "x", "text_embedding": vector.tolist()} for name, vector in entries.items()}
    (tmp_path / "tasks.json").write_text(json.dumps(content))
    agent, _ = newt.import_checkpoint(CHECKPOINT, three(), tmp_path / "tasks.json")
    assert list(agent.tasks) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, "the official checkpoints have 200"),
        (["a", "b"], "names 2"),
        (["b", "a", "c"], "another order"),
        (["x", "y", "z"], "the catalogue has none"),
        ([1, 2, 3], "expected a list of different task names"),
        ({"a": {"text_embedding": [0.0] * 16}}, "no task of the file has the text embedding of row 0"),
    ],
)
def test_tasks_that_are_not_those_of_the_checkpoint(tasks, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=message):
        newt.import_checkpoint(CHECKPOINT, three(), tmp_path / "tasks.json" if tasks else None)


def test_tasks_the_catalogue_lacks_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('["x", "b", "c"]')
    agent, left_out = newt.import_checkpoint(CHECKPOINT, three(), tmp_path / "tasks.json")
    assert (list(agent.tasks), left_out) == (["b", "c"], ["x"])


def test_a_single_task_checkpoint_is_said_to_be_one(tmp_path: Path) -> None:
    saved = torch.load(CHECKPOINT, weights_only=True)
    del saved["model"]["_task_emb.weight"]
    torch.save(saved, tmp_path / "single.pt")
    with pytest.raises(ValueError, match="single-task"):
        newt.import_checkpoint(tmp_path / "single.pt", three(), None)


def test_the_official_order_has_200_tasks() -> None:
    names = newt.TASK_ORDER.read_text().split()
    assert len(set(names)) == 200
    assert names[0] == "walker-stand"


# --- Minari -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["hdf5", "parquet"])
def test_minari_episodes_are_those_that_were_played(form: str, tmp_path: Path) -> None:
    source = minari.read_demos(DATA / "minari" / form, PENDULUM)
    report = import_episodes(source, PENDULUM, "pendulum", "0" * 40, Reading(), tmp_path)
    assert (report.found, report.kept, report.steps, report.commit) == (3, 3, 18, "0" * 40)
    import gymnasium

    env = gymnasium.make("Pendulum-v1")
    for episode in load_demos(tmp_path, "pendulum"):
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_allclose(episode.obs[0], obs, rtol=1e-6)
        for step, action in enumerate(episode.action):
            obs, reward, *_ = env.step(2 * action)  # its bounds are [-2, 2]
            np.testing.assert_allclose(episode.obs[step + 1], obs, atol=1e-4)
            assert episode.reward[step] == pytest.approx(reward, abs=1e-4)
    assert report.left_out == []


def test_minari_episodes_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    shutil.copytree(DATA / "minari/parquet", tmp_path / "set")
    (tmp_path / "set/data/1/part-0.parquet").write_bytes(b"PAR1 not parquet")
    report = import_episodes(minari.read_demos(tmp_path / "set", PENDULUM), PENDULUM, "x", None, Reading(), tmp_path)
    assert [entry["episode"] for entry in report.left_out] == [1]
    with pytest.raises(ValueError, match="no Box of 2 values"):
        minari.read_demos(DATA / "minari/hdf5", make_spec("two", 3, 2, 6))
    wide = make_spec("wide", 4, 1, 6)
    with pytest.raises(ValueError, match=r"shape \(7, 3\), expected 4"):
        import_episodes(minari.read_demos(DATA / "minari/hdf5", wide), wide, "x", None, Reading(), tmp_path)


# --- LeRobot ----------------------------------------------------------------------------------------------------------


def test_lerobot_episodes_lose_their_last_action_and_say_so(tmp_path: Path) -> None:
    source = lerobot.read_demos(DATA / "lerobot", PUSH, "push the block")
    report = import_episodes(source, PUSH, "lerobot", None, Reading(), tmp_path)
    assert (report.found, report.kept, report.steps) == (2, 2, 4 + 5)
    assert "last action" in report.notes[1]
    rng = np.random.default_rng(0)  # what the data set was made with
    first = load_demos(tmp_path, "push")[0]
    for step in range(5):
        state, rest, action = rng.normal(size=4), rng.normal(size=2), rng.uniform(-1, 1, 2)
        np.testing.assert_allclose(first.obs[step], np.concatenate([state, rest]), rtol=1e-5)
        if step < 4:
            np.testing.assert_allclose(first.action[step], action, rtol=1e-5)
    assert first.reward.tolist() == [0, 1, 2, 3]
    assert [episode.success for episode in load_demos(tmp_path, "push")] == [True, True]


@pytest.mark.parametrize(
    ("only", "spec", "message"),
    [
        (None, PUSH, "holds several tasks. Choose one with --only: push the block; pull the block"),
        ("push the blok", PUSH, "Did you mean `push the block`"),
        (
            "push the block",
            make_spec("p", 4, 2, 9),
            "environment_state 2, 6 values together; p observes 4. Of this width: --features observation.state",
        ),
    ],
)
def test_lerobot_data_that_do_not_fit(only: str | None, spec: TaskSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lerobot.read_demos(DATA / "lerobot", spec, only)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.update(codebase_version="v1.6"), "version 'v1.6'; v2.0, v2.1 and v3 are read"),
        (lambda info: info.update(features=[]), "`features` is not an object"),
    ],
)
def test_lerobot_descriptions_that_lack_something(change, message: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "lerobot", tmp_path / "set")
    path = tmp_path / "set/meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        lerobot.read_demos(tmp_path / "set", PUSH, "push the block")


# --- the command ------------------------------------------------------------------------------------------------------

TASK = """\
{name: pendulum, suite: gymnasium, env_id: Pendulum-v1, embodiment: A pole., instructions: [Swing up.], obs_dim: 3,
 action_dim: 1, action_repeat: 1, episode_length: 6, score: "clip((return+15)/15,0,1)"}
"""


def test_the_command_writes_where_the_demos_stage_looks(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pendulum.yaml").write_text(TASK)
    command = ["import", "minari", str(DATA / "minari/hdf5"), "--task", "pendulum", "--folder", "mine"]
    assert main(command) == 0
    assert "3 of 3 episodes of pendulum, 18 steps" in capsys.readouterr().out
    assert len(load_demos("mine/demos", "pendulum")) == 3
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["import", "minari", "nowhere", "--task", "pendulum", "--folder", "mine", "--out", "x"]) == 2
    assert "neither a folder that exists nor a repo id" in capsys.readouterr().err


def test_the_command_imports_a_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pendulum.yaml").write_text(TASK)
    (tmp_path / "tasks.json").write_text('["x", "y", "pendulum"]')
    command = ["import", "newt-checkpoint", str(CHECKPOINT), "--tasks", "tasks.json", "--folder", "mine"]
    assert main([*command, "--out", "agent"]) == 0
    assert "left out, since the catalogue does not have them: x, y" in capsys.readouterr().out
    assert Agent.from_pretrained("agent").act(np.zeros(3), task="pendulum").shape == (1,)
    record = json.loads((tmp_path / "agent/import.json").read_text())
    assert len(record["sha256"]) == 64
