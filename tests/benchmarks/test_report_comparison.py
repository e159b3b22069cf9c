"""The page shows the comparison of systems where there is one, and says so where its file is of another form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import systems
from pipeline.files import write_json
from pipeline.report import _training_charts, write_report
from pipeline.report.charts import PRETRAINED
from pipeline.report.comparison import FILE, read_comparison
from pipeline.results import Curve
from tests.test_report import Page
from tests.benchmarks.test_systems import TASKS, a_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).parents[1] / "tiny.yaml", tmp_path / "params.yaml")
    runs = [a_run(system, seed, level) for system, level in (("newt", 0.8), ("<mow>", 0.3)) for seed in (1, 2)]
    shown = systems.summarise(runs, TASKS)
    content = {
        "command": "python -m benchmarks.systems", "commit": "abc", "machine": {"cpu": "Some CPU"}, "seconds": 40.0,
        "whole_protocol": False, "claims": systems.claims(shown, runs, 4, "newt"), **shown,
    }  # fmt: skip
    write_json(tmp_path / FILE, content)
    return tmp_path


def test_the_comparison_is_a_section_with_curves_table_and_claims(root: Path) -> None:
    write_report(root, root / "report.html")
    html = (root / "report.html").read_text()
    page = Page(html)
    words = page.words("systems")
    assert "#systems" in page.attributes("href")
    assert "Score of each system against environment steps" in page.attributes("aria-label")
    assert "<mow>" in words
    assert "<mow>" not in html
    assert "not reached by 2" in words
    assert "tasks compared" in words
    assert "a part of the whole comparison" in words
    assert all(task in words for task in TASKS)
    assert html.count("var(--system-0)") > 1
    assert "var(--system-1)" in html


def test_the_scales_of_the_tasks_losses_are_one_chart() -> None:
    curves = {f"harmony/{task}": Curve([0, 100], [1.0, 0.5]) for task in TASKS}
    charts = _training_charts(curves, "updates", PRETRAINED)
    assert list(charts["losses"]) == ["scale of each task's loss"]


def test_without_a_comparison_there_is_no_such_section(root: Path) -> None:
    (root / FILE).unlink()
    assert read_comparison(root) is None
    write_report(root, root / "report.html")
    assert 'id="systems"' not in (root / "report.html").read_text()


def test_another_form_is_named(root: Path) -> None:
    content = json.loads((root / FILE).read_text())
    del content["table"][1]["seconds"]
    write_json(root / FILE, content)
    with pytest.raises(ValueError, match=r"systems.json: `table.1.seconds`: Field required. Run `python -m bench"):
        write_report(root, root / "report.html")
