"""The reliability figures, in small: a few damaged files, one kill, one full disk, some steps, two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability import act, disk, fuzz, jobs, kill
from benchmarks.reliability.mutations import mutate

FEW = ("plain", "task")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two kinds of files, and results that go elsewhere."""
    monkeypatch.setattr(fuzz, "kinds", lambda every=fuzz.kinds: {name: every()[name] for name in FEW})
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path


def run(part: str, count: int, work: Path) -> list[dict[str, Any]]:
    return reliability.go_on(part, count, 1, work, time.monotonic() + 600)[0]


def test_damage_is_by_seed_and_damages() -> None:
    content = b'{"a": 1, "bcd": [2, 3]}' * 20
    for seed in range(200):
        first, second = (mutate(content, random.Random(seed), text=True) for _ in range(2))
        assert first == second
    assert sum(mutate(content, random.Random(seed), text=True)[0] != content for seed in range(200)) > 180


def test_damaged_files_are_refused_or_valid_and_a_run_goes_on(few: Path, monkeypatch, capsys) -> None:
    rows = run("fuzz", 4, few)
    assert [row["outcome"] in ("refused", "valid") for row in rows] == [True] * 4
    log = few / "fuzz-1/cases.jsonl"
    with log.open("a") as file:
        file.write('{"number": 4, "ki')  # killed while writing
    assert [row["number"] for row in run("fuzz", 6, few)] == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("fuzz ") == 6
    command = ["x", "--parts", "fuzz", "--fuzz", "6", "--work", str(few)]
    monkeypatch.setattr("sys.argv", command)
    reliability.main()
    written = json.loads((few / "results/reliability.json").read_text())
    assert written["claims"]["fuzz.files"] == {"value": 6, "target": 6, "better": "above", "holds": True}
    assert all(claim["holds"] for claim in written["claims"].values())
    assert written["parts"]["fuzz"]["seed"] == 1


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda: None, "valid"),
        (lambda: (_ for _ in ()).throw(ValueError("a is not b")), "refused"),
        (lambda: {}["a"], "unclear"),
        (lambda: (_ for _ in ()).throw(ValueError("")), "unclear"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crash"),
        (lambda: os.system("true"), "executed"),
        (lambda: bytearray(20 * 2**30), "memory"),
        (lambda: (Path.home() / "eft-fuzz").open("w").close(), "executed"),
    ],
)
def test_what_a_reader_may_not_do_is_seen(read, outcome: str, few: Path) -> None:
    (few / "case").mkdir()
    try:
        assert fuzz.watch(read, few / "case")["outcome"] == outcome
    finally:
        (Path.home() / "eft-fuzz").unlink(missing_ok=True)


def test_a_reader_that_hangs_is_ended(few: Path, monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    (few / "case").mkdir()
    found = fuzz.watch(lambda: time.sleep(60), few / "case")
    assert (found["outcome"], found["seconds"] < 10) == ("hang", True)


@pytest.fixture
def imports_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One job, which is quick."""
    for module in (jobs, kill, disk):
        monkeypatch.setattr(module, "JOBS", {"eft import": jobs.JOBS["eft import"]})
    monkeypatch.setattr(disk, "_NAMES", ["eft import"])


@pytest.mark.slow
def test_a_killed_import_ends_as_if_undisturbed(few: Path, imports_alone) -> None:
    rows = run("kill", 2, few)
    assert sum(row["kills"] for row in rows) >= 2
    claims, _ = kill.judge(rows, 2)
    assert all(claim["holds"] for claim in claims.values()), rows


@pytest.mark.slow
def test_a_full_disk_is_told_and_gone_on_from(few: Path, imports_alone) -> None:
    try:
        rows = run("disk", 2, few)
    except OSError as error:
        pytest.skip(str(error))
    assert any(row["filled"] for row in rows)
    claims, _ = disk.judge(rows, 2)
    assert all(claim["holds"] for claim in claims.values()), rows


def test_another_result_and_other_files_are_seen(few: Path) -> None:
    job = jobs.Job("x", [], ["out"])
    (few / "a/out").mkdir(parents=True)
    (few / "a/out/summary.json").write_text('{"seconds": 3.0, "score": 0.5}')
    (few / "a/input").write_text("x")
    before = jobs.written(job, few / "a"), jobs.untouched(job, few / "a")
    (few / "a/out/summary.json").write_text('{"seconds": 4.0, "score": 0.5}')
    assert (jobs.written(job, few / "a"), jobs.untouched(job, few / "a")) == before
    (few / "a/out/summary.json").write_text('{"seconds": 4.0, "score": 0.6}')
    (few / "a/input").write_text("y")
    assert jobs.written(job, few / "a") != before[0]
    assert jobs.untouched(job, few / "a") != before[1]


def test_acting_for_a_while_and_what_growth_is(few: Path, monkeypatch) -> None:
    assert act.growth([50.0, 100.0, 100.0, 100.0, 101.0, 101.0]) == 1.0
    monkeypatch.setattr(act, "SECONDS_PER_COUNT", 0.5)
    (row,) = run("act", 1, few)
    assert row["sentences"] > 1
    assert len(row["mb"]) > 3


@pytest.mark.slow
def test_two_processes_load_one_checkpoint_at_once(few: Path) -> None:
    (row,) = run("load", 2, few)
    assert (row["failed"], row["results"], len(row["seconds"])) == (0, 1, 2)
