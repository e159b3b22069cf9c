"""Whole files or none: after an exception, a full disk, a kill."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import files
from pipeline.files import add_files, atomic_file, atomic_folder, complete_files, read_json, write_json
from pipeline.yaml_text import parse_yaml


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def python(code: str, *arguments: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [*before, sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_file_appears_whole_in_folders_that_it_makes(tmp_path):
    with atomic_file(tmp_path / "a/b/c.txt") as partial:
        partial.write_text("new")
        assert not (tmp_path / "a/b/c.txt").exists()
    assert contents(tmp_path) == {"a/b/c.txt": "new"}


def test_an_exception_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="in between"), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise RuntimeError("in between")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt"):
        pass
    assert contents(tmp_path) == {}


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    (tmp_path / "a/old").mkdir(parents=True)
    (tmp_path / "a/old/1").write_text("old")
    with atomic_folder(tmp_path / "a") as partial:
        (partial / "new").mkdir()
        (partial / "new/2").write_text("new")
        assert contents(tmp_path / "a") == {"old/1": "old"}
    assert contents(tmp_path) == {"a/new/2": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_exception_leaves_the_old_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_text("old")
    with pytest.raises(RuntimeError, match="in between"), atomic_folder(tmp_path / "a") as partial:
        (partial / "2").write_text("half")
        raise RuntimeError("in between")
    assert contents(tmp_path) == {"a/1": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def owned(tmp_path) -> Path:
    """A user's folder with work of theirs and two files that were added before."""
    folder = tmp_path / "proj"
    (folder / "sub/deep").mkdir(parents=True)
    for name in ("thesis.md", "sub/notes.md", "sub/deep/data.csv"):
        (folder / name).write_text("work")
    for name in ("list.json", "sub/weights"):
        (folder / name).write_text("old")
    return folder


WORK = {"thesis.md": "work", "sub/notes.md": "work", "sub/deep/data.csv": "work"}
OLD, NEW = ({"list.json": text, "sub/weights": text} for text in ("old", "new"))


def add_new(folder: str | Path) -> None:
    with add_files(folder, last="list.json") as partial:
        (partial / "sub").mkdir()
        (partial / "list.json").write_text("new")
        (partial / "sub/weights").write_text("new")


