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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

ROOT = Path(".resume")
_LENGTHS = ("updates", "env_steps", "log_every", "save_every")


@contextmanager
def scratch_folder(stage: str, params: Sequence[Any], inputs: Sequence[str | Path], seed: int) -> Iterator[Path]:
    """Lock and yield the scratch folder of this stage with these parameters and inputs; remove it on success.

    Args:
        stage: the stage's name, with the task's for `adapt`.
        params: the parameter sections the result depends on.
        inputs: files and folders the result depends on.
        seed: the run's seed.

    Raises:
        ValueError: another process is working in the same folder.
    """
    folder = ROOT / f"{stage}-{fingerprint(params, inputs, seed)}"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run of `{stage}` with the same parameters is working in {folder}. Wait for it, or stop it."
        ) from None
    try:
        yield folder
        shutil.rmtree(folder)
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def fingerprint(params: Sequence[Any], inputs: Sequence[str | Path], seed: int) -> str:
    """Hash parameters (but not how long to train) and the contents of inputs into 12 hexadecimal digits.

    Raises:
        FileNotFoundError: an input is missing.
    """
    digest = hashlib.sha256()
    for section in params:
        values = section if isinstance(section, dict | tuple | list | str) else dataclasses.asdict(section)
        values = _without_lengths(values)
        digest.update(json.dumps([type(section).__name__, values], sort_keys=True, default=list).encode())
    digest.update(str(seed).encode())
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"the input {path} does not exist. Run `dvc repro`, which makes inputs in order.")
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file).encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:12]


def _without_lengths(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_lengths(value) for key, value in values.items() if key not in _LENGTHS}
