"""The release folder, its card, and the push to a Hub that runs on this machine."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from pipeline import config, hub
from pipeline.agent import Agent
from pipeline.files import write_json
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.report.results import read_results
from pipeline.tasks.spec import TaskSpec

SERVER = runpy.run_path(str(Path(__file__).with_name("hub_server.py")))
PROJECT = Path(__file__).parent.parent
SIZES = config.Model(
    obs_dim=6, action_dim=3, task_dim=16, latent_dim=16, enc_dim=12, num_enc_layers=2, mlp_dim=16, num_q=2,
    num_bins=11, bin_min=-5.0, bin_max=5.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
)  # fmt: skip
PLANNER = config.Planner(
    horizon=2, iterations=1, num_samples=8, num_policy_samples=2, num_elites=4, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
PARAMS = """\
seed: 1
tasks: {train: [walk, reach], held_out: [push], pairs: [], weights: {}, folder: my_tasks}
evaluate: {episodes: 10, confidence: 0.95, bootstrap_samples: 100, open_loop_steps: [], open_loop_horizon: 48,
  open_loop_episodes: 2, video_size: 0, video_every: 1, video_fps: 20}
publish: {repo_id: REPO, private: true, tag: v1}
"""


def make_spec(name: str, instruction: str) -> TaskSpec:
    return TaskSpec(
        name=name, suite="gymnasium", env_id="tests:tests/None-v0", embodiment="A body.", instructions=(instruction,),
        obs_dim=4, action_dim=2, action_repeat=1, episode_length=50, score="return/1000",
    )  # fmt: skip


SPECS = [make_spec("walk", "walk | <script>alert(1)</script>"), make_spec("reach", "reach the goal")]
PUSH = make_spec("push", "push")


def embeddings_of(specs: list[TaskSpec]):
    return embed(HashedNgrams(16), [spec.name for spec in specs], [[spec.text()] for spec in specs], 1)


def write_run(root: Path) -> None:
    """What the stages before `publish` would leave behind."""
    torch.manual_seed(0)
    embeddings = embeddings_of(SPECS)
    mask = torch.tensor([[1.0, 1.0, 0.0]] * 2)
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.9, 0.95]))
    checkpoints = root / "checkpoints"
    Agent(WorldModel(SIZES), SPECS, embeddings, table, PLANNER).save_pretrained(checkpoints / "finetune/model")
    agent = Agent.from_pretrained(checkpoints / "finetune/model")
    agent.add_task(PUSH, embeddings_of([PUSH]), 0.97)
    agent.create_adapter("push", ["policy"], rank=2, alpha=4.0)
    agent.save_adapter(checkpoints / "adapt/push/adapter", "push")
    (root / "params.yaml").write_text(PARAMS.replace("REPO", "null"))
    write_metrics(checkpoints)


def write_metrics(checkpoints: Path) -> None:
    run = {"seconds": 9.0, "peak_memory_mb": 500.0, "commit": "0123456", "versions": {"torch": "2.13.0"}}
    run["machine"] = {"cpu": "Some CPU", "cores": 2, "gpu": None}
    for stage in ("pretrain", "finetune", "evaluate"):
        write_json(checkpoints / stage / "metrics/summary.json", run | {"stage": stage})
    score = {"score": 0.6123, "low": 0.5, "high": 0.7, "scores": [0.6] * 10}
    modes = {mode: {"walk": score, "reach": score | {"score": 0.9, "high": 0.95}} for mode in ("policy", "plan")}
    mean = {mode: {"score": 0.75, "low": 0.6, "high": 0.8} for mode in ("policy", "plan")}
    models = ("pretrain", "finetune")
    scores = {"models": dict.fromkeys(models, modes), "mean": dict.fromkeys(models, mean), "pairs": []}
    write_json(checkpoints / "evaluate/metrics/scores.json", scores)
    curve = [{"env_steps": 700, "updates": 10, "seconds": 3.0, "score": 0.8}]
    adapted = {"task": "push", "zero_shot": score, "adapted": score | {"score": 0.8}, "curve": curve, "demos": 5}
    adapted |= {"adapter_parameters": 50, "base_parameters": 1000, "stage": "adapt"}
    write_json(checkpoints / "adapt/push/metrics/summary.json", run | adapted)
    videos = []
    for task, own in (("walk", 0.3), ("reach", 0.9)):
        (checkpoints / "evaluate/videos").mkdir(exist_ok=True)
        (checkpoints / f"evaluate/videos/{task}.mp4").write_bytes(task.encode())
        videos.append({"task": task, "instruction": task, "score": own, "file": f"{task}.mp4"})
    write_json(checkpoints / "evaluate/videos/index.json", videos)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with a finished run, and the working directory in it."""
    write_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def release(repo_id: str | None = None, folder: str = "release") -> Path:
    hub.write_release(".", read_results("."), folder, repo_id)
    return Path(folder)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_release_holds_what_is_needed_and_nothing_else(root: Path) -> None:
    assert list(hub.hashes(release())) == [
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


def test_a_release_loads_and_acts_as_the_checkpoint(root: Path) -> None:
    release()
    actions = []
    for folder in ("release", "checkpoints/finetune/model"):
        agent = Agent.from_pretrained(folder)
        agent.reset(seed=0)
        actions.append(agent.act(np.ones(4), task="walk"))
    assert np.array_equal(*actions)
    assert Agent.from_pretrained("release").add_adapter("release", subfolder="adapters/push") == "push"


def test_the_same_run_gives_the_same_bytes(root: Path) -> None:
    assert hub.hashes(release()) == hub.hashes(release())


@pytest.mark.parametrize("stage", ["finetune", "evaluate", "adapt/push"])
def test_a_stage_that_has_not_run_is_named(root: Path, stage: str) -> None:
    next((root / "checkpoints" / stage / "metrics").glob("*.json")).unlink()
    for path in (root / "checkpoints" / stage / "metrics").glob("*.json"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=f"dvc repro {stage.replace('/', '@')}"):
        release()
    assert not Path("release").exists()


def test_scores_of_other_tasks_are_refused(root: Path) -> None:
    path = root / "checkpoints/evaluate/metrics/scores.json"
    path.write_text(path.read_text().replace('"reach"', '"run"'))
    with pytest.raises(ValueError, match=r"scores\.json has no score of reach for pretrain, policy"):
        release()


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, "{root}/data", "{home}/.cache"])
def test_tokens_and_paths_of_this_machine_are_refused(root: Path, secret: str) -> None:
    secret = secret.format(root=root, home=Path.home())
    path = root / "params.yaml"
    path.write_text(f"{path.read_text()}# {secret}\n")
    with pytest.raises(ValueError, match=r"README\.md of the release would hold") as error:
        release()
    assert "hf_a" not in str(error.value)
    assert not Path("release").exists()


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_s_own_code_runs(root: Path) -> None:
    release()
    blocks = re.findall(r"```python\n(.*?)```", Path("release/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    names: dict = {}
    exec(blocks[0], names)
    assert names["action"].shape == (2,)
    assert "push" in names["agent"].tasks


def test_the_card_says_what_was_measured(root: Path) -> None:
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


def test_the_card_s_data_are_valid_for_the_hub(root: Path) -> None:
    data = ModelCard.load(release("me/eft-test") / "README.md").data
    assert data.license == "mit"
    assert data.to_dict()["library_name"] == "eft"
    assert data.eval_results is not None
    assert {(result.dataset_name, result.metric_value) for result in data.eval_results} == {
        ("walk", 0.6123),
        ("reach", 0.9),
    }


def test_texts_cannot_break_the_card(root: Path) -> None:
    card = (release() / "README.md").read_text()
    assert "<script>" not in card
    row = next(line for line in card.splitlines() if line.startswith("| walk |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


# --- the push ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repo_id", ["", "name", "a/b/c", "/tmp/x", "me/..", "me/a--b", "me/x.git", "-me/x", "me/x y", "me/" + "x" * 200]
)
def test_names_that_cannot_be_repos_are_refused(repo_id: str) -> None:
    with pytest.raises(ValueError, match=r"publish\.repo_id"):
        hub.check_repo_id(repo_id)


def test_names_that_can_be_repos_are_accepted() -> None:
    for repo_id in ("me/eft", "some-one/Eft_1.0-mt50"):
        hub.check_repo_id(repo_id)


@pytest.fixture
def server() -> Iterator:
    with SERVER["serve"]() as running:
        yield running


@pytest.fixture
def api(server, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    # What HF_HUB_DISABLE_XET=1 sets at import: plain servers do not speak that protocol.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=server.url, token=SERVER["TOKEN"])


SETTINGS = config.Publish(repo_id="me/eft-test", private=True, tag="v1")


def test_a_push_makes_the_repo_equal_to_the_folder(root: Path, server, api: HfApi) -> None:
    folder = release(SETTINGS.repo_id)
    pushed = hub.push(folder, SETTINGS, api)
    repo = server.repos["me/eft-test"]
    assert repo.private
    assert pushed == ("me/eft-test", repo.commits[-1].hash, True)
    assert repo.tags == {"v1": pushed.commit}
    there = {name: file.content for name, file in repo.commits[-1].files.items() if name != ".gitattributes"}
    assert there == {name: (folder / name).read_bytes() for name in hub.hashes(folder)}


def test_nothing_new_makes_no_commit(root: Path, server, api: HfApi) -> None:
    folder = release(SETTINGS.repo_id)
    first = hub.push(folder, SETTINGS, api)
    again = hub.push(folder, SETTINGS, api)
    assert again == (first.repo, first.commit, False)
    assert len(server.repos["me/eft-test"].commits) == 2


def test_a_changed_release_replaces_the_old_one(root: Path, server, api: HfApi) -> None:
    folder = release(SETTINGS.repo_id)
    first = hub.push(folder, SETTINGS, api)
    (folder / "replay.mp4").unlink()
    (folder / "metrics.json").write_text("{}")
    second = hub.push(folder, config.Publish(repo_id="me/eft-test", private=True, tag="v2"), api)
    repo = server.repos["me/eft-test"]
    assert second.new
    assert "replay.mp4" not in repo.commits[-1].files
    assert repo.commits[-1].files["metrics.json"].content == b"{}"
    assert repo.tags == {"v1": first.commit, "v2": second.commit}


def test_a_version_s_tag_does_not_move(root: Path, server, api: HfApi) -> None:
    folder = release(SETTINGS.repo_id)
    first = hub.push(folder, SETTINGS, api)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"publish\.tag 'v1' is on another commit"):
        hub.push(folder, SETTINGS, api)
    assert server.repos["me/eft-test"].tags == {"v1": first.commit}


def test_a_repo_with_something_else_in_it_is_left_alone(root: Path, server, api: HfApi) -> None:
    api.create_repo("me/eft-test")
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="thesis.txt", repo_id="me/eft-test")
    with pytest.raises(ValueError, match=r"already holds other files \(thesis\.txt\)"):
        hub.push(release(SETTINGS.repo_id), SETTINGS, api)
    assert "thesis.txt" in server.repos["me/eft-test"].commits[-1].files


@pytest.mark.parametrize(
    ("part", "status", "advice"),
    [
        ("/api/repos/create", 401, "hf auth login"),
        ("/api/repos/create", 403, "may not write"),
        ("/preupload/", 404, "no such owner"),
        ("/commit/", 429, "asks for a pause"),
        ("/commit/", 500, "it goes on where it stopped"),
    ],
)
def test_a_refused_push_says_what_to_do_and_can_be_repeated(
    root: Path, server, api: HfApi, part: str, status: int, advice: str
) -> None:
    folder = release(SETTINGS.repo_id)
    server.failures.append((part, status))
    with pytest.raises(OSError, match=advice) as error:
        hub.push(folder, SETTINGS, api)
    assert SERVER["TOKEN"] not in str(error.value)
    sent = len([request for request in server.requests if request[0] == "PUT"])
    pushed = hub.push(folder, SETTINGS, api)
    assert pushed.new
    assert server.repos["me/eft-test"].tags == {"v1": pushed.commit}
    if part == "/commit/":
        assert len([request for request in server.requests if request[0] == "PUT"]) == sent > 0


def test_a_wrong_token_does_not_show(root: Path, server, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "hf_" + "w" * 34
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(OSError, match="hf auth login") as error:
        hub.push(release(SETTINGS.repo_id), SETTINGS, HfApi(endpoint=server.url))
    assert "hf_w" not in str(error.value)


def test_a_server_that_is_not_there(root: Path, api: HfApi) -> None:
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token=SERVER["TOKEN"])
    with pytest.raises(OSError, match="Check the network, then run `dvc repro publish` again"):
        hub.push(release(SETTINGS.repo_id), SETTINGS, nowhere)


@pytest.mark.slow
def test_the_stage_pushes_and_the_agent_comes_back(root: Path, server) -> None:
    (root / "params.yaml").write_text(PARAMS.replace("REPO", "me/eft-test"))
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": SERVER["TOKEN"],
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(root / "hf"),
        "PYTHONPATH": str(PROJECT),
    }
    subprocess.run([sys.executable, "-m", "stages.publish"], check=True, env=env, cwd=root)
    receipt = json.loads((root / "checkpoints/publish/metrics/receipt.json").read_text())
    repo = server.repos["me/eft-test"]
    assert (receipt["repo"], receipt["commit"], receipt["tag"]) == ("me/eft-test", repo.commits[-1].hash, "v1")
    assert receipt["files"] == hub.hashes(root / "checkpoints/publish/release")
    code = """
import numpy as np
from pipeline.agent import Agent
agent = Agent.from_pretrained("me/eft-test", revision="v1")
agent.reset(seed=0)
print(agent.act(np.ones(4), task="walk").tolist())
print(agent.add_adapter("me/eft-test", revision="v1", subfolder="adapters/push"))
"""
    pulled = subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=root, capture_output=True, text=True)
    here = Agent.from_pretrained(root / "checkpoints/finetune/model")
    here.reset(seed=0)
    assert pulled.stdout.split("\n")[:2] == [str(here.act(np.ones(4), task="walk").tolist()), "push"]
    for text in (*(path.read_text() for path in root.glob("checkpoints/publish/metrics/*.json")), pulled.stderr):
        assert SERVER["TOKEN"] not in text
