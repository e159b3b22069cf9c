"""Demonstrations as a data set of the Hub: the folder, its card, and streams of it through the real client."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard, HfApi

from pipeline.cli import main
from pipeline.hub.demos import summary, write_demos_release
from pipeline.hub.push import hashes, kind_of, push
from pipeline.tasks import registry
from stages import publish

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

REPO = "me/eft-demos"


@pytest.fixture
def demos(root: Path) -> Path:
    write_demos_release("datasets/demos", registry.get(["walk", "push"], "my_tasks"), "demos", REPO)
    return Path("demos")


def test_one_configuration_per_task_and_a_card(demos: Path) -> None:
    assert list(hashes(demos)) == ["README.md", "push/episodes.parquet", "walk/episodes.parquet"]
    card = DatasetCard.load(demos / "README.md")
    assert [one["config_name"] for one in card.data.to_dict()["configs"]] == ["walk", "push"]
    assert card.data.to_dict()["size_categories"] == ["n<1K"]
    assert "| push | 2 | 10 | 4 | 2 |" in card.text
    assert "<script>" not in card.text
    assert kind_of(demos) == "dataset"
    assert [row[:2] for row in summary(demos)] == [("push", 2), ("walk", 2)]


def test_the_folder_loads_by_its_card_and_the_card_s_code_runs(demos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.load_dataset("demos", "push", split="train", streaming=True)
    assert [len(row["obs"]) for row in rows] == [6, 6]
    (code,) = re.findall(r"```python\n(.*?)```", (demos / "README.md").read_text(), re.DOTALL)
    exec(code.replace(REPO, "demos"), {})


def test_the_same_demonstrations_give_the_same_bytes(demos: Path) -> None:
    before = hashes(demos)
    write_demos_release("datasets/demos", registry.get(["walk", "push"], "my_tasks"), "demos", REPO)
    assert hashes(demos) == before


def test_damaged_demonstrations_are_not_released(demos: Path) -> None:
    before = hashes(demos)
    path = Path("datasets/demos/push/episodes.parquet")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="not readable parquet"):
        write_demos_release("datasets/demos", registry.get(["walk", "push"], "my_tasks"), "demos", REPO)
    assert hashes(demos) == before


def test_a_push_makes_a_data_set_and_a_pull_brings_it_back(demos: Path, here, capsys) -> None:
    pushed = push(demos, REPO, private=True, tag="v1", api=HfApi())
    assert here.repos[f"datasets/{REPO}"].tags == {"v1": pushed.commit}
    assert not push(demos, REPO, private=True, tag="v1", api=HfApi()).new
    assert main(["pull", REPO, "--dataset", "--to", "pulled"]) == 0
    assert {name: digest for name, digest in hashes("pulled").items() if name != "pulled.json"} == hashes(demos)
    assert main(["info", REPO, "--dataset"]) == 0
    assert re.search(r"walk +2 ", capsys.readouterr().out)


def test_a_data_set_of_something_else_is_left_alone(demos: Path, here) -> None:
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="thesis.csv", repo_id=REPO, repo_type="dataset")
    with pytest.raises(ValueError, match=r"already holds other files \(thesis\.csv\)"):
        push(demos, REPO, private=True, tag=None, api=api)


@pytest.fixture
def published(root: Path, here) -> Path:
    """The stage, stopped once by the server in the middle of its second push, and run to its end."""
    params = (root / "params.yaml").read_text()
    wanted = "repo_id: me/eft-test, demos_repo_id: me/eft-demos"
    (root / "params.yaml").write_text(params.replace("repo_id: null, demos_repo_id: null", wanted))
    here.failures.append(("datasets/me/eft-demos/commit", 500))
    with pytest.raises(OSError, match="it goes on where it stopped"):
        publish.main()
    publish.main()
    return root


def test_the_stage_publishes_both_once_and_leaves_receipts(published: Path, here, capsys) -> None:
    sent = [path for method, path in here.requests if method == "PUT"]
    assert len(sent) == len(set(sent))  # nothing was sent twice
    publish.main()
    assert capsys.readouterr().err.count("nothing new") == 2
    assert [path for method, path in here.requests if method == "PUT"] == sent
    for name, repo in (("receipt", "me/eft-test"), ("demos_receipt", "datasets/me/eft-demos")):
        text = (published / f"checkpoints/publish/metrics/{name}.json").read_text()
        assert here.token not in text
        receipt, there = json.loads(text), here.repos[repo]
        assert (receipt["commit"], receipt["tag"]) == (there.commits[-1].hash, "v1")
        assert len(there.commits) == 2
        assert there.private
        assert receipt["files"].keys() | {".gitattributes"} == there.commits[-1].files.keys()


@pytest.mark.slow
def test_other_processes_stream_it_and_use_the_cache_offline(published: Path, client) -> None:
    act = """
import numpy as np
from pipeline.agent import Agent
agent = Agent.from_pretrained("me/eft-test", revision="v1")
agent.reset(seed=0)
print(agent.act(np.ones(4), instruction="Reach, the goal!").tolist())
print(agent.add_adapter("me/eft-test", revision="v1", subfolder="adapters/push"))
"""
    stream = """
import datasets
print(datasets.get_dataset_config_names("me/eft-demos", revision="v1"))
rows = datasets.load_dataset("me/eft-demos", "push", split="train", streaming=True, revision="v1")
print([(row["task"], len(row["obs"]), len(row["action"])) for row in rows])
"""
    shown = client("-c", act + stream).stdout.splitlines()
    assert shown[1:] == ["push", "['walk', 'reach', 'push']", "[('push', 6, 5), ('push', 6, 5)]"]
    offline = client("-c", act, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout.splitlines() == shown[:2]
