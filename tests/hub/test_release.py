"""The release folder and its card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries
from ruamel.yaml import YAML

from pipeline.agent import Agent
from pipeline.hub.push import hashes

# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_release_holds_what_is_needed_and_nothing_else(root: Path, release: Callable[..., Path]) -> None:
    assert list(hashes(release())) == [
        ".eval_results/planning.yaml",
        ".eval_results/policy_alone.yaml",
        "README.md",
        "adapters/push/adapter_config.json",
        "adapters/push/adapter_model.safetensors",
        "adapters/push/task.json",
        "adapters/push/task_embeddings/texts.json",
        "adapters/push/task_embeddings/vectors.safetensors",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "replay.mp4",
        "task_embeddings/texts.json",
        "task_embeddings/vectors.safetensors",
        "tasks.json",
    ]
    assert Path("release/replay.mp4").read_bytes() == b"reach"
    assert json.loads(Path("release/metrics.json").read_text())["scores"]["mean"]["finetune"]["plan"]["score"] == 0.75


def test_a_release_loads_and_acts_as_the_checkpoint(root: Path, release: Callable[..., Path]) -> None:
    release()
    actions = []
    for folder in ("release", "checkpoints/finetune/model"):
        agent = Agent.from_pretrained(folder)
        agent.reset(seed=0)
        actions.append(agent.act(np.ones(4), task="walk"))
    assert np.array_equal(*actions)
    assert Agent.from_pretrained("release").add_adapter("release", subfolder="adapters/push") == "push"


def test_the_same_run_gives_the_same_bytes(root: Path, release: Callable[..., Path]) -> None:
    assert hashes(release()) == hashes(release())


@pytest.mark.parametrize("stage", ["finetune", "evaluate", "adapt/push"])
def test_a_stage_that_has_not_run_is_named(root: Path, stage: str, release: Callable[..., Path]) -> None:
    next((root / "checkpoints" / stage / "metrics").glob("*.json")).unlink()
    for path in (root / "checkpoints" / stage / "metrics").glob("*.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"dvc repro {stage.replace('/', '@')}"):
        release()
    assert not Path("release").exists()


def test_scores_of_other_tasks_are_refused(root: Path, release: Callable[..., Path]) -> None:
    path = root / "checkpoints/evaluate/metrics/scores.json"
    path.write_text(path.read_text().replace('"reach"', '"run"'))
    with pytest.raises(ValueError, match=r"scores\.json has no score of reach for pretrain, policy"):
        release()


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, "{root}/data", "{home}/.cache"])
def test_tokens_and_paths_of_this_machine_are_refused(root: Path, secret: str, release: Callable[..., Path]) -> None:
    secret = secret.format(root=root, home=Path.home())
    path = root / "params.yaml"
    path.write_text(f"{path.read_text()}# {secret}\n")
    with pytest.raises(ValueError, match=r"README\.md of the release would hold") as error:
        release()
    assert "hf_a" not in str(error.value)
    assert not Path("release").exists()


def test_only_what_was_evaluated_is_released(root: Path, release: Callable[..., Path]) -> None:
    path = root / "checkpoints/evaluate/metrics/scores.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps(scores | {"weights": {"finetune": "0" * 64}}))
    with pytest.raises(ValueError, match="the scores are of 0000000000000000: only what was evaluated"):
        release()
    path.write_text(json.dumps({key: value for key, value in scores.items() if key != "weights"}))
    with pytest.raises(ValueError, match="weights they do not name"):
        release()


def test_adapters_of_another_base_are_not_released(root: Path, release: Callable[..., Path]) -> None:
    path = root / "checkpoints/adapt/push/adapter/task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": "0" * 64}))
    with pytest.raises(ValueError, match="adapter for push was trained on the weights 0000"):
        release()


def test_a_release_describes_its_tasks(root: Path, release: Callable[..., Path]) -> None:
    content = json.loads((release() / "tasks.json").read_text())
    assert content["encoder"] == "hashed-ngrams-16"
    for entry in content["tasks"]:
        assert {"obs_mean", "obs_std", "discount", "task"} == entry.keys()
        assert entry["task"]["score"] == "return/1000"


@pytest.mark.parametrize(("demos", "dataset"), [(None, "nicklashansen/mmbench"), ("me/demos", "me/demos")])
def test_scores_are_in_the_hub_s_own_form(root: Path, release, demos: str | None, dataset: str) -> None:
    folder = release("me/eft-test", demos_repo_id=demos)
    for name, value in (("planning", 0.6123), ("policy_alone", 0.6123)):
        entries = parse_eval_result_entries(YAML(typ="safe").load(folder / f".eval_results/{name}.yaml"))
        assert [(one.dataset_id, one.task_id) for one in entries] == [(dataset, "walk"), (dataset, "reach")]
        assert entries[0].value == value
        assert entries[0].source_url == "https://huggingface.co/me/eft-test"
        assert "10 episodes" in str(entries[0].notes)
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict().get("datasets") == ([demos] if demos else None)
    assert card.data.to_dict()["model-index"][0]["results"]


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_s_own_code_runs(root: Path, release: Callable[..., Path]) -> None:
    release()
    blocks = re.findall(r"```python\n(.*?)```", Path("release/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    names: dict = {}
    exec(blocks[0], names)
    assert names["action"].shape == (2,)
    assert "push" in names["agent"].tasks


def test_the_card_says_what_was_measured(root: Path, release: Callable[..., Path]) -> None:
    card = (release("me/eft-test") / "README.md").read_text()
    for text in (
        "0.612 (0.500 to 0.700)",
        "0.750 (0.600 to 0.800)",
        "| push | 5 | 700 | 0.612 (0.500 to 0.700) | 0.800 (0.500 to 0.700) | 5.0 % |",
        "95 % bootstrap interval over 10 episodes",
        'Agent.from_pretrained("me/eft-test")',
        "hashed-ngrams-16",
        "0123456",
        "torch 2.13.0",
        "bootstrap_samples: 100",
        "2511.19584",
    ):
        assert text in card, text


def test_the_card_s_data_are_valid_for_the_hub(root: Path, release: Callable[..., Path]) -> None:
    data = ModelCard.load(release("me/eft-test") / "README.md").data
    assert data.license == "mit"
    assert data.to_dict()["library_name"] == "eft"
    assert data.eval_results is not None
    assert {(result.dataset_name, result.metric_value) for result in data.eval_results} == {
        ("walk", 0.6123),
        ("reach", 0.9),
    }


def test_texts_cannot_break_the_card(root: Path, release: Callable[..., Path]) -> None:
    card = (release() / "README.md").read_text()
    assert "<script>" not in card
    row = next(line for line in card.splitlines() if line.startswith("| walk |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
