"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

_PATIENCE = 60.0  # seconds that another process may take to write into a folder


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed onto `path`, else removed.

    Raises:
        OSError: the disk is full or not writable, also where safetensors found so; the message names the path and what
            to do.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise _explain(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it replaces `path` whole, else it is removed.

    For folders that belong to a stage or a run. Into one that a user chose, `add_files` writes.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent, path):
            _remove_left_over(path.parent, path.name, "partial")
            token = uuid.uuid4().hex[:8]
            partial, old = (path.with_name(f".{path.name}.{token}.{kind}") for kind in ("partial", "old"))
            try:
                partial.mkdir()
                yield partial
                _flush(partial)
                if path.exists():
                    path.rename(old)
                try:
                    partial.rename(path)
                except OSError:
                    if old.exists():
                        old.rename(path)
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            _remove_left_over(path.parent, path.name, "old")
    except (OSError, SafetensorError) as error:
        raise _explain(error, path) from error


@contextmanager
def add_files(folder: str | Path, last: str) -> Iterator[Path]:
    """Yield an empty temporary folder; on success its files are added to `folder`, or replace those of the same names.

    Nothing else in `folder` changes; it may be the current folder or a link. The files only belong together if the one
    named `last` is there: its old version goes before any other is replaced, and the new one comes after all others.
    By then all new files lie whole in a folder within, so that `complete_files` can end what a crash cut off. One
    process at a time adds files to a folder; another one waits for it.

    Raises:
        OSError: the disk is full or not writable, or a file is in the way of a folder or the other way round.
        TimeoutError: another process has been writing for a minute.
    """
    folder = Path(folder).resolve()  # what a link points to, so that the link stays
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is to be written", str(folder))
    partial = None
    try:
        with _alone(folder) as place:
            _remove_left_over(place, folder.name, "partial")
            partial = place / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
            partial.mkdir()
            yield partial
            _flush(partial)
            _replace_by_name(partial, folder, last)
    except (OSError, SafetensorError) as error:
        raise _explain(error, folder) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def complete_files(folder: str | Path, last: str) -> None:
    """Put in place what `add_files` had written whole when it was cut off; for readers, before they look for `last`.

    Raises:
        ValueError: a link would lead what is put in place out of the folder.
        OSError: there is something to put in place, and the folder cannot be written.
        TimeoutError: another process has been writing for a minute.
    """
    folder = Path(folder).resolve()
    if (folder / _ready(last)).is_dir():
        with _alone(folder):
            _complete(folder, last)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Not-a-number is refused: it is not JSON."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path, made_by: str) -> Any:
    """Read JSON, or say which stage makes the file.

    Args:
        path: the file.
        made_by: the command that writes it, for the error, e.g. `dvc repro embed`.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows write a mark before the text
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist. It is written by `{made_by}`: run that first.") from None
    except (ValueError, RecursionError) as error:  # the latter: lists within lists without end
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it and run `{made_by}` again.") from None


def _flush(folder: Path) -> None:
    """Have the disk write every file of a folder, for whoever may read it: safetensors writes for nobody else."""
    readers = folder.stat().st_mode & 0o444
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | readers)
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Yield where temporary folders for `folder` go, in it or, while it is not there, beside it; others wait."""
    with ExitStack() as stack:
        place: Path | None = None
        while place != (now := folder if folder.is_dir() else folder.parent):  # it may have come while we waited
            place = now
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(place, folder))
        yield now


@contextmanager
def _locked(place: Path, folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, a file in `place`; others wait."""
    lock = FileLock(place / f".{folder.name}.adding")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise TimeoutError(
            f"another process has been writing into {folder} for {_PATIENCE:g} s. Wait for it, or choose "
            "another folder."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _remove_left_over(place: Path, name: str, kind: str) -> None:
    """Remove temporary folders, also those of processes that were killed; for who holds the lock: none is in use."""
    for path in place.iterdir():
        if re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.{kind}", path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _ready(last: str) -> str:
    """Return the name of the folder, within the one that they go to, of files that are whole and not in place yet."""
    return f".{last}.ready"


def _replace_by_name(source: Path, folder: Path, last: str) -> None:
    """Move every file of `source` to the same path in `folder`, the one named `last` at the end."""
    if not folder.exists():
        source.rename(folder)
        return
    for name in _files(source):  # whatever may be refused is refused before anything changes
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is where a file is to be written", str(folder / name))
    _complete(folder, last)
    source.rename(folder / _ready(last))  # from here on it is the new files that count
    _put_in_place(folder, last)


def _complete(folder: Path, last: str) -> None:
    """Put in place what another process left ready: it may have come from anywhere, so that no link is followed."""
    source = folder / _ready(last)
    for name in _files(source):
        if (source / name).is_symlink() or not (folder / name).parent.resolve().is_relative_to(folder):
            raise ValueError(
                f"{folder / name}: a link leads out of {folder}, and nothing was written there. Remove it."
            )
    _put_in_place(folder, last)


def _put_in_place(folder: Path, last: str) -> None:
    """Move what is ready to where it belongs, or the rest of it; nothing where nothing is."""
    source = folder / _ready(last)
    names = _files(source)
    if Path(last) in names:
        (folder / last).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == Path(last)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(folder / name)
    shutil.rmtree(source, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    """Return the paths in a folder of all files in it."""
    return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _explain(error: OSError | SafetensorError, path: Path) -> Exception:
    """Return what to raise: safetensors hides the system's errors in one of its own, by their numbers."""
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            return error
        error = OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    free = shutil.disk_usage(path.parent).free / 2**20
    return OSError(
        error.errno,
        f"no space left while writing {path} ({free:.0f} MiB free on that disk). Nothing half-written was kept. "
        "Free some space and run the same command again: it goes on where it stopped",
    )
