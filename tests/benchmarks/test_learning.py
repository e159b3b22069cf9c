"""The benchmark of online learning: real runs, tiny, against their control; how figures are put together."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import learning, results
from benchmarks.finetune_runs import PROJECT
from pipeline.config import read_params

SMALL = [
    "tasks.train=[mw-reach,pendulum-spin]", "tasks.held_out=[]", "tasks.pairs=[]", "teach.enabled=false",
    "demos.episodes=1", "language.encoder=hashed-ngrams-32", "language.phrasings=2", "language.head=null",
    "model.task_dim=32", "model.latent_dim=16", "model.enc_dim=16", "model.mlp_dim=16", "model.num_bins=11",
    "planner.iterations=1",
    "planner.num_samples=4", "planner.num_policy_samples=3", "planner.num_elites=2", "runtime.env_workers=0",
    "pretrain.updates=3", "pretrain.batch_size=8", "pretrain.eval_episodes=1", "finetune.env_steps=1040",
    "finetune.batch_size=8", "finetune.utd=0.1", "finetune.eval_episodes=1", "learning.value_target=returns",
]  # fmt: skip


@pytest.mark.slow
def test_ways_are_trained_from_one_base_and_stand_beside_their_control(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "my_tasks").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["--seeds", "3", "--ways", "control", "own", "--episodes", "1", "--planned", "1", "--name", "small"]
    words += ["--set", *SMALL]
    learning.main(words)
    found = json.loads((tmp_path / "learning.json").read_text(encoding="utf-8"))
    part = found["parts"]["runs.small"]
    assert set(part["policy"]) == {"control", "own", "own_minus_control"}
    assert list(part["tasks"]["own"]) == ["mw-reach", "pendulum-spin"]
    assert found["claims"]["runs.small.own_minus_control"]["target"] == 0.04
    updates = {
        way: read_params(tmp_path / f".resume/learning/small/{way}-3/params.yaml")["finetune"]["control"]
        for way in ("control", "own")
    }
    assert updates == {"control": True, "own": False}
    summaries = [
        json.loads((tmp_path / f".resume/learning/small/{way}-3/checkpoints/finetune/metrics/summary.json").read_text())
        for way in ("control", "own")
    ]
    assert summaries[0]["updates"] == summaries[1]["updates"] > 0
    assert [one["transitions"] > 0 for one in summaries] == [False, True]

    def refuse(*arguments, **options):
        raise AssertionError("it was done")

    monkeypatch.setattr(learning.finetune_runs, "_run_stage", refuse)
    monkeypatch.setattr(learning, "played", refuse)
    learning.main(words)


@pytest.mark.parametrize("words", [["--seeds", "1", "2", "1"], ["--ways", "own", "own"]])
def test_nothing_counts_twice(words, capsys):
    with pytest.raises(SystemExit):
        learning.main(words)
    assert "names one twice" in capsys.readouterr().err


def test_differences_are_taken_episode_by_episode():
    runs = {
        "control": [{"policy": {"a": [[0.0, 1.0], []], "b": [[0.5], []]}}],
        "own": [{"policy": {"a": [[0.5, 1.0], []], "b": [[1.0], []]}}],
    }
    found = learning.summed_up(runs, "policy")
    assert found["control"]["score"] == 0.5
    assert found["own_minus_control"]["score"] == pytest.approx((0.25 + 0.5) / 2)


def test_the_command_that_is_shown_measures_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    played = {"a": [[0.5, 1.0], [3.0, 5.0]]}
    done = {"policy": played, "plan": played, "seconds": 1.0, "commit": "0", "pretrained": 0.5, "curve": [0.5, 0.75]}
    monkeypatch.setattr(learning, "measure", lambda *arguments: done)
    learning.main(["--seeds", "3", "--ways", "control", "labels", "--episodes", "2"])
    shown = json.loads((tmp_path / "checkpoints/ways.json").read_text(encoding="utf-8"))
    assert shown["command"].endswith("--name default --seeds 3 --ways control labels --episodes 2 --planned 10")


def test_what_is_promised_of_labels():
    # Ten episodes by plans are held against the same ten of the policy's forty, here one against the first of two.
    one = {"policy": {"a": [[0.5, 1.0], [3.0, 9.0]]}, "plan": {"a": [[1.0], [4.0]]}, "curve": [0.5, 0.4, 0.75]}
    policy, plan = {"labels": {"score": 0.75}}, {"labels": {"score": 0.95}}
    claims = learning.claimed({"labels": [one]}, policy, plan)
    assert claims["labels_best"] == {"value": 0.95, "target": 0.93, "better": "above", "holds": True}
    assert (claims["labels_lowest_on_the_way"]["value"], claims["labels_lowest_on_the_way"]["holds"]) == (0.8, False)
    assert claims["labels_tasks_planned_better"]["value"] == 1


@pytest.mark.parametrize("word", ["learning.tau", "tau=0.1", "learnin.tau=0.1"])
def test_a_change_of_no_parameter_is_refused(word):
    with pytest.raises(SystemExit, match="--set takes `section.key=value`"):
        learning.parse_changes([word])
