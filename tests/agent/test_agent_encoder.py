"""The text encoder of a saved agent, found again elsewhere, and how many threads it computes with."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from pipeline.agent import Agent
from pipeline.language.embeddings import TaskEmbeddings, embed
from pipeline.language.encoder import _find_in_cache, find_encoder, load_encoder
from pipeline.language.encoder import sha256 as hash_of
from tests.language.test_encoder import save_tiny_bert
from tests.tiny_agent import NEW, SPECS, make_agent, obs_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_bert(tmp_path / "bert")


@pytest.fixture
def checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an agent whose text encoder came from a folder that is no longer there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    agent = make_agent()
    texts = [[spec.text(0), spec.text(1)] for spec in SPECS]
    embeddings = embed(load_encoder(str(folder)), [spec.name for spec in SPECS], texts, 2)
    table = dataclasses.replace(agent.table, embeddings=torch.from_numpy(embeddings.vectors))
    Agent(agent.model, SPECS, embeddings, table, agent.planner).save_pretrained(tmp_path / "agent")
    folder.rename(tmp_path / "elsewhere")
    return tmp_path / "agent"


JUMP = {"instruction": "Open the drawer.", "action_dim": 2, "plan": False}


def test_any_folder_with_the_same_files_serves(checkpoint: Path, tmp_path: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    with pytest.raises(OSError, match=rf"SHA-256 that begins with {agent.embeddings.encoder[-16:]}"):
        agent.act(obs_for(SPECS[0]), **JUMP)
    agent.encoder = load_encoder(str(tmp_path / "elsewhere"))
    assert agent.encoder.id != agent.embeddings.encoder
    found = agent.act(obs_for(SPECS[0]), **JUMP)
    assert np.isfinite(found).all()
    agent.add_task(NEW, agent.embed(NEW), 0.97)
    agent.save_pretrained(tmp_path / "again")
    loaded = Agent.from_pretrained(tmp_path / "again")
    assert loaded.embeddings.encoder == Agent.from_pretrained(checkpoint).embeddings.encoder
    loaded.embeddings.check(["pull"], [NEW.training_texts()], agent.encoder.id)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "cache/models--a--b/snapshots" / ("c" * 40))
    assert np.array_equal(loaded.act(obs_for(SPECS[0]), **JUMP), found)


def test_other_weights_and_another_tokenizer_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    agent = Agent.from_pretrained(checkpoint)
    other = shutil.copytree(tmp_path / "elsewhere", tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    words = list(content["model"]["vocab"])
    content["model"]["vocab"] = {word: number for number, word in enumerate([*words[:4], *words[4:][::-1]])}
    (other / "tokenizer.json").write_text(json.dumps(content))
    agent.encoder = load_encoder(str(other))
    with pytest.raises(ValueError, match="makes another vector of .*its tokenizer or configuration is another"):
        agent.act(obs_for(SPECS[0]), **JUMP)
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(other)).save_pretrained(other)
    agent.encoder = load_encoder(str(other))
    with pytest.raises(ValueError, match=r"trained with the text encoder bert@.* but other@"):
        agent.act(obs_for(SPECS[0]), **JUMP)


def put_into_cache(cache: Path, repo: str, commit: str, source: Path, name: str) -> Path:
    """As the Hub's cache has it: the files as blobs, of which the weights are called `name`, and links to them."""
    snapshot = cache / repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    blobs = cache / repo / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in source.iterdir():
        blob = blobs / (name if file.name == "model.safetensors" else f"{commit[:6]}-{file.name}")
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_of_several_revisions_in_the_cache_the_one_it_was_made_by_is_taken(folder: Path, tmp_path, monkeypatch) -> None:
    cache, (older, newer) = tmp_path / "cache", ("a" * 40, "b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    digest = hash_of(folder / "model.safetensors")
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("the", "teh"))
    put_into_cache(cache, "models--a--bert", older, other, digest)
    wanted = put_into_cache(cache, "models--lab--bert", newer, folder, digest)
    broken = put_into_cache(cache, "models--0--0", "0" * 40, folder, "f" * 64)
    broken.joinpath("model.safetensors").resolve().unlink()
    for name in (f"lab/bert@{newer}", f"lab/bert@{'c' * 40}"):
        assert _find_in_cache(digest[:16], name) == wanted
    assert find_encoder(f"lab/bert@{newer}@{digest[:16]}").id == f"lab/bert@{newer}@{digest[:16]}"
    assert _find_in_cache("f" * 16, "bert") is None


def test_a_small_model_whose_file_in_the_cache_goes_by_another_hash(folder: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    wanted = put_into_cache(tmp_path / "cache", "models--a--bert", "a" * 40, folder, "d" * 40)
    assert _find_in_cache(hash_of(folder / "model.safetensors")[:16], "bert") == wanted


def test_embeddings_join_by_weights(checkpoint: Path, tmp_path: Path) -> None:
    mine = TaskEmbeddings.load(checkpoint / "task_embeddings")
    more = embed(load_encoder(str(tmp_path / "elsewhere")), ["pull"], [["Pull.", "Pull it."]], 2)
    assert mine.join(more).encoder == mine.encoder == f"bert@{hash_of(tmp_path / 'elsewhere/model.safetensors')[:16]}"


# --- threads ----------------------------------------------------------------------------------------------------------

CODE = """
import sys, torch
from tests.tiny_agent import make_agent
from pipeline.language.encoder import load_encoder
make = make_agent if sys.argv[1] == "agent" else lambda: load_encoder(sys.argv[1])
torch.set_num_threads(5)
make()
print(torch.get_num_threads())
torch.set_num_threads(3)
make()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("what", ["agent", "encoder"])
@pytest.mark.parametrize(("asked", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_one_thread_unless_asked_otherwise(folder: Path, what: str, asked: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", CODE, "agent" if what == "agent" else str(folder)]
    found = subprocess.run(command, env=environment | asked, capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.split() == [expected, "3"]
