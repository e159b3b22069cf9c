"""What hostile repositories and files may try: nothing may come of it but a clear error."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi

from pipeline import config
from pipeline.agent import Agent
from pipeline.cli import main
from pipeline.data.demos import read_episodes
from pipeline.hub.demos import write_demos_release
from pipeline.hub.push import push
from pipeline.importers import lerobot, minari, newt, plain, robomimic
from pipeline.importers.episodes import Reading, Recorded, import_episodes
from pipeline.language.encoder import load_encoder
from pipeline.newt_checkpoint import load_newt_checkpoint
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

DATA = Path(__file__).parents[1] / "data"
REFUSALS = (ValueError, OSError)  # what the command `eft` turns into one line


class Payload:
    """Unpickling it writes a file."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.fixture(autouse=True)
def nothing_was_executed(root: Path):
    yield
    assert not (root / "executed").exists()


@pytest.fixture
def bomb(root: Path) -> Path:
    """Two pickles in one place: the plain one, and torch's."""
    (root / "bomb").mkdir()
    (root / "bomb/plain").write_bytes(pickle.dumps(Payload()))
    torch.save({"model": Payload(), "_tensordict": Payload()}, root / "bomb/torch")
    return root / "bomb"


# --- pickles, in every place a file is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "torch"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tasks.json", "task_embeddings/texts.json",
     "task_embeddings/vectors.safetensors"],
)  # fmt: skip
def test_a_pickle_as_a_file_of_a_checkpoint(bomb: Path, kind: str, name: str) -> None:
    shutil.copyfile(bomb / kind, Path("ready") / name)
    with pytest.raises(REFUSALS):
        Agent.from_pretrained("ready")


@pytest.mark.parametrize("kind", ["plain", "torch"])
@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "task.json", "task_embeddings/texts.json",
     "task_embeddings/vectors.safetensors"],
)  # fmt: skip
def test_a_pickle_as_a_file_of_an_adapter(bomb: Path, kind: str, name: str) -> None:
    agent = Agent.from_pretrained("ready")
    shutil.copyfile(bomb / kind, Path("ready/adapters/push") / name)
    with pytest.raises(REFUSALS):
        agent.add_adapter("ready", subfolder="adapters/push")


@pytest.mark.parametrize("kind", ["plain", "torch"])
@pytest.mark.parametrize(
    "read",
    [
        load_newt_checkpoint,
        lambda path: newt.read_demos(path, make_spec()),
        lambda path: read_episodes(path, "nobody"),
        registry.load_file,
        lambda path: config.load(config.Publish, path),
    ],
    ids=["newt-checkpoint", "newt-demos", "demonstrations", "task", "params"],
)
def test_a_pickle_as_a_file_to_read(bomb: Path, kind: str, read: Callable) -> None:
    with pytest.raises(REFUSALS):
        read(bomb / kind)


