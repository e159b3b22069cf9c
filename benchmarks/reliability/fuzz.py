"""Damaged files of every kind that is read from disk: each gives a clear error or a valid result, and nothing else.

Each file is read in a process of its own, forked from one that has everything imported: a crash, a hang or memory
without end is seen, and whatever it would execute, write elsewhere or connect to is reported by an audit hook.
"""

from __future__ import annotations

import json
import os
import random
import resource
import runpy
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reliability.mutations import mutate
from benchmarks.results import claim

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
COUNT, COUNTS = 500, "damaged files"
SECONDS, BYTES = 10.0, 2 * 2**30  # that one file may take
_TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".csv")
_EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "pty.spawn")
_LONGEST = 4000  # characters of a message that someone still reads


class Kind(NamedTuple):
    """One kind of input: a folder of sound files, those that are damaged, and what reads them."""

    make: Callable[[Path], None]
    damaged: str  # pattern of the files to choose from
    read: Callable[[], Any]  # in the folder


def kinds() -> dict[str, Kind]:
    """Return every kind of file that is read, by name."""
    from benchmarks.reliability import inputs

    return inputs.KINDS


def run_cases(count: int, seed: int, rows: list[dict[str, Any]], work: Path) -> Iterator[dict[str, Any]]:
    """Damage and read `count` files, each by a seed of its own; those among the rows are passed over.

    Yields:
        `number`, `kind`, `file`, `damage`, `outcome` (`refused`, `valid`, or what is wrong), `detail`, `seconds`, `mb`.
    """
    every = kinds()
    names = sorted(every)
    sound = work / "sound"
    for name in names:
        if not (sound / name).is_dir():
            partial = Path(tempfile.mkdtemp(dir=work))
            every[name].make(partial)
            sound.mkdir(exist_ok=True)
            partial.rename(sound / name)
    done = {row["number"] for row in rows}
    for number in range(count):
        if number in done:
            continue
        name = names[number % len(names)]
        draw = random.Random(f"{seed}-{number}")
        with tempfile.TemporaryDirectory(dir=work) as place:
            folder = Path(place) / "case"
            shutil.copytree(sound / name, folder)
            paths = sorted(path for path in folder.glob(every[name].damaged) if path.is_file())
            path = draw.choice(paths)
            content, damage = mutate(path.read_bytes(), draw, path.suffix in _TEXTS)
            path.write_bytes(content)
            row = {"number": number, "kind": name, "file": str(path.relative_to(folder)), "damage": damage}
            yield row | watch(every[name].read, folder)


def watch(read: Callable[[], Any], folder: Path) -> dict[str, Any]:
    """Call `read` in a forked process within `folder`, and say what came of it."""
    receive, send = os.pipe()
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _be_read(read, folder, send)
    os.close(send)
    said = b""
    while (left := started + SECONDS - time.monotonic()) > 0:
        if not select.select([receive], [], [], left)[0]:
            break
        if not (part := os.read(receive, 65536)):
            break
        said += part
    hung = time.monotonic() - started >= SECONDS
    if hung:
        os.kill(pid, signal.SIGKILL)
    os.close(receive)
    _, status, usage = os.wait4(pid, 0)
    measured = {"seconds": round(time.monotonic() - started, 2), "mb": round(usage.ru_maxrss / 1024)}
    if hung:
        return {"outcome": "hang", "detail": f"over {SECONDS:g} s"} | measured
    if not said or os.WIFSIGNALED(status):
        return {"outcome": "crash", "detail": f"ended with status {status}"} | measured
    found = json.loads(said)
    if usage.ru_maxrss * 1024 > BYTES:
        found = {"outcome": "memory", "detail": found["detail"]}
    return found | measured


def _be_read(read: Callable[[], Any], folder: Path, send: int) -> None:
    """The child: read, report, end."""
    outcome: dict[str, str] = {}
    suspicious: list[str] = []
    try:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        virtual = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * BYTES, virtual + 2 * BYTES))
        sys.addaudithook(_guard(folder, suspicious))
        outcome = _outcome(read)
    except BaseException as error:  # whatever it is, the parent must hear of it
        outcome = {"outcome": "unclear", "detail": f"{type(error).__name__}: {error}"[:500]}
    if suspicious:
        outcome = {"outcome": "executed", "detail": "; ".join(suspicious)[:500]}
    os.write(send, json.dumps(outcome).encode())
    os._exit(0)


def _outcome(read: Callable[[], Any]) -> dict[str, str]:
    try:
        read()
    except MemoryError as error:
        return {"outcome": "memory", "detail": f"MemoryError: {error}"[:500]}
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        if isinstance(error, (UnicodeError, json.JSONDecodeError)) or not text.strip() or len(text) > _LONGEST:
            return {"outcome": "unclear", "detail": f"{type(error).__name__}: {text}"[:500]}
        return {"outcome": "refused", "detail": text[:200]}
    except Exception as error:  # what a user would see as a traceback
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        at = "" if frame is None else f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        return {"outcome": "unclear", "detail": f"{type(error).__name__}: {error}{at}"[:500]}
    return {"outcome": "valid", "detail": ""}


def _guard(folder: Path, suspicious: list[str]) -> Callable[[str, tuple], None]:
    """Return an audit hook that notes what reading a file should never do."""
    allowed = str(folder.parent.resolve()), "/dev/null", "/dev/shm", "/proc", tempfile.gettempdir()

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(_EXECUTES):
            suspicious.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            path = str(Path(os.fsdecode(arguments[0])).resolve()) if isinstance(arguments[0], (str, bytes)) else ""
            if path and not path.startswith(allowed):
                suspicious.append(f"writes {path}")

    return hook


def tests_file(name: str) -> dict[str, Any]:
    """Return what a file of the tests defines."""
    return runpy.run_path(str(ROOT / "tests" / name))


def describe(row: dict[str, Any]) -> str:
    """Say in a line what came of a case."""
    return f"{row['kind']}, {row['file']}: {row['damage']} -> {row['outcome']} {row['detail'][:90]!r}"


def judge(rows: list[dict[str, Any]], count: int) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the claims, and what else is worth keeping."""
    outcomes = Counter(row["outcome"] for row in rows)
    bad = [row for row in rows if row["outcome"] not in ("refused", "valid")]
    claims = {
        "files": claim(len(rows), count, "above"),
        "neither_a_clear_error_nor_valid": claim(len(bad), 0, "below"),
        "executed_or_wrote_elsewhere": claim(outcomes["executed"], 0, "below"),
        "most_seconds": claim(max((row["seconds"] for row in rows), default=None), SECONDS, "below"),
        "most_mb": claim(max((row["mb"] for row in rows), default=None), BYTES / 2**20, "below"),
    }
    kinds = {
        kind: dict(Counter(row["outcome"] for row in rows if row["kind"] == kind))
        for kind in sorted({row["kind"] for row in rows})
    }
    return claims, {"kinds": kinds, "bad": bad}
