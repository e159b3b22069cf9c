"""The whole pipeline under DVC, shrunk: run, run again, changed, killed, resumed. Real simulators, real processes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.files import write_json
from pipeline.run.metrics import read_rows
from tests.test_report import ways

ROOT = Path(__file__).parents[2]
STAGES = ["teach", "demos", "embed", "pretrain", "finetune", "evaluate", "adapt@mw-drawer-close", "publish", "report"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")]


def environment() -> dict[str, str]:
    """This interpreter first on the path, since stages run as `python`; one thread, as in tests/tiny.yaml."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(folder: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def weights(folder: Path, stage: str) -> str:
    return hashlib.sha256((folder / f"checkpoints/{stage}/model/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the tiny parameters in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("tiny") / "eft"
    folder.mkdir()
    for name in ("pipeline", "stages", "my_tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "demos"))
    for name in ("dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "tests/tiny.yaml", folder / "params.yaml")
    write_json(folder / "checkpoints/ways.json", ways(["mw-reach", "mw-pick-place", "mw-drawer-open"]))
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "config", "core.analytics", "false")
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=Eft", "-c", "user.email=eft@example.org", "commit", "--quiet", "-m", "Begin")
    output = run(folder, "dvc", "repro").stdout
    assert ran(output) == STAGES
    return folder


def test_it_ends_with_a_report_and_a_release_that_acts(project: Path):
    page = (project / "checkpoints/report/report.html").read_text()
    assert "mw-pick-place" in page
    assert "on own episodes, labelled by experts" in page
    code = (
        "import numpy as np\nfrom pipeline.agent import Agent\n"
        "agent = Agent.from_pretrained('checkpoints/publish/release')\n"
        "print(agent.act(np.zeros(39), task='mw-reach').shape)\n"
        "agent.add_adapter('checkpoints/publish/release', subfolder='adapters/mw-drawer-close')\n"
        "agent.reset()\nprint(agent.act(np.zeros(39), task='mw-drawer-close').shape)\n"
    )
    assert run(project, "python", "-c", code).stdout.split() == ["(4,)", "(4,)"]
    assert not (project / ".resume").exists() or not list((project / ".resume").iterdir())


def test_metrics_go_to_git_and_weights_do_not(project: Path):
    tracked = run(project, "git", "ls-files", "--others", "--exclude-standard", "checkpoints", "datasets").stdout
    assert "checkpoints/pretrain/metrics/metrics.jsonl" in tracked
    assert "datasets/demos.json" in tracked
    for private in (".safetensors", ".parquet", ".mp4"):
        assert private not in tracked


def test_scores_have_both_checkpoints_both_modes_and_pairs(project: Path):
    scores = json.loads((project / "checkpoints/evaluate/metrics/scores.json").read_text())
    for checkpoint in ("pretrain", "finetune"):
        for mode in ("policy", "plan"):
            assert set(scores["models"][checkpoint][mode]) == {"mw-reach", "mw-pick-place", "mw-drawer-open"}
            mean = scores["mean"][checkpoint][mode]
            assert 0 <= mean["low"] <= mean["score"] <= mean["high"] <= 1
    assert {pair["mode"] for pair in scores["pairs"]} == {"policy", "plan"}
    told = scores["words"]["tasks"]
    assert {task: len(each["sentences"]) for task, each in told.items()} == dict.fromkeys(
        ["mw-reach", "mw-pick-place", "mw-drawer-open"], 10
    )


def test_the_scripts_labelled_what_was_collected(project: Path):
    found = [project / f"checkpoints/{stage}/metrics/summary.json" for stage in ("finetune", "adapt/mw-drawer-close")]
    online, adapted = (json.loads(path.read_text())["labels"] for path in found)
    assert online == dict.fromkeys(["mw-reach", "mw-pick-place", "mw-drawer-open"], "scripted")
    assert adapted == {"mw-drawer-close": "scripted"}
    rows = read_rows(project / "checkpoints/finetune/metrics/metrics.jsonl")
    assert {row["replay/labelled_share"] for row in rows if "replay/labelled_share" in row} == {1.0}


def test_nothing_runs_again(project: Path):
    assert ran(run(project, "dvc", "repro").stdout) == []


def test_ways_that_were_compared_anew_are_drawn_and_nothing_else_runs(project: Path):
    path = project / "checkpoints/ways.json"
    before = path.read_text()
    path.write_text(before.replace("0.86", "0.88"))
    try:
        assert set(json.loads(run(project, "dvc", "status", "--json").stdout)) == {"report"}
    finally:
        path.write_text(before)


def test_a_changed_learning_rate_runs_from_pretrain_on(project: Path):
    params = project / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("  lr: 3e-4", "  lr: 4e-4"))
    try:
        assert ran(run(project, "dvc", "repro", "pretrain").stdout) == ["pretrain"]
        status = json.loads(run(project, "dvc", "status", "--json").stdout)
        assert {"finetune", "evaluate"} <= set(status)
        assert not {"demos", "embed", "pretrain"} & set(status)
    finally:
        params.write_text(before)
    run(project, "dvc", "repro", "pretrain")


def test_a_changed_text_runs_from_embed_on(project: Path):
    path = project / "pipeline/texts/metaworld.yaml"
    before = path.read_text()
    task = yaml.safe_load(before)["tasks"]["mw-reach"]
    path.write_text(before.replace(task["instructions"][0], task["instructions"][0] + " Now."))
    try:
        changed = set(json.loads(run(project, "dvc", "status", "--json").stdout))
        assert "embed" in changed
        assert not {"demos", "pretrain", "finetune", "evaluate"} & changed
        assert ran(run(project, "dvc", "repro", "pretrain").stdout) == ["embed", "pretrain"]
    finally:
        path.write_text(before)
        run(project, "dvc", "repro", "pretrain")


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("pretrain", signal.SIGINT),
        ("finetune", signal.SIGKILL),
    ],
)
def test_a_stopped_stage_goes_on_to_the_same_result(project: Path, stage: str, number: signal.Signals):
    undisturbed = weights(project, stage)
    shutil.rmtree(project / "checkpoints" / stage)
    try:
        process = subprocess.Popen(
            ["python", "-m", f"stages.{stage}"], cwd=project, env=environment(), stderr=subprocess.PIPE, text=True
        )
        # Stopped as soon as something is saved, which is in the middle of the run.
        for _ in range(600):
            if list(project.glob(f".resume/{stage}-*/save-*")) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], stderr
        assert not (project / "checkpoints" / stage).exists()
        again = run(project, "python", "-m", f"stages.{stage}").stderr
        assert f"{stage}: " in again
        assert weights(project, stage) == undisturbed
        assert not list(project.glob(f".resume/{stage}-*"))
    finally:
        shutil.rmtree(project / "checkpoints" / stage, ignore_errors=True)
        run(project, "dvc", "checkout", "--force", stage)
        run(project, "dvc", "repro", stage)