def test_pickles_beside_the_weights_are_not_read(bomb: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt", "adapters/push/adapter_model.bin", "task_embeddings/vectors.pt"):
        shutil.copyfile(bomb / "torch", Path("ready") / name)
    agent = Agent.from_pretrained("ready")
    agent.add_adapter("ready", subfolder="adapters/push")
    Path("ready/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        Agent.from_pretrained("ready")


def test_a_text_encoder_of_pickles_is_not_read(bomb: Path) -> None:
    Path("encoder").mkdir()
    shutil.copyfile(bomb / "torch", "encoder/pytorch_model.bin")
    Path("encoder/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        load_encoder("encoder")


def test_a_class_that_calls_itself_tensordict(root: Path) -> None:
    evil = type("TensorDict", (), {"__reduce__": Payload.__reduce__, "__module__": "tensordict._td"})
    torch.save([evil()], "evil.pt")
    with pytest.raises(ValueError, match="nothing in it was run"):
        newt.read_demos("evil.pt", make_spec())


# --- names and links that lead out of the folder ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["task_embeddings/../../../../escaped", "../escaped", "/tmp/escaped-absolute", "task_embeddings/..\\escaped"],
)
def test_file_names_of_a_repo_cannot_escape(here, root: Path, name: str) -> None:
    push("ready", "me/evil", private=True, tag=None, api=HfApi())
    repo = here.repos["me/evil"]
    file = repo.commits[-1].files["config.json"]
    repo.add("evil", repo.commits[-1].files | {name: file})
    with contextlib.suppress(*REFUSALS):
        Agent.from_pretrained("me/evil")
    assert not list(root.rglob("escaped")) or all("snapshots" in path.parts for path in root.rglob("escaped"))
    assert not (root.parent / "escaped").exists()
    assert not Path("/tmp/escaped-absolute").exists()


@pytest.mark.parametrize("name", ["config.json", "tasks.json", "model.safetensors", "task_embeddings"])
def test_links_out_of_a_checkpoint_are_not_followed(root: Path, name: str) -> None:
    path = Path("ready") / name
    path.rename("outside")
    path.symlink_to(Path("outside").resolve())
    with pytest.raises(ValueError, match="leads out of"):
        Agent.from_pretrained("ready")


def test_links_out_of_an_adapter_are_not_followed(root: Path) -> None:
    agent = Agent.from_pretrained("ready")
    Path("ready/adapters/push").rename("outside")
    Path("ready/adapters/push").symlink_to(Path("outside").resolve())
    with pytest.raises(ValueError, match="leads out of"):
        agent.add_adapter("ready", subfolder="adapters/push")


def test_a_link_in_a_release_is_not_pushed(root: Path, here) -> None:
    Path("secret.txt").write_text("mine")
    Path("ready/notes.txt").symlink_to(Path("secret.txt").resolve())
    with pytest.raises(ValueError, match=r"notes\.txt of the release is a link"):
        push("ready", "me/eft-test", private=True, tag=None, api=HfApi())
    assert here.repos == {}


@pytest.mark.parametrize("task", ["../../etc", "/etc/passwd", "a/b", "..", "a\nb", "A", ""])
def test_task_names_are_no_paths(root: Path, task: str) -> None:
    path = Path("ready/tasks.json")
    content = json.loads(path.read_text())
    content["tasks"][0]["task"]["name"] = task
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="name"):
        Agent.from_pretrained("ready")


# --- sizes that lie ---------------------------------------------------------------------------------------------------


def rewrite_header(path: Path, change: Callable[[dict], None], length: int | None = None) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content[8 + size :])


def widen(header: dict) -> None:
    next(entry for name, entry in header.items() if name.endswith("weight"))["shape"] = [10**9, 10**9]


def move(header: dict) -> None:
    next(entry for name, entry in header.items() if name.endswith("weight"))["data_offsets"] = [0, 10**15]


@pytest.mark.parametrize(
    ("change", "length"), [(widen, None), (move, None), (lambda header: None, 2**62), (lambda header: None, 3)]
)
@pytest.mark.parametrize("name", ["model.safetensors", "adapters/push/adapter_model.safetensors"])
def test_a_safetensors_header_that_lies(root: Path, name: str, change: Callable, length: int | None) -> None:
    rewrite_header(Path("ready") / name, change, length)
    with pytest.raises(ValueError, match="safetensors"):
        Agent.from_pretrained("ready").add_adapter("ready", subfolder="adapters/push")


@pytest.mark.parametrize(
    "values",
    [{"mlp_dim": 10**12}, {"latent_dim": 8 * 10**30}, {"num_q": 10**9}, {"num_enc_layers": 10**9},
     {"num_bins": 10**12}, {"obs_dim": 10**12}, {"simnorm_dim": 0}, {"mlp_dim": -1}, {"mlp_dim": 1e400}],
)  # fmt: skip
def test_a_config_of_giant_or_odd_dims(root: Path, values: dict) -> None:
    path = Path("ready/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=r"config\.json"):
        Agent.from_pretrained("ready")


@pytest.mark.parametrize("rank", [10**9, 0, -1, "2; import os"])
def test_an_adapter_of_a_giant_or_odd_rank(root: Path, rank: int | str) -> None:
    path = Path("ready/adapters/push/adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": rank}))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        Agent.from_pretrained("ready").add_adapter("ready", subfolder="adapters/push")


def test_an_adapter_that_brings_modules_of_its_own(root: Path) -> None:
    path = Path("ready/adapters/push/adapter_config.json")
    for evil in ({"modules_to_save": ["policy_head"]}, {"target_modules": ".*"}, {"use_dora": True}):
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | evil))
        with pytest.raises(ValueError, match=r"adapter_config\.json"):
            Agent.from_pretrained("ready").add_adapter("ready", subfolder="adapters/push")
        path.write_text(kept)


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[]", "null", '{"format": 1e999}', '{"format": 1, "tasks": 3}'])
def test_json_that_is_deep_or_odd(root: Path, text: str) -> None:
    Path("ready/tasks.json").write_text(text)
    with pytest.raises(ValueError, match=r"tasks\.json"):
        Agent.from_pretrained("ready")