def test_files_are_added_or_replaced_by_name_and_nothing_else_changes(owned, tmp_path):
    add_new(owned)
    assert contents(owned) == WORK | NEW
    add_new(tmp_path / "a/new/one")
    assert contents(tmp_path / "a/new/one") == NEW
    assert [path.name for path in (tmp_path / "a/new").iterdir()] == ["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "proj"]


def test_files_go_to_where_a_link_leads_and_into_the_current_folder(owned, tmp_path, monkeypatch):
    for link, target in (("link", owned), ("dangling", tmp_path / "disk/new")):
        (tmp_path / link).symlink_to(target)
        add_new(tmp_path / link)
        assert (tmp_path / link).is_symlink()
    assert contents(owned) == WORK | NEW
    assert contents(tmp_path / "disk/new") == NEW
    monkeypatch.chdir(owned)
    (owned / "list.json").write_text("old")
    add_new(".")
    assert contents(Path.cwd()) == WORK | NEW


def test_an_exception_leaves_what_files_were_to_be_added_to(owned, tmp_path):
    for folder in (owned, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="in between"), add_files(folder, last="list.json") as partial:
            (partial / "list.json").write_text("half")
            raise RuntimeError("in between")
    assert contents(owned) == WORK | OLD
    assert [path.name for path in tmp_path.iterdir()] == ["proj"]


@pytest.mark.parametrize("in_the_way", ["list.json", "sub"])
def test_what_is_in_the_way_of_files_is_named_before_anything_changes(owned, in_the_way):
    if in_the_way == "sub":
        shutil.rmtree(owned / "sub")
        (owned / "sub").write_text("a file")
    else:
        (owned / "list.json").unlink()
        (owned / "list.json").mkdir()
    before = contents(owned)
    with pytest.raises(OSError, match=rf"proj/{in_the_way}"):
        add_new(owned)
    assert contents(owned) == before
    with pytest.raises(NotADirectoryError, match=r"a file is where a folder is to be written.*thesis\.md"):
        add_new(owned / "thesis.md")


def test_files_of_which_only_some_were_replaced_are_without_the_last_one(owned, monkeypatch):
    seen = []
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        seen.append((Path(target).name, (owned / "list.json").exists()))
        if Path(target).name == "list.json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add_new(owned)
    assert seen == [("weights", False), ("list.json", False)]
    assert contents(owned) == WORK | {"sub/weights": "new", ".list.json.ready/list.json": "new"}
    monkeypatch.setattr(Path, "replace", replace)
    complete_files(owned, "list.json")
    assert contents(owned) == WORK | NEW
    complete_files(owned, "list.json")
    assert contents(owned) == WORK | NEW


def cut_off(owned: Path) -> Path:
    """Leave files as if a process had been killed between two of them; return where those are that are not in place."""
    ready = owned / ".list.json.ready"
    ready.mkdir()
    (owned / "list.json").unlink()
    (owned / "sub/weights").write_text("newer")
    (ready / "list.json").write_text("newer")
    return ready


def test_what_a_kill_cut_off_is_completed_before_other_files_come(owned):
    cut_off(owned)
    with add_files(owned, last="other.json") as partial:
        (partial / "other.json").write_text("new")
    assert not (owned / "list.json").exists()
    with pytest.raises(RuntimeError, match="in between"), add_files(owned, last="list.json"):
        raise RuntimeError("in between")
    complete_files(owned, "list.json")
    assert contents(owned) == WORK | {"list.json": "newer", "sub/weights": "newer", "other.json": "new"}
    cut_off(owned)
    add_new(owned)
    assert contents(owned) == WORK | NEW | {"other.json": "new"}


@pytest.mark.parametrize("link", ["file", "folder"])
def test_completing_follows_no_link_out_of_the_folder(owned, tmp_path, link):
    ready, outside = cut_off(owned), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("theirs")
    if link == "file":
        (ready / "sub").mkdir()
        (ready / "sub/weights").symlink_to(outside / "secret")
    else:
        (owned / "away").symlink_to(outside)
        (ready / "away").mkdir()
        (ready / "away/secret").write_text("evil")
    with pytest.raises(ValueError, match="a link leads out of"):
        complete_files(owned, "list.json")
    assert not (owned / "list.json").exists()
    assert (outside / "secret").read_text() == "theirs"


def test_one_process_at_a_time_adds_files(owned, monkeypatch, tmp_path):
    def add(folder: Path, text: str, begun: threading.Event | None = None) -> None:
        with add_files(folder, last="list.json") as partial:
            (partial / "list.json").write_text(text)
            if begun:
                begun.set()
                time.sleep(0.3)

    for folder in (owned, tmp_path / "new"):
        begun = threading.Event()
        first = threading.Thread(target=add, args=(folder, "first", begun))
        first.start()
        assert begun.wait(60)
        add(folder, "second")  # waits for the other one
        first.join()
        assert (folder / "list.json").read_text() == "second"
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    with add_files(owned, last="list.json"), pytest.raises(TimeoutError, match=r"another process .* into .*proj"):
        add(owned, "third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "proj"]
    assert sorted(path.name for path in owned.iterdir()) == ["list.json", "sub", "thesis.md"]


def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    code = """
        import os, signal, sys
        from pipeline.files import atomic_file, atomic_folder
        target = sys.argv[1]
        try:
            with atomic_folder(target + "/folder") as folder, atomic_file(target + "/file") as file:
                (folder / "1").write_text("half")
                file.write_text("half")
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
        except KeyboardInterrupt:
            sys.exit(130)
    """
    assert python(code, tmp_path).returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_the_old_file_under_its_name(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    code = """
        import os, signal, sys
        from pipeline.files import atomic_file
        with atomic_file(sys.argv[1]) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert python(code, tmp_path / "a.txt").returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("write", ["atomic_folder(target)", "add_files(target, last='1')"])
def test_what_a_kill_left_half_written_is_gone_once_the_next_one_has_written(tmp_path, write):
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from pipeline.files import add_files, atomic_folder
        target = Path(sys.argv[1])
        with {write} as partial:
            (partial / "1").write_text("half")
            if len(sys.argv) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / ".out.v2.0123abcd.partial").mkdir()  # of another folder
    for _ in range(2):
        assert python(code, tmp_path / "out").returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".out.*.partial"))
    assert python(code, tmp_path / "out", "whole").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.v2.0123abcd.partial", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1"]


def test_a_full_disk_is_explained(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(OSError, match=r"no space left while writing .*a\.txt \(\d+ MiB free") as error,
        atomic_file(tmp_path / "a.txt") as partial,
    ):
        partial.write_text("half")
        Path("/dev/full").write_text("what the kernel refuses: no space left on device")
    assert error.value.errno == errno.ENOSPC
    assert "run the same command again" in str(error.value)
    assert contents(tmp_path) == {"a.txt": "old"}


def own_mounts() -> tuple[str, ...] | None:
    """A command prefix under which a process may mount a small disk of its own, or None."""
    prefix = ("unshare", "--mount", "--map-root-user")
    if not shutil.which("unshare"):
        return None
    probe = [*prefix, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return prefix if subprocess.run(probe, capture_output=True).returncode == 0 else None


@pytest.mark.parametrize("writer", ["bytes", "safetensors"])
@pytest.mark.parametrize("kind", ["file", "folder", "files"])
def test_a_disk_that_fills_up_keeps_what_was_there(tmp_path, kind, writer):
    prefix = own_mounts()
    if prefix is None:
        pytest.skip("this machine does not let a process mount a disk of its own")
    code = """
        import subprocess, sys
        from pathlib import Path
        import numpy as np
        from safetensors.numpy import save_file
        from pipeline.files import add_files, atomic_file, atomic_folder
        disk, kind, writer = Path(sys.argv[1]), *sys.argv[2:]
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
        target = disk / "a"
        def write(path, size):
            if writer == "bytes":
                path.write_bytes(b"x" * size)
            else:  # with a header of 64 bytes and the number of these
                save_file({"x": np.zeros(size - 72, np.uint8)}, path)
        def fill(kind, size):
            if kind == "file":
                with atomic_file(target) as partial:
                    write(partial, size)
            else:
                with atomic_folder(target) if kind == "folder" else add_files(target, last="1") as partial:
                    write(partial / "1", size)
        fill(kind, 1000)
        try:
            fill(kind, 10**6)
        except OSError as error:
            print(error)
        print([path.name for path in disk.iterdir()], sum(p.stat().st_size for p in disk.rglob("*") if p.is_file()))
        fill(kind, 100_000)
        print("goes on")
    """
    result = python(code, tmp_path, kind, writer, before=prefix)
    assert result.returncode == 0, result.stderr
    error, left, goes_on = result.stdout.splitlines()
    assert f"no space left while writing {tmp_path}/a (" in error
    assert left == "['a'] 1000"
    assert goes_on == "goes on"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
@pytest.mark.parametrize("kind", ["folder", "files"])
def test_whoever_may_read_a_folder_may_read_its_weights(tmp_path, kind, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "a") if kind == "folder" else add_files(tmp_path / "a", last="1") as partial:
            save_file({"x": np.zeros(1)}, partial / "1")
    finally:
        os.umask(before)
    assert (tmp_path / "a/1").stat().st_mode & 0o777 == mode


def test_a_limit_on_file_size_leaves_nothing(tmp_path):
    code = """
        import resource, signal, sys
        from pipeline.files import write_json
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        write_json(sys.argv[1], list(range(10_000)))
    """
    result = python(code, tmp_path / "a.json")
    assert "File too large" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path):
    content = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "eft") == content
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_is_not_json_is_refused_and_nothing_written(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.json does not exist. It is written by `dvc repro embed`"):
        read_json(tmp_path / "a.json", "dvc repro embed")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_a_broken_file_says_what_to_do(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="not valid JSON .* Delete it and run `dvc repro embed` again"):
        read_json(tmp_path / "a.json", "dvc repro embed")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=str(tmp_path)):
            write_json(tmp_path / "a.json", json.loads("1"))
    finally:
        tmp_path.chmod(0o700)


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "brackets are nested more than 50 deep"),
        ("- " * 5000, "recursion"),
        (BOMB, "more than 200,000 values, by its aliases"),
        ("a: &a [*a]", "more than 200,000 values, by its aliases"),
        ("a: [1", "expected"),
        ("a: 2001-99-99", "month"),
    ],
    ids=["brackets", "dashes", "aliases", "itself", "syntax", "date"],
)
def test_yaml_that_cannot_be_meant_is_refused_at_once(text, message):
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"params\.yaml is not valid YAML: (.|\n)*{message}"):
        parse_yaml(text, "params.yaml")
    assert time.monotonic() - started < 5


def test_yaml_is_read_as_dvc_does():
    assert parse_yaml("{lr: 3e-4, tasks: [a, b], none: null}", "x") == {"lr": 3e-4, "tasks": ["a", "b"], "none": None}
