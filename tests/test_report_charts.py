"""What is drawn of which curves."""

from pipeline.report import _training_charts
from pipeline.report.charts import PRETRAINED
from pipeline.results import Curve


def test_the_scales_of_the_tasks_losses_are_one_chart():
    curves = {f"harmony/{task}": Curve([0, 100], [1.0, 0.5]) for task in ("mw-reach", "mw-pick-place")}
    charts = _training_charts(curves, "updates", PRETRAINED)
    assert list(charts["losses"]) == ["scale of each task's loss"]
