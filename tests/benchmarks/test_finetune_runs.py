"""Runs of finetuning that differ in a few parameters: what is read off one that is done."""

from __future__ import annotations

import pytest

from benchmarks import finetune_runs
from benchmarks.finetune_runs import run
from pipeline import config
from pipeline.files import write_json
from pipeline.run.metrics import MetricsLog


def a_run_that_is_done(folder, *names):
    log = MetricsLog(folder / "log")
    for step in (0, 10):
        log.write(step, dict.fromkeys(names, 0.5 + step / 100))
    log.publish(folder / "checkpoints/finetune/metrics")
    write_json(folder / "done.json", {"seconds": 3.0, "env_steps": 10, "stage": None})


def test_the_curves_of_a_finished_run_are_read_where_it_published_them(tmp_path):
    a_run_that_is_done(tmp_path, "eval/score", "eval/mw-reach", "train/loss")
    found = run(tmp_path, 1, {}, ("eval", "scaling"), "python -m benchmarks.mine")
    assert found["seconds"] == 3.0
    assert list(found["eval/score"].steps) == [0, 10]
    assert list(found["eval/score"].values) == [0.5, 0.6]
    assert "train/loss" not in found


def test_a_run_without_the_curves_that_are_asked_for_is_an_error(tmp_path):
    a_run_that_is_done(tmp_path, "train/loss")
    with pytest.raises(ValueError, match=r"no curve of eval.*python -m benchmarks.mine"):
        run(tmp_path, 1, {}, ("eval",), "python -m benchmarks.mine")


def test_a_run_keeps_what_its_base_was_made_with_and_changes_finetuning_on_top(tmp_path, monkeypatch):
    root = tmp_path / "base"
    for folder in ("datasets", "checkpoints/pretrain"):
        (root / folder).mkdir(parents=True)
    seen = {}

    def stage(name, folder):
        seen.update(config.read_params(folder / "params.yaml"))
        (folder / "checkpoints/finetune/model").mkdir(parents=True)
        a_run_that_is_done(folder, "eval/score")
        write_json(folder / "checkpoints/finetune/metrics/summary.json", {"seconds": 1.0, "env_steps": 40})

    monkeypatch.setattr(finetune_runs, "_run_stage", stage)
    own = {"tasks": {"train": ["pendulum-spin"], "held_out": []}}
    run(tmp_path / "run", 7, {"env_steps": 40}, ("eval",), "python -m benchmarks.mine", root, own)
    assert (seen["seed"], seen["tasks"]["train"], seen["finetune"]["env_steps"]) == (7, ["pendulum-spin"], 40)
    assert seen["model"] == config.read_params()["model"]
    assert (tmp_path / "run/datasets").resolve() == (root / "datasets").resolve()


def test_what_was_made_with_other_parameters_is_not_taken_for_done(tmp_path):
    params = config.read_params()
    params["seed"], params["runtime"]["env_workers"] = 7, 1 + params["runtime"]["env_workers"]  # shapes nothing
    del params["finetune"]["control"]  # came later
    with (tmp_path / "params.yaml").open("w") as file:
        finetune_runs.YAML().dump(params, file)
    finetune_runs.check_same(tmp_path, 7, {}, "python -m benchmarks.mine")
    with pytest.raises(ValueError, match=r"pretrain.updates \d+, now 3\. .*`python -m benchmarks.mine --name NAME`"):
        finetune_runs.check_same(tmp_path, 7, {"pretrain": {"updates": 3}}, "python -m benchmarks.mine")