def test_tensors_that_say_they_are_larger_than_their_file(root: Path) -> None:
    saved = torch.load(DATA / "newt_tiny_checkpoint.pt", weights_only=True)
    saved["model"]["_dynamics.0.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(saved, "giant.pt")
    with pytest.raises(ValueError, match="more than the file holds"):
        load_newt_checkpoint("giant.pt")
    columns = {"obs": torch.zeros(1).expand(6, 10**12), "action": torch.zeros(6, 2), "reward": torch.zeros(6)}
    torch.save({"_tensordict": columns | {"episode": torch.zeros(6)}}, "giant.pt")
    with pytest.raises(ValueError, match="more than the file holds"):
        newt.read_demos("giant.pt", make_spec())


# --- parquet, HDF5, YAML ----------------------------------------------------------------------------------------------


def make_spec(**values) -> TaskSpec:
    given = {
        "name": "p", "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole.", "instructions": ("up",),
        "obs_dim": 3, "action_dim": 1, "action_repeat": 1, "episode_length": 6, "score": "clip((return+15)/15,0,1)",
    }  # fmt: skip
    return TaskSpec(**{**given, **values})


@pytest.mark.parametrize(
    ("column", "values"),
    [("obs", ["x", "y"]), ("reward", [[b"a"], [b"b"]]), ("action", [[[1.0], [2.0, 3.0]], [[1.0]]]),
     ("score", [None, None]), ("reward", [None, None])],
)  # fmt: skip
def test_demonstrations_of_wrong_types(root: Path, column: str, values: list) -> None:
    path = Path("datasets/demos/push/episodes.parquet")
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(ValueError, match=r"episodes\.parquet"):
        read_episodes(path, "nobody")


def hdf5(change: Callable[[h5py.File], None]) -> Path:
    shutil.copytree(DATA / "minari/hdf5", "minari", dirs_exist_ok=True)
    with h5py.File("minari/data/main_data.hdf5", "a") as file:
        for name in ("episode_1", "episode_2"):
            del file[name]
        change(file)
    return Path("minari")


def external_link(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0/observations"] = h5py.ExternalLink("other.hdf5", "/secret")


def soft_link(file: h5py.File) -> None:
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.SoftLink("/episode_0/observations")


def external_storage(file: h5py.File) -> None:
    del file["episode_0/observations"]
    Path("secret").write_bytes(b"s" * 84)
    file["episode_0"].create_dataset("observations", (7, 3), "f4", external=[(str(Path("secret").resolve()), 0, 84)])


def giant(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0"].create_dataset("observations", (10**9, 10**9), "f4", chunks=(1, 1024))


def wide(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0"].create_dataset("observations", (7, 10**12), "f4", chunks=(1, 1024))


def strings(file: h5py.File) -> None:
    del file["episode_0/actions"]
    file["episode_0"]["actions"] = np.array([b"rm -rf"] * 6)


@pytest.mark.parametrize("change", [external_link, soft_link, external_storage, giant, wide, strings])
def test_hdf5_that_reaches_out_or_lies(root: Path, change: Callable) -> None:
    source = minari.read_demos(hdf5(change), make_spec())
    with pytest.raises(ValueError, match="none of the 1 episodes"):
        import_episodes(source, make_spec(), "evil", None, Reading(), "out")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "about",
    [{"observation_space": '{"type": "Box"'}, {"action_space": '{"type": "Discrete", "n": 3}'},
     {"data_format": "../../etc"}, {"observation_space": '{"type": "Dict", "subspaces": {"../x": {"type": "Text"}}}'}],
)  # fmt: skip
def test_a_minari_description_of_odd_spaces(root: Path, about: dict) -> None:
    folder = hdf5(lambda file: None)
    path = folder / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    with pytest.raises(ValueError, match="minari"):
        minari.read_demos(folder, make_spec())


def robomimic_file(change: Callable[[h5py.Group], None]) -> Path:
    with h5py.File("robomimic.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["obs/state"] = demo["next_obs/state"] = np.zeros((4, 3), np.float32)
        demo["actions"], demo["rewards"], demo["dones"] = np.zeros((4, 1)), np.zeros(4), np.zeros(4, np.int64)
        change(demo)
    return Path("robomimic.hdf5")


def replaced(name: str, by: Any) -> Callable[[h5py.Group], None]:
    def change(demo: h5py.Group) -> None:
        del demo[name]
        demo[name] = by

    return change


@pytest.mark.parametrize(
    "change",
    [replaced("obs/state", h5py.ExternalLink("other.hdf5", "/secret")), replaced("obs/state", h5py.SoftLink("/data")),
     replaced("next_obs/state", h5py.ExternalLink("other.hdf5", "/secret")),
     replaced("actions", h5py.SoftLink("/data")),
     replaced("rewards", np.array([b"rm -rf"] * 4))],
)  # fmt: skip
def test_a_robomimic_file_that_reaches_out(root: Path, change: Callable) -> None:
    with pytest.raises(ValueError, match="link to elsewhere|expected numbers"):
        source = robomimic.read_demos(robomimic_file(change), make_spec())
        import_episodes(source, make_spec(), "evil", None, Reading(), "out")
    assert not Path("out").exists()


def test_an_npz_of_pickles_or_of_sizes_that_lie(root: Path) -> None:
    np.savez("pickles.npz", obs=np.array([Payload()] * 3, dtype=object), action=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="no `obs`"):
        plain.read_demos("pickles.npz", make_spec())
    Path("pickle.npz").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="nothing in it was run"):
        plain.read_demos("pickle.npz", make_spec())
    header = np.lib.format.header_data_from_array_1_0(np.zeros((3, 3), np.float32)) | {"shape": (10**9, 10**9)}
    with zipfile.ZipFile("giant.npz", "w") as archive, archive.open("obs.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match="more than the file holds"):
        plain.read_demos("giant.npz", make_spec())


def three_d(**values: Any) -> dict[str, Any]:
    """Three episodes of 5 steps, as arrays of whole episodes."""
    return {"obs": np.zeros((3, 6, 3)), "action": np.zeros((3, 5, 1)), "reward": np.zeros((3, 5)), **values}


def one(**values: Any) -> dict[str, Any]:
    """One episode of 5 steps."""
    return {"obs": np.zeros((6, 3)), "action": np.zeros((5, 1)), "reward": np.zeros(5), **values}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (three_d(success=True), r"`success` has the shape \(\), expected a row for each of 3 episodes"),
        (three_d(reward=np.zeros((1, 5))), r"`reward` has the shape \(1, 5\), expected a row for each of 3"),
        (three_d(obs=np.zeros(3)), "`obs` is one number"),
        (
            one(episode=np.zeros(5), obs=np.zeros((5, 3)), success=True),
            r"`success` has the shape \(\) for 5 steps of 1 episodes",
        ),
        (one(episode=np.arange(5) // 3, obs=np.zeros(2)), r"`obs` has the shape \(2,\) for 5 steps of 2 episodes"),
        (one(episode=3), "`episode` must say for each of the 5 steps"),
        (one(action=0.0), "`action` is one number"),
        (one(action=np.zeros((0, 1))), "`action` is empty"),
        (one(action=np.zeros((5, 0))), "`action` is empty"),
        (one(obs=0.0), "`obs` is one number"),
        (one(obs=np.zeros((5, 3)), next_obs=0.0), "`next_obs` is one number"),
        (one(success=np.zeros(0, bool)), "`success` is told for 0 steps, there are 5"),
        (one(success=np.ones(2, bool)), "`success` is told for 2 steps, there are 5"),
        (one(terminated=np.zeros((5, 2))), "`terminated` is told for 10 steps, there are 5"),
    ],
)
def test_an_npz_of_shapes_that_do_not_fit_each_other(root: Path, columns: dict[str, Any], message: str) -> None:
    np.savez("odd.npz", **columns)
    with pytest.raises(ValueError, match=message):
        import_episodes(plain.read_demos("odd.npz", make_spec()), make_spec(), "odd", None, Reading(), "out")
    assert not Path("out").exists()


def test_an_npz_of_flags_that_lie_on_their_side(root: Path) -> None:
    np.savez("odd.npz", **one(terminated=np.array([[0, 0, 0, 0, 1]])))
    (recorded,) = plain.read_demos("odd.npz", make_spec()).episodes
    assert isinstance(recorded, Recorded)
    assert recorded.terminated


@pytest.mark.parametrize("header", ["{'descr': (", "{'descr': [", "{'descr': '''", "(" * 200, "{}", "\0"])
def test_an_npz_of_a_header_that_is_cut_short(root: Path, header: str) -> None:
    with zipfile.ZipFile("odd.npz", "w") as archive:
        text = header.encode()
        archive.writestr("obs.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    with pytest.raises(ValueError, match=r"odd\.npz is no \.npz of plain arrays; nothing in it was run"):
        plain.read_demos("odd.npz", make_spec())


def test_an_npz_packed_in_another_way_and_damaged(root: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile("odd.npz", "w", method) as archive:
            archive.writestr("obs.npy", os.urandom(4000))
        content = bytearray(Path("odd.npz").read_bytes())
        content[50:300] = b"\xff" * 250
        Path("odd.npz").write_bytes(content)
        with pytest.raises(ValueError, match="nothing in it was run"):
            plain.read_demos("odd.npz", make_spec())


def test_a_robomimic_file_with_an_empty_part(root: Path) -> None:
    def change(demo: h5py.Group) -> None:
        demo["obs/e"] = h5py.Empty("f4")

    path = robomimic_file(change)
    assert robomimic.read_demos(path, make_spec()).total == 1
    with pytest.raises(ValueError, match="there is no `e` to observe"):
        robomimic.read_demos(path, make_spec(), ["e"])
    with pytest.raises(ValueError, match="none of the 1 episodes"):
        path = robomimic_file(replaced("actions", h5py.Empty("f4")))
        import_episodes(robomimic.read_demos(path, make_spec()), make_spec(), "e", None, Reading(), "out")


def test_lerobot_paths_are_not_taken_from_its_file(root: Path) -> None:
    shutil.copytree(DATA / "lerobot", "lerobot")
    path = Path("lerobot/meta/info.json")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"data_path": "/etc/{chunk_index}", "video_path": "../x"})
    )
    spec = make_spec(name="l", obs_dim=6, action_dim=2, episode_length=9)
    assert lerobot.read_demos("lerobot", spec, "push the block").total == 2


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch executed']", "&a [*a, *a]", "name: [", "\x00"]
)
def test_yaml_with_tags_or_tricks(root: Path, text: str) -> None:
    Path("my_tasks/evil.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"evil\.yaml"):
        registry.load_file("my_tasks/evil.yaml")
    Path("params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml"):
        config.load(config.Publish)


# --- texts, and the token ---------------------------------------------------------------------------------------------


def test_texts_of_a_task_cannot_break_a_card(root: Path) -> None:
    evil = "</table><script>alert(1)</script> | `x` [click](javascript:x)\n---\nlicense: none"
    spec = make_spec(name="push", embodiment="A body.", instructions=(evil,))
    write_demos_release("datasets/demos", [spec], "demos", None)
    card = Path("demos/README.md").read_text()
    assert "<script>" not in card
    assert "[click](" not in card.replace("\\[click]", "")
    assert card.count("\n---\n") == 1


def test_control_characters_do_not_reach_the_terminal(root: Path, capsys) -> None:
    for path in (Path("ready/tasks.json"), Path("ready/task_embeddings/texts.json")):
        path.write_text(path.read_text().replace("hashed-ngrams-16", "\\u001b[2Jgone"))
    assert main(["info", "ready"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "?[2Jgone" in shown


def test_the_token_is_nowhere(root: Path, here, capfd, caplog) -> None:
    caplog.set_level("DEBUG")
    assert main(["push", "ready", "--repo", "me/eft-test", "--tag", "v1"]) == 0
    assert main(["pull", "me/eft-test", "--to", "pulled"]) == 0
    here.failures += [("/api/", 500)] * 20
    assert main(["push", "ready", "--repo", "me/other"]) == 2
    assert main(["info", "me/eft-test", "--revision", "v3"]) == 2
    captured = capfd.readouterr()
    assert here.token not in captured.out + captured.err + caplog.text
    for path in root.rglob("*"):
        if path.is_file() and "cache" not in path.parts:
            assert here.token.encode() not in path.read_bytes(), path


def test_a_release_that_holds_the_token_is_not_pushed(root: Path, here) -> None:
    Path("ready/README.md").write_text(f"my token is {here.token}")
    with pytest.raises(ValueError, match="would hold an access token") as error:
        push("ready", "me/eft-test", private=True, tag=None, api=HfApi())
    assert here.token not in str(error.value)
    assert here.repos == {}
