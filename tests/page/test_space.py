"""A Space: its files say what the Hub needs to know, and what its Dockerfile starts is the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import store
from pipeline.cli import main
from pipeline.page.space import PORT, write_space
from pipeline.tasks.registry import get
from tests.page.untrained import make_agent

TITLE = 'Ask: "the arm" - it\'s #1'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "checkpoint"
    make_agent(get(["pendulum-swingup", "pygame-pong"])).save_pretrained(folder)
    return folder


def front_matter(folder: Path) -> dict:
    return YAML(typ="safe").load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def command(folder: Path) -> list[str]:
    """What Docker starts."""
    line = next(line for line in (folder / "Dockerfile").read_text(encoding="utf-8").splitlines() if line[:4] == "CMD ")
    return json.loads(line.removeprefix("CMD "))


def test_a_folder_s_checkpoint_goes_with_it(checkpoint, tmp_path: Path, capsys):
    (tmp_path / "space").mkdir()
    (tmp_path / "space/.gitattributes").write_text("of the clone")
    assert main(["space", str(tmp_path / "space"), "--checkpoint", str(checkpoint), "--title", TITLE]) == 0
    space = tmp_path / "space"
    assert "docker build" in capsys.readouterr().out
    about = front_matter(space)
    assert (about["sdk"], about["app_port"], about["title"]) == ("docker", PORT, TITLE)
    assert "models" not in about
    assert (space / ".gitattributes").read_text() == "of the clone"
    assert (space / "checkpoint/model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    dockerfile = (space / "Dockerfile").read_text(encoding="utf-8")
    assert '"./eft[dmcontrol,miniarcade,play]"' in dockerfile  # what its tasks need, and no more
    assert command(space)[:3] == ["eft", "play", "checkpoint"]
    copied = {path.name for path in (space / "eft").iterdir()}
    assert copied == {
        "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "eft", "pipeline", "stages",
        "dvc.yaml", "params.yaml", "presets", "my_tasks", ".gitignore", ".dvcignore",
    }  # fmt: skip
    carried = tomllib.loads((space / "eft/pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert all((space / "eft" / name).exists() for name in carried["force-include"])  # else pip cannot build it
    assert not list((space / "eft").rglob("__pycache__"))


def test_a_checkpoint_of_the_hub_is_named_by_its_commit(checkpoint, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(store, "fetch", lambda *_: store.Found(checkpoint, "c" * 40))
    write_space(tmp_path / "space", "user/name", None, TITLE, "eft==0.1.0")
    assert front_matter(tmp_path / "space")["models"] == ["user/name"]
    assert command(tmp_path / "space")[:5] == ["eft", "play", "user/name", "--revision", "c" * 40]
    dockerfile = (tmp_path / "space/Dockerfile").read_text(encoding="utf-8")
    assert installed(tmp_path / "space")[-1] == "eft[dmcontrol,miniarcade,play]==0.1.0"
    assert "COPY" not in dockerfile
    assert {path.name for path in (tmp_path / "space").iterdir()} == {"README.md", "Dockerfile"}


def installed(folder: Path) -> list[str]:
    """What pip is given."""
    lines = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return next(json.loads(line[4:]) for line in lines if line.startswith('RUN ["pip"'))


def test_an_address_is_installed_as_it_is(checkpoint, tmp_path: Path):
    for number, wheel in enumerate(("https://x.org/eft-1.whl?a=1&b=$(2)", "git+https://x.org/eft")):
        write_space(tmp_path / str(number), str(checkpoint), None, TITLE, wheel)
        assert installed(tmp_path / str(number))[-1] == f"eft[dmcontrol,miniarcade,play] @ {wheel}"
    write_space(tmp_path / "named", str(checkpoint), None, TITLE, "eft @ https://x.org/eft-1.whl")
    assert installed(tmp_path / "named")[-1] == "eft[dmcontrol,miniarcade,play] @ https://x.org/eft-1.whl"


def test_what_lies_beside_a_checkpoint_stays_at_home(checkpoint, tmp_path: Path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "my <odd> näme, x"))
    (folder / "notes.txt").write_text("a token")
    (folder / "link").symlink_to(tmp_path)
    write_space(folder / "space", str(folder), None, TITLE)  # within it, even
    assert not list((folder / "space").rglob("notes.txt"))
    assert not list((folder / "space").rglob("link"))
    assert store.read_checkpoint(folder / "space/checkpoint").specs


@pytest.mark.parametrize(
    ("encoder", "there"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2@0123456789abcdef", True),
        (f"user/name@{'c' * 40}@0123456789abcdef", True),
        ("my-folder@0123456789abcdef", False),
        ('x"; $(touch broken-in) `id`@0123456789abcdef', False),
        (f"user/$(touch broken-in)@{'c' * 40}@0123456789abcdef", False),
    ],
)
def test_an_encoder_is_fetched_by_its_name_and_no_shell_reads_it(checkpoint, tmp_path, encoder, there, capsys):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    texts = json.loads((folder / "task_embeddings/texts.json").read_text())
    (folder / "task_embeddings/texts.json").write_text(json.dumps(texts | {"encoder": encoder}))
    assert main(["space", str(tmp_path / "space"), "--checkpoint", str(folder)]) == 0
    assert ("the Space will not have it" in capsys.readouterr().err) != there
    dockerfile = (tmp_path / "space/Dockerfile").read_text(encoding="utf-8")
    assert "$(" not in dockerfile
    if there:
        line = next(line for line in dockerfile.splitlines() if line.startswith('RUN ["python"'))
        assert json.loads(line[4:])[-1] == encoder
    else:
        assert "find_encoder" not in dockerfile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere/at/all"], "neither a folder that exists nor a repo id"),
        (["--checkpoint", ".", "--title", "two\nlines"], "is not one line of text"),
    ],
)
def test_what_cannot_be_a_space_is_refused_and_nothing_written(tmp_path: Path, capsys, arguments, message):
    assert main(["space", str(tmp_path / "space"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_without_a_checkout_it_asks_what_to_install(checkpoint, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("pipeline.page.space.ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="--eft"):
        write_space(tmp_path / "space", str(checkpoint), None, TITLE)


@pytest.mark.slow
def test_what_docker_starts_is_the_page(checkpoint, tmp_path: Path):
    pytest.importorskip("viser", reason="the page needs the extra: pip install 'eft[play]'")
    space = tmp_path / "space"
    write_space(space, str(checkpoint), None, TITLE)
    program, *arguments = command(space)
    assert program == "eft"
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    assert arguments[arguments.index("--port") + 1] == str(PORT)
    # Here with the Python at hand, at a free port of this machine alone.
    at = arguments.index("--port")
    del arguments[at : at + 2]
    arguments[arguments.index("--host") + 1] = "127.0.0.1"
    paths = os.pathsep.join([str(space / "eft"), *filter(None, [os.environ.get("PYTHONPATH")])])
    where = "import pipeline; assert 'space' in pipeline.__path__[0]"
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", where], cwd=space, env=environment, check=True)
    start = [sys.executable, "-m", "pipeline.cli", *arguments]
    process = subprocess.Popen(start, cwd=space, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(found[0], timeout=60) as answer:
            assert answer.status == 200
            assert b"<html" in answer.read().lower()
    finally:
        process.terminate()
        assert process.wait(60) == 0
