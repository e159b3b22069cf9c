"""Whole files or none: after an exception, a full disk, a kill."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.files import atomic_file, atomic_folder, read_json, write_json


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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_fills_up_keeps_what_was_there(tmp_path, kind):
    prefix = own_mounts()
    if prefix is None:
        pytest.skip("this machine does not let a process mount a disk of its own")
    code = """
        import subprocess, sys
        from pathlib import Path
        from pipeline.files import atomic_file, atomic_folder
        disk, kind = Path(sys.argv[1]), sys.argv[2]
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
        target = disk / "a"
        def fill(kind, size):
            if kind == "file":
                with atomic_file(target) as partial:
                    partial.write_bytes(b"x" * size)
            else:
                with atomic_folder(target) as partial:
                    (partial / "1").write_bytes(b"x" * size)
        fill(kind, 1000)
        try:
            fill(kind, 10**6)
        except OSError as error:
            print(error)
        print([path.name for path in disk.iterdir()], sum(p.stat().st_size for p in disk.rglob("*") if p.is_file()))
        fill(kind, 100_000)
        print("goes on")
    """
    result = python(code, tmp_path, kind, before=prefix)
    assert result.returncode == 0, result.stderr
    error, left, goes_on = result.stdout.splitlines()
    assert f"no space left while writing {tmp_path}/a (" in error
    assert left == "['a'] 1000"
    assert goes_on == "goes on"


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
