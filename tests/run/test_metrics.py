"""The log of a run: one file, the same bytes whether it was killed or not, small however long the run is."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.run.metrics import FILE, MetricsLog, read_rows, start_trackers

TASKS = [f"mw-some-task-{number:03d}" for number in range(200)]


def test_a_row_has_what_was_logged_at_its_step(tmp_path):
    log = MetricsLog(tmp_path / "run")
    log.write(0, {"eval/score": 0.867319991677592})
    values = {"train/total_loss": 2.3099999427795, "replay/transitions_sum": 12345678.0}
    log.write(800, values, {"use/q": {"a": [0.5, 1]}})
    assert (tmp_path / "run" / FILE).read_text() == (
        '{"step":0,"eval/score":0.867319991677592}\n'
        '{"step":800,"train/total_loss":2.31,"replay/transitions_sum":12345678,"use/q":{"a":[0.5,1]}}\n'
    )
    assert log.logged("train/total_loss") == [(800, 2.31)]


def test_a_value_that_is_not_finite_is_refused_and_leaves_no_row(tmp_path):
    log = MetricsLog(tmp_path / "run")
    with pytest.raises(ValueError, match="train/loss is nan at 40: training has diverged"):
        log.write(40, {"train/loss": float("nan")})
    assert list(log.rows()) == []


@pytest.mark.parametrize("more", ["", "2", '{"step":20,"train/lo', '{"step":30,"train/loss":9}\n{"step":40,'])
def test_a_resumed_run_writes_the_same_bytes_as_one_that_was_never_stopped(tmp_path, more):
    whole, broken = MetricsLog(tmp_path / "whole"), MetricsLog(tmp_path / "broken")
    for log in (whole, broken):
        for step in (10, 20):
            log.write(step, {"train/loss": step / 7, "eval/score": step / 70})
    with (tmp_path / "broken" / FILE).open("a") as file:  # logged after the last save, or while it was killed
        file.write(more)
    broken = MetricsLog(tmp_path / "broken", position=20)
    for log in (whole, broken):
        log.write(30, {"train/loss": 3.0})
        log.publish(tmp_path / "out" / log.folder.name)
    for name in (FILE, "scores.csv"):
        assert (tmp_path / "out/broken" / name).read_bytes() == (tmp_path / "out/whole" / name).read_bytes()


def test_a_run_that_begins_anew_forgets_the_one_before(tmp_path):
    MetricsLog(tmp_path / "run").write(10, {"train/loss": 1.0})
    assert list(MetricsLog(tmp_path / "run").rows()) == []


def test_what_else_lies_beside_the_log_is_published_with_it_and_curves_as_tables(tmp_path):
    log = MetricsLog(tmp_path / "run")
    (tmp_path / "run/clusters.json").write_text("{}")
    log.write(0, {"eval/score": 0.5})
    log.write(10, {"train/loss": 1.0})
    log.write(20, {"eval/score": 0.75})
    log.publish(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clusters.json", FILE, "scores.csv"]
    assert (tmp_path / "out/scores.csv").read_text() == "step,eval/score\n0,0.5\n20,0.75\n"
    assert (tmp_path / "out" / FILE).read_bytes() == (tmp_path / "run" / FILE).read_bytes()


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "1"}', "x", "[" * 100_000])
def test_a_line_that_no_run_writes_is_named(tmp_path, line):
    (tmp_path / FILE).write_text('{"step":1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: expected a JSON object with an integer `step`"):
        list(read_rows(tmp_path / FILE))


def long_run(folder: Path, rows: int, evaluate_every: int, tasks: list[str]) -> Path:
    """Log as finetuning does, every 50,000 environment steps, and publish."""
    log = MetricsLog(folder / "run")
    for row in range(1, rows + 1):
        step = 50_000 * row
        value = 0.1234567 + row / 7
        values = {f"train/loss_{number}": value / (number + 1) for number in range(15)} | {"train/total_loss": value}
        for group in ("online", "return", "constraint", "harmony"):
            values |= {f"{group}/{task}": value / (number + 1) for number, task in enumerate(tasks)}
        log.write(step, values | {f"time/share_{number}": 1 / (row + number) for number in range(8)})
        if row % evaluate_every == 0:
            scores = {f"eval/{task}": 1 / (row + number) for number, task in enumerate(tasks)}
            log.write(step, {**scores, "eval/score": 1 / row, "time/seconds": 3.5 * row})
    log.publish(folder / "out")
    return folder / "out" / FILE


def test_a_long_run_is_thinned_group_by_group_and_its_evaluations_are_kept(tmp_path):
    path = long_run(tmp_path, rows=240, evaluate_every=40, tasks=TASKS)
    assert path.stat().st_size < 2e6 < (tmp_path / "run" / FILE).stat().st_size / 3
    online = [row["step"] for row in read_rows(path) if "online/" + TASKS[7] in row]
    assert len(online) > 40
    assert len(set(np.diff(online[:-1]))) == 1, "evenly spaced, but for the last"
    assert (online[0], online[-1]) == (50_000, 240 * 50_000)
    scores = [row["step"] for row in read_rows(path) if "eval/score" in row]
    assert scores == [40 * 50_000 * number for number in range(1, 7)]
    full = {row["step"]: row for row in read_rows(tmp_path / "run" / FILE) if "train/total_loss" in row}
    for row in read_rows(path):
        for name in [name for name in row if name.startswith(("train/", "online/"))]:
            assert row[name] == full[row["step"]][name]
    assert len((path.parent / "losses.csv").read_text().splitlines()) == 1 + 240, "few enough bytes to be kept whole"


@pytest.mark.slow
def test_a_run_of_100_million_steps_on_200_tasks_stays_below_5_mb(tmp_path):
    path = long_run(tmp_path, rows=2000, evaluate_every=40, tasks=TASKS)  # as in presets/newt.yaml
    sizes = (tmp_path / "run" / FILE).stat().st_size, sum(one.stat().st_size for one in path.parent.iterdir())
    print(f"logged {sizes[0] / 1e6:.1f} MB, published {sizes[1] / 1e6:.2f} MB")
    assert sizes[1] < 5e6
    assert sum("eval/score" in row for row in read_rows(path)) == 50, "every evaluation is kept"


def test_tensorboard_gets_the_rows_and_forgets_what_a_killed_run_added(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for position, values in ((0, {10: 1.0, 20: 2.0, 30: 9.0}), (20, {30: 3.0})):
        (tracker,) = start_trackers(["tensorboard"], "run-1", position, {"seed": 1})
        log = MetricsLog(tmp_path / "metrics", position, [tracker])
        for at, value in values.items():
            log.write(at, {"train/loss": value})
        tracker.finish()
    events = EventAccumulator(str(tmp_path / "runs/run-1"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 1.0), (20, 2.0), (30, 3.0)]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="names wandb, which is not installed"):
        start_trackers(["wandb"], "run", 0, {})
