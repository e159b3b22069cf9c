"""Where a stage keeps what it needs to go on after a crash: `.resume/<stage>-<hash of params and inputs>/`.

DVC deletes a stage's outputs before it runs, so a half-finished run must live outside them. The hash covers every
parameter and input that shapes the result, so that changed ones start anew; how long to train is left out, so that a
longer run goes on from a shorter one that was stopped. The folder is locked while in use and removed on success.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.files import sha256, write_json
from pipeline.run.ranks import Ranks

ROOT = Path(".resume")
_LENGTHS = ("updates", "env_steps", "log_every", "save_every")
_SHAPING = "shaping.json"  # what the hash covers, so that a changed run can say what changed


@contextmanager
def open_run_dir(
    stage: str, params: Sequence[Any], inputs: Sequence[str | Path], seed: int, ranks: Ranks | None = None
) -> Iterator[Path]:
    """Lock and yield the folder of this stage's run with these parameters and inputs; remove it on success.

    Args:
        stage: the stage's name, with the task's for `adapt`.
        params: the parameter sections the result depends on.
        inputs: files and folders the result depends on.
        seed: the run's seed.
        ranks: the processes of the run; rank 0 holds the lock for all.

    Raises:
        ValueError: another run is working in the same folder.
    """
    ranks = ranks or Ranks()
    if not ranks.is_main:
        folder = ROOT / ranks.from_main(None)
        if not folder.is_dir():
            raise ValueError(f"{folder.resolve()} is not there: all machines of a run must see the same project folder")
        yield folder
        ranks.wait()
        return
    shaping = _describe(params, inputs, seed)
    folder = ROOT / f"{stage}-{_digest(shaping)}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run of `{stage}` with the same parameters is working in {folder}. Wait for it, or stop it."
        ) from None
    try:
        for left_over in ROOT.glob(f".{folder.name}.done"):
            shutil.rmtree(left_over)
        _tell_of_others(stage, folder, shaping)
        write_json(folder / _SHAPING, shaping)
        ranks.from_main(folder.name)
        yield folder
        ranks.wait()
        # Renamed first: a folder half removed would be taken for a run to go on with.
        shutil.rmtree(folder.rename(ROOT / f".{folder.name}.done"))
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


@contextmanager
def hold_output(folder: Path, command: str, option: str = "--output") -> Iterator[None]:
    """Keep a folder for one run that writes into it at its end: another would silently replace what the first wrote.

    Args:
        folder: where the results go; it need not be there yet.
        command: of the run, for the error, e.g. `eft adapt`.
        option: by which it is told another folder, for the error.

    Raises:
        ValueError: another run keeps it, or a file is there.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, where `{command}` is to write a folder. Choose another with {option}.")
    made = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another `{command}` is going to write into {folder}. Choose another folder with {option}, or wait for it."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # there is something in it
                folder.parent.rmdir()


def fingerprint(params: Sequence[Any], inputs: Sequence[str | Path], seed: int) -> str:
    """Hash parameters (but not how long to train) and the contents of inputs into 12 hexadecimal digits.

    Raises:
        FileNotFoundError: an input is missing.
    """
    return _digest(_describe(params, inputs, seed))


def _digest(shaping: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


def _describe(params: Sequence[Any], inputs: Sequence[str | Path], seed: int) -> dict[str, Any]:
    """Return what shapes the result, as one flat table of names and plain values."""
    table: dict[str, Any] = {"seed": seed}
    for number, section in enumerate(params):
        named = dataclasses.is_dataclass(section) or isinstance(section, dict)
        name = type(section).__name__.lower() if dataclasses.is_dataclass(section) else f"values {number}"
        values = dataclasses.asdict(section) if dataclasses.is_dataclass(section) else section  # type: ignore[arg-type]
        table |= _flatten(name, _without_lengths(values)) if named else {name: values}
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"the input {path} does not exist. Run `dvc repro`, which makes inputs in order.")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            table[str(file)] = sha256(file)
    return json.loads(json.dumps(table, default=list))


def _flatten(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {name: values}
    return {key: leaf for part, value in values.items() for key, leaf in _flatten(f"{name}.{part}", value).items()}


def _without_lengths(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_lengths(value) for key, value in values.items() if key not in _LENGTHS}


def _tell_of_others(stage: str, folder: Path, shaping: dict[str, Any]) -> None:
    """Say which unfinished runs of this stage lie beside, and what was changed since: none of them is resumed."""
    if any(folder.glob("**/save-*")):
        return
    for other in sorted(ROOT.glob(f"{stage}-{'?' * 12}")):
        if other == folder or not any(other.glob("**/save-*")):
            continue
        try:
            before = json.loads((other / _SHAPING).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(before, dict):
            continue
        changed = [key for key in sorted(before.keys() | shaping.keys()) if before.get(key) != shaping.get(key)]
        listed = [f"{key} ({_short(before, key)} -> {_short(shaping, key)})" for key in changed[:5]] + [
            f"{len(changed) - 5} more"
        ] * (len(changed) > 5)
        size = sum(file.stat().st_size for file in other.rglob("*") if file.is_file()) / 2**20
        print(
            f"{stage}: starts anew. An unfinished run lies in {other} ({size:.0f} MiB), with other "
            f"parameters or inputs: {', '.join(listed)}. Put them back to go on with it, or delete the folder.",
            file=sys.stderr,
        )


def _short(table: dict[str, Any], key: str) -> str:
    if key not in table:
        return "absent"
    text = json.dumps(table[key])
    return text if len(text) <= 40 else text[:12] + "..."