def test_a_killed_repro_leaves_no_trainer_and_a_second_one_is_refused(project: Path):
    undisturbed = weights(project, "finetune")
    params = project / "params.yaml"
    before = params.read_text()
    # More evaluations change nothing but make DVC run the stage, and give it something to do.
    params.write_text(before.replace("  eval_every: 450\n", "  eval_every: 90\n"))
    try:
        command = ["dvc", "repro", "finetune"]
        process = subprocess.Popen(command, cwd=project, env=environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(1200):
            if list(project.glob(".resume/finetune-*/save-*")) or process.poll() is not None:
                break
            time.sleep(0.1)
        trainers = [one for one in psutil.Process(process.pid).children(recursive=True) if "python" in one.name()]
        assert trainers
        second = run(project, *command, check=False)
        assert second.returncode
        assert f"is busy, it is being blocked by:\n  (PID {process.pid})" in second.stderr
        direct = run(project, "python", "-m", "stages.finetune", check=False)
        assert direct.returncode == 2
        assert "another run of `finetune` with the same parameters is working" in direct.stderr
        process.terminate()
        process.communicate(timeout=60)
        _, alive = psutil.wait_procs(trainers, timeout=30)
        assert not alive, "a trainer outlived `dvc repro`"
        run(project, *command)
        assert weights(project, "finetune") == undisturbed
    finally:
        params.write_text(before)
        shutil.rmtree(project / ".resume", ignore_errors=True)
        run(project, "dvc", "repro", "finetune")


def test_bad_parameters_and_missing_inputs_are_named(project: Path):
    params = project / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(
            before.replace("  batch_size: 16\n  warmup_updates: 5", "  batchsize: 16\n  warmup_updates: 5")
        )
        failed = run(project, "python", "-m", "stages.pretrain", check=False)
        assert failed.returncode == 2
        assert "`batchsize` is not a parameter. Did you mean `batch_size`?" in failed.stderr
        params.write_text(before.replace("mw-drawer-open]", "mw-drawer-opne]"))
        failed = run(project, "python", "-m", "stages.demos", check=False)
        assert failed.returncode == 2
        assert "mw-drawer-open" in failed.stderr
    finally:
        params.write_text(before)
    path = project / "datasets/demos/mw-reach/episodes.parquet"
    content = path.read_bytes()
    try:
        path.chmod(0o644)
        path.write_bytes(content[:1000])
        failed = run(project, "python", "-m", "stages.pretrain", check=False)
        assert failed.returncode == 2
        assert "episodes.parquet" in failed.stderr
        assert "Traceback" not in failed.stderr
    finally:
        path.write_bytes(content)
