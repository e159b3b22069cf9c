"""`eft adapt --into`: a new version of a checkpoint that knows one task more, and still the others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.data.demos import read_episodes, write_episodes
from pipeline.merge import played, rehearsal
from pipeline.tasks import registry
from tests.test_adapt import prepare, record_demos

MERGE = ["adapt", "base", "--task", "swing.yaml", "--into", "new"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint that knows `hang`, demonstrations of `swing`, and of `hang` for the rehearsal."""
    prepare(tmp_path, Path("base"))
    monkeypatch.chdir(tmp_path)
    record_demos(Path("demos"), 2)
    others = [dataclasses.replace(one, task="hang") for one in read_episodes("demos/episodes.parquet", "this test")]
    write_episodes("old/hang/episodes.parquet", others)
    return tmp_path / "base"


@pytest.mark.slow
def test_a_task_goes_into_a_new_checkpoint_and_the_others_are_played_before_and_after(base: Path, capsys):
    weights = (base / "model.safetensors").read_bytes()
    assert main([*MERGE, "--demos", "demos", "--rehearse", "old", "--debug"]) == 0
    assert "the new checkpoint: new" in capsys.readouterr().out
    assert (base / "model.safetensors").read_bytes() == weights
    summary = json.loads(Path("new/metrics/summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"]) == {"swing", "hang"}
    assert (summary["rehearsed"], summary["demonstrations"]) == (["hang"], 2)
    agent = Agent.from_pretrained("new")
    assert list(agent.tasks) == ["hang", "swing"]
    assert agent.base != Agent.from_pretrained("base").base
    agent.reset(seed=0)
    assert agent.act(np.ones(3), task="swing").shape == (1,)
    assert not list(Path(".resume").glob("merge-*"))  # nothing is left to go on with
    assert main([*MERGE, "--demos", "demos", "--rehearse", "old"]) == 2
    assert "new is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_what_an_adapter_plays_goes_in_too(base: Path):
    assert main(["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--env-steps", "0", "--no-video"]) == 0
    assert main([*MERGE, "--adapter", "adapted/swing", "--rehearse", "old", "--debug"]) == 0
    assert json.loads(Path("new/metrics/summary.json").read_text())["demonstrations"] > 0
    assert Agent.from_pretrained("new").adapters == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demos", "demos"], "--into needs --rehearse"),
        (["--rehearse", "old"], "--into learns from demonstrations"),
        (["--demos", "demos", "--rehearse", "old", "--env-steps", "9"], "leave --env-steps and --output out"),
        (["--demos", "demos", "--rehearse", "demos"], "what is not rehearsed is forgotten"),
        (["--demos", "demos", "--rehearse", "old", "--updates", "0"], "adapt.pretrain.updates"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_written(base: Path, capsys, arguments, message):
    assert main([*MERGE, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("new").exists()


def test_rehearsal_without_into_is_refused(base: Path, capsys):
    assert main(["adapt", "base", "--task", "swing.yaml", "--demos", "demos", "--rehearse", "old"]) == 2
    assert "--rehearse goes with --into" in capsys.readouterr().err


def test_a_share_is_a_part_of_a_batch(base: Path, capsys):
    with pytest.raises(SystemExit):
        main([*MERGE, "--demos", "demos", "--rehearse", "old", "--share", "1"])
    assert "between 0 and 1" in capsys.readouterr().err


def test_demonstrations_of_another_task_are_not_rehearsed(base: Path):
    write_episodes("old/hang/episodes.parquet", read_episodes("demos/episodes.parquet", "this test"))
    with pytest.raises(ValueError, match="holds demonstrations of swing, expected hang alone"):
        rehearsal(Agent.from_pretrained("base"), Path("old"), "swing")


def test_only_episodes_at_or_above_the_mean_are_kept(base: Path, monkeypatch):
    agent, spec = Agent.from_pretrained("base"), registry.load_file(Path("swing.yaml"))
    agent.add_task(spec, agent.embed(spec), 0.95)
    scores = iter([0.2, 0.6, 0.4])
    real = read_episodes("demos/episodes.parquet", "this test")[0]
    monkeypatch.setattr(
        "pipeline.merge.record", lambda env, act, seed, method: dataclasses.replace(real, score=next(scores), seed=seed)
    )
    assert [(one.score, one.seed) for one in played(agent, spec, 3, 10)] == [(0.6, 11), (0.4, 12)]
    monkeypatch.setattr("pipeline.merge.record", lambda *arguments: dataclasses.replace(real, score=0.0))
    with pytest.raises(ValueError, match="scores 0 in 3 episodes"):
        played(agent, spec, 3, 10)
