"""Getting a release back: at a revision, offline, over bad connections; in this process and through the command."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi

from pipeline import store
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.hub.push import hashes, push

REPO = "me/eft-test"


@pytest.fixture
def published(root: Path, here) -> list[str]:
    """The commits of two versions of a release; tagged v1 and v2."""
    api = HfApi()
    first = push("ready", REPO, private=True, tag="v1", api=api)
    tasks = Path("ready/tasks.json")
    tasks.write_text(tasks.read_text().replace('"horizon": 2', '"horizon": 1'))
    second = push("ready", REPO, private=True, tag="v2", api=api)
    return [first.commit, second.commit]


def test_a_revision_is_what_was_pushed_then(published: list[str]) -> None:
    assert Agent.from_pretrained(REPO).planner.horizon == 1
    for revision in ("v1", published[0]):
        agent = Agent.from_pretrained(REPO, revision=revision)
        assert (agent.planner.horizon, agent.commit) == (2, published[0])
    assert Agent.from_pretrained("checkpoints/finetune/model").commit is None


def test_only_what_is_needed_is_downloaded(published: list[str], server) -> None:
    Agent.from_pretrained(REPO)
    got = {path.split("/resolve/")[1].split("/", 1)[1] for _, path in server.requests if "/resolve/" in path}
    assert got == {
        "config.json", "model.safetensors", "tasks.json", "task_embeddings/texts.json",
        "task_embeddings/vectors.safetensors",
    }  # fmt: skip


def test_an_adapter_comes_from_its_subfolder(published: list[str]) -> None:
    agent = Agent.from_pretrained(REPO)
    assert agent.add_adapter(REPO, subfolder="adapters/push") == "push"
    assert agent.act(np.ones(4), task="push").shape == (2,)


def test_without_a_network_the_cache_answers(published: list[str], server, monkeypatch: pytest.MonkeyPatch) -> None:
    Agent.from_pretrained(REPO, revision="v1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    requests = len(server.requests)
    agent = Agent.from_pretrained(REPO, revision="v1")
    assert (agent.commit, len(server.requests)) == (published[0], requests)
    with pytest.raises(OSError, match="could not be had from the Hub at revision v2"):
        Agent.from_pretrained(REPO, revision="v2")


def test_a_server_that_went_away_leaves_the_cache(published: list[str], server, monkeypatch) -> None:
    Agent.from_pretrained(REPO, revision="v1")
    for name in ("huggingface_hub.constants.ENDPOINT", "huggingface_hub.hf_api.api.endpoint"):
        monkeypatch.setattr(name, "http://127.0.0.1:9")
    assert Agent.from_pretrained(REPO, revision="v1").commit == published[0]


@pytest.mark.parametrize(
    ("repo", "failure", "message"),
    [
        (REPO, 401, "hf auth login"),
        (REPO, 403, "could not be had from the Hub"),
        (REPO, 404, "could not be had from the Hub"),
        (REPO, 500, "could not be had from the Hub"),
        ("me/none", None, "could not be had from the Hub"),
    ],
)
def test_a_refused_pull_says_so_and_leaves_nothing(published, server, repo: str, failure: int | None, message: str):
    if failure:
        server.failures += [("/revision/", failure), ("/api/models/", failure)] * 6
    with pytest.raises(OSError, match=message) as error:
        Agent.from_pretrained(repo)
    assert server.token not in str(error.value)
    server.failures.clear()
    assert Agent.from_pretrained(REPO).planner.horizon == 1


def test_a_cut_connection_is_taken_up_again(published: list[str], server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.cuts += [("model.safetensors", 4000), ("model.safetensors", 2000)]
    assert Agent.from_pretrained(REPO).planner.horizon == 1
    assert not server.cuts


def test_a_slow_server_is_waited_for(published: list[str], server) -> None:
    server.seconds_per_answer = 0.05
    assert Agent.from_pretrained(REPO).planner.horizon == 1


def test_pull_copies_one_commit_and_records_it(published: list[str], capsys) -> None:
    assert main(["pull", REPO, "--revision", "v1", "--to", "pulled"]) == 0
    assert published[0] in capsys.readouterr().out
    record = json.loads(Path("pulled/pulled.json").read_text())
    assert (record["repo"], record["revision"], record["commit"]) == (REPO, "v1", published[0])
    assert record["files"] == {name: digest for name, digest in hashes("pulled").items() if name != "pulled.json"}
    assert {"README.md", ".eval_results/planning.yaml", "adapters/push/task.json"} <= set(record["files"])
    assert Agent.from_pretrained("pulled").planner.horizon == 2
    assert main(["pull", REPO, "--to", "pulled"]) == 0
    assert Agent.from_pretrained("pulled").planner.horizon == 1
    Path("mine").mkdir()
    Path("mine/thesis.md").write_text("work")
    assert main(["pull", REPO, "--to", "mine"]) == 2
    assert "no pull made it" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.md"]


def test_another_pull_replaces_what_the_one_before_brought_and_nothing_else(published: list[str]) -> None:
    Path("disk").mkdir()
    Path("pulled").symlink_to("disk")
    assert main(["pull", REPO, "--revision", "v1", "--to", "pulled"]) == 0
    Path("pulled/notes.md").write_text("mine")
    Path("pulled/adapters/push/notes.md").write_text("mine")
    Path("pulled/README.md").write_text("mine too: what was pulled, changed")
    for gone in ("adapters/push/task.json", "README.md", "replay.mp4"):
        Path("ready", gone).unlink()
    push("ready", REPO, private=True, tag="v3", api=HfApi())
    with contextlib.chdir("pulled"):
        assert main(["pull", REPO, "--to", "."]) == 0
    assert Path("pulled").is_symlink()
    assert Agent.from_pretrained("pulled").planner.horizon == 1
    for kept in ("notes.md", "adapters/push/notes.md", "README.md"):
        assert Path("pulled", kept).read_text().startswith("mine")
    assert not Path("pulled/adapters/push/task.json").exists()
    assert not Path("pulled/replay.mp4").exists()


def test_a_record_of_a_pull_reaches_no_file_outside(published: list[str]) -> None:
    Path("outside.txt").write_text("not of a pull")
    assert main(["pull", REPO, "--revision", "v1", "--to", "pulled"]) == 0
    record = json.loads(Path("pulled/pulled.json").read_text())
    record["files"]["../outside.txt"] = store.sha256(Path("outside.txt"))
    Path("pulled/pulled.json").write_text(json.dumps(record))
    assert main(["pull", REPO, "--to", "pulled"]) == 0
    assert Path("outside.txt").exists()


def test_info_shows_sizes_tasks_and_scores(published: list[str], capsys) -> None:
    assert main(["info", REPO]) == 0
    shown = capsys.readouterr().out
    assert f"{REPO} at commit {published[1]}" in shown
    assert "adapters      push" in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("reach"))
    assert row.split() == ["reach", "2", "50", "0.900", "0.900"]
    assert "no score" not in shown


def test_info_shows_no_scores_of_weights_that_lay_there_before(published: list[str], capsys) -> None:
    agent = Agent.from_pretrained("ready")
    with torch.no_grad():
        next(agent.model.parameters()).add_(1)
    agent.save_pretrained("ready")
    assert main(["info", "ready"]) == 0
    *_, row, why = capsys.readouterr().out.splitlines()
    assert row.split() == ["reach", "2", "50", "-", "-"]
    assert why.strip() == "-  no score: metrics.json is of other weights"
    assert main(["info", "checkpoints/finetune/model"]) == 0
    assert "-  no score: there is no metrics.json, which a release has" in capsys.readouterr().out


def test_push_and_its_dry_run(root: Path, here, capsys) -> None:
    assert main(["push", "ready", "--repo", REPO, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "not there yet; nothing was sent" in shown
    assert "send    model.safetensors" in shown
    assert here.repos == {}
    assert main(["push", "ready", "--repo", REPO, "--tag", "v1"]) == 0
    receipt = json.loads(Path("ready.receipt.json").read_text())
    repo = here.repos[REPO]
    assert (receipt["repo"], receipt["commit"], receipt["tag"]) == (REPO, repo.commits[-1].hash, "v1")
    assert receipt["files"] == hashes("ready")
    assert repo.private
    capsys.readouterr()
    assert main(["push", "ready", "--repo", REPO, "--dry-run"]) == 0
    assert "do nothing" in capsys.readouterr().out
    Path("ready/replay.mp4").unlink()
    Path("ready/metrics.json").write_text("{}")
    main(["push", "ready", "--repo", REPO, "--dry-run"])
    shown = capsys.readouterr().out
    assert "send    metrics.json" in shown
    assert "delete  replay.mp4" in shown
    assert len(repo.commits) == 2


def test_push_needs_to_know_where(root: Path, capsys) -> None:
    assert main(["push", "ready"]) == 2
    assert "publish.repo_id" in capsys.readouterr().err


def test_subfolders_stay_within(published: list[str]) -> None:
    for subfolder in ("../x", "/etc", "a/../../b", "adapters/*"):
        with pytest.raises(ValueError, match="not a plain path"):
            store.fetch(REPO, None, store.ADAPTER_FILES, subfolder)
